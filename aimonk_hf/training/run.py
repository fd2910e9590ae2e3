"""A training run from data folder to run directory."""

import copy
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import parse_flag_from_env, patch_environment

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.read_options import ReadOptions
from aimonk_hf.data.vocabulary import PARTS
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.devices import explain_failure, prepare_for_training, resolve_device, resolve_precision
from aimonk_hf.modeling.hub import create_repository, data_folder
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.callbacks import TrainCallback
from aimonk_hf.training.finish import finish
from aimonk_hf.training.folds import cross_validate
from aimonk_hf.training.loop import Trainer
from aimonk_hf.training.parts import divide, usable_images
from aimonk_hf.training.processes import Processes
from aimonk_hf.training.run_directory import RunDirectory
from aimonk_hf.training.seeding import seed_everything
from aimonk_hf.training.settings import TrainConfig
from aimonk_hf.training.setup import (
    build_model,
    computing_line,
    describe_start,
    load_earlier,
    machine_settings,
    reported_attributes,
    try_steps,
)
from aimonk_hf.training.stopping import stopped_line
from aimonk_hf.training.teacher import soft_targets
from aimonk_hf.training.tracking import start_tracker


def train(
    config: TrainConfig,
    model: AimonkModel | None = None,
    dataset: AttributeDataset | None = None,
    callbacks: Sequence[TrainCallback] = (),
) -> AimonkModel:
    """Train, write the run directory, and return the kept model in eval mode.

    `model` (left as it is) takes the place of the settings' architecture, `dataset` that of their data folder;
    attributes are matched by name.

    Every process of an `accelerate launch` calls this; the first one writes, and all return when the run directory is
    complete. The caller's accelerate state is put back, and the process group stays open. Raises `AimonkError` with one
    line on data, settings or a machine that cannot be used.
    """
    if not config.output_dir or (not config.data_dir and dataset is None):
        raise AimonkError("TrainConfig needs an output_dir, and a data_dir unless train() is given a dataset")
    if model is not None and config.init_from:
        raise AimonkError("train() is given a model to start from: leave out init_from")
    run = RunDirectory(config)
    config = run.config
    run.check()
    if run.finished:
        try:
            listed = listed_images(config, model, dataset)
        except AimonkError as error:  # it may have been moved away
            print(f"warning: the data cannot be compared with that of the run: {error}")
        else:
            run.check_data(listed)
        print(f"{run.path} is finished: nothing to resume")
        return AimonkModel.from_pretrained(run.path)
    listed = listed_images(config, model, dataset)
    listed.labels.check_observed("listed images")
    with _own_accelerate_state():
        accelerator = _start_accelerator(config)
        try:
            earlier = load_earlier(config)
            fresh = partial(build_model, config, listed.attributes, earlier)
            new_model = fresh if model is None else partial(copy.deepcopy, model)
            return _run(config, accelerator, run, listed, new_model, earlier, callbacks)
        except (RuntimeError, MemoryError, ValueError) as error:
            size = config.image_size or (224 if model is None else model.transform.size[0])
            if explained := explain_failure(error, config.batch_size, size, len(listed)):
                raise explained from error
            raise
        except (KeyboardInterrupt, SystemExit):
            if accelerator.is_main_process:
                print(stopped_line(run.path), file=sys.stderr, flush=True)
            raise
        finally:
            accelerator.close()


def _run(
    config: TrainConfig,
    accelerator: Processes,
    run: RunDirectory,
    listed: AttributeDataset,
    new_model: Callable[[], AimonkModel],
    earlier: AimonkModel | None,
    callbacks: Sequence[TrainCallback],
) -> AimonkModel:
    """Check, divide and train; each refusal comes before the slow work that it would waste."""
    run.check_machine(machine_settings(accelerator))
    accelerator.print(computing_line(accelerator))
    if earlier is not None and not config.resume:
        accelerator.print(describe_start(config, earlier, listed.attributes))
    if accelerator.is_main_process:
        if config.push_to_hub:  # a wrong token or a public repository is refused now
            create_repository(config.push_to_hub, config.private or None)
        run.open()
    accelerator.wait_for_everyone()
    if listed.labels.notes:
        accelerator.print(f"labels:   {listed.labels.told}")
    seed_everything(config.seed)
    model = new_model()
    try_steps(config, accelerator, model)
    dataset = usable_images(config, listed, accelerator)
    if accelerator.is_main_process:
        run.check_data(dataset)
    out_of_fold = cross_validate(config, accelerator, run, dataset, new_model) if config.folds else None
    train_set, validation, report_set = divide(config, dataset, run, accelerator, earlier)
    seed_everything(config.seed)
    parts = [train_set, validation, report_set]
    soft = soft_targets(config.teacher, run, accelerator, parts) if config.teacher else None
    trainer = Trainer(config, accelerator, model, train_set, validation, soft)
    trainer.fit(run, callbacks)
    return finish(trainer, run, validation, report_set, out_of_fold)


def listed_images(
    config: TrainConfig, model: AimonkModel | None = None, dataset: AttributeDataset | None = None
) -> AttributeDataset:
    """Return the listed images of a run: `dataset` or those of the data folder, the auxiliary attributes last."""
    if dataset is None:
        place = data_folder(config.data_dir), config.labels, config.images_dir
        parts = config.val_labels, config.report_labels
        dataset = AttributeDataset.from_folder(*place, None, None, ReadOptions.of(config), *parts)
    if config.folds and (given := dataset.labels.parts) is not None:
        rows = [row for row, part in enumerate(given) if part == PARTS[0]]
        print(f"--folds divides the {len(rows)} images of the given part {PARTS[0]}; the others take no part")
        dataset = dataset.select(rows)
        dataset.labels = replace(dataset.labels, parts=None)
    dataset = dataset if model is None else dataset.match(model.config.attributes)
    reported = reported_attributes(config, dataset.attributes)
    return dataset.match([*reported, *(name for name in dataset.attributes if name not in reported)])


@contextmanager
def _own_accelerate_state() -> Iterator[None]:
    """Let the run choose its precision, and put the caller's state of accelerate and torch back."""
    shared = (AcceleratorState._shared_state, GradientState._shared_state)
    before = [dict(state) for state in shared]
    fast = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)
        torch.set_float32_matmul_precision(fast[0])
        torch.backends.cudnn.benchmark = fast[1]


def _start_accelerator(config: TrainConfig) -> Processes:
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # of `accelerate launch --mixed_precision`
    wanted = config.mixed_precision if launched == "no" else launched
    wanted_device = {} if config.device == "auto" else {"ACCELERATE_TORCH_DEVICE": resolve_device(config.device)}
    with patch_environment(**wanted_device):
        device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or config.device == "cpu").device
    precision = resolve_precision(wanted, device)
    try:
        accelerator = Processes(
            mixed_precision="no" if precision == "float32" else precision,
            log_with=config.log_with,
            project_dir=config.output_dir,
        )
    except (ValueError, ImportError) as error:
        raise AimonkError(f"Cannot start the run: {reason_of(error)}") from error
    prepare_for_training(accelerator.device)
    start_tracker(accelerator, config)
    return accelerator
