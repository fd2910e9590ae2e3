"""Number formats by the kind of processor, and failures of the machine in one line."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from train_support import history, losses, same, small, train_until

from aimonk_hf import AimonkModel, TrainConfig, train
from aimonk_hf.cli.main import main
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.devices import default_workers, resolve_precision
from aimonk_hf.training import loop, optimisation, seeding
from aimonk_hf.training.callbacks import TrainCallback
from aimonk_hf.training.optimisation import build_optimizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("processor", "precision"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "float32"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, "float32"),
        ({"architecture": "aarch64", "bf16": True}, "bf16"),
        ({}, "float32"),
    ],
)
def test_auto_is_bf16_where_the_processor_gains_by_it(processor: dict, precision: str, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    monkeypatch.setattr(Path, "exists", lambda path: False)  # no /proc/cpuinfo of this machine
    assert resolve_precision("auto", CPU) == precision
    assert resolve_precision("bf16", CPU) == "bf16"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in torch 2.9
    assert resolve_precision("auto", CPU) == "float32"


def test_workers_are_shared_among_the_processes_of_one_machine(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert (default_workers(1), default_workers(8), default_workers(64)) == (8, 2, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # of 8 on two machines
    assert default_workers(8) == 4


@pytest.mark.parametrize(
    ("n_images", "flags", "advice"),
    [
        (12, "--architecture efficientvit_m0 --batch-size 1", "use a --batch-size above 1, or a larger --image-size"),
        (2, "--batch-size 4", "only one of 2 usable images is left to train on: add images"),
    ],
)
def test_too_few_values_for_batch_norm_are_explained(n_images: int, flags: str, advice: str, tmp_path: Path, capsys):
    data = write_sample_data(tmp_path / "data", n_images=n_images)
    command = f"train --data-dir {data} --output-dir {tmp_path / 'out'} --recipe demo --image-size 32 --num-workers 0"
    assert main([*command.split(), *flags.split()]) == 2
    told = f"aimonk-hf: Batch norm needs more than one value per channel: {advice}\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize("words", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"])
def test_a_device_without_memory_is_one_sentence(
    words: str, sample: Path, folder: Path, tmp_path: Path, monkeypatch, capsys
):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(loop, "build_loss", lambda _: fails)
    with pytest.raises(AimonkError, match="Out of memory with batch size 16 and image size 32: try --batch-size 8"):
        train(small(sample, tmp_path / "out"))
    monkeypatch.setattr(AimonkModel, "logits_of_pixels", fails)
    monkeypatch.setattr(AimonkModel, "check_outputs", lambda model: model)
    image = str(next((sample / "images").iterdir()))
    assert main(["predict", image, "--model", str(folder), "--backend", "torch"]) == 2
    told = f"aimonk-hf: Out of memory ({words}): try a smaller --batch-size or --num-workers, or --device cpu."
    assert capsys.readouterr().err.splitlines()[-1] == told


def test_losses_read_some_steps_later_are_those_of_each_step(few: Path, tmp_path: Path, monkeypatch):
    noted: list[tuple[int, float | None]] = []

    class Note(TrainCallback):
        def on_step(self, step: int, loss: float | None, lr: float) -> None:
            noted.append((step, loss))

    settings = partial(small, few, epochs=2, batch_size=4)
    usual = train(settings(tmp_path / "usual"), callbacks=[Note()])
    each, noted = noted, []
    monkeypatch.setattr(loop, "steps_between_reads", lambda device: 3)
    late = train(settings(tmp_path / "late"), callbacks=[Note()])
    assert same(usual, late)
    assert history(tmp_path / "usual") == history(tmp_path / "late")
    assert each == noted
    assert len(each) == len(losses(tmp_path / "late")) > 4

    seeded: list[int] = []
    monkeypatch.setattr(loop, "build_loss", lambda _: lambda logits, *_: logits.sum() * torch.nan)
    with pytest.raises(AimonkError, match="The loss of step 0 is nan: try a lower --lr; the batch was garment"):
        train(settings(tmp_path / "nan"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    seeding.seed_everything(1, 2)
    assert len(seeded) == 1, "generators of every device are seeded"


def test_a_compiled_network_trains_the_same_and_is_saved_without_a_trace(few: Path, tmp_path: Path, monkeypatch):
    usual = train(small(few, tmp_path / "usual"))
    compiled: list[str] = []
    compile = torch.compile

    def eager(network: Any) -> Any:
        compiled.append(type(network).__name__)
        return compile(network, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    assert same(usual, train(small(few, tmp_path / "compiled", compile=True)))
    assert same(usual, AimonkModel.from_pretrained(tmp_path / "compiled"))
    assert len(compiled) == 1

    def fails(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(compile, backend=fails))
    with pytest.raises(AimonkError, match=r"--compile cannot be used here \(.*no compiler here.*\): leave it out"):
        train(small(few, tmp_path / "refused", compile=True))


def test_a_run_with_a_fused_optimiser_resumes_as_the_uninterrupted_one(few: Path, tmp_path: Path, monkeypatch):
    """A fused step goes through memory in order, so moments must come back in the weights' channels_last."""
    monkeypatch.setattr(optimisation, "FUSED_ON", ("cpu",))
    settings = partial(small, few, epochs=3)
    whole = train(settings(tmp_path / "whole"))
    train_until(2, settings(tmp_path / "cut"))
    assert same(whole, train(settings(tmp_path / "cut", resume=True)))


def test_optimisers_are_fused_where_torch_has_such():
    network = torch.nn.Linear(2, 2, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimisation, "FUSED_ON", ("cpu",))
        assert build_optimizer(network, TrainConfig("data", "out")).defaults["fused"]
        assert "fused" not in build_optimizer(network, TrainConfig("data", "out", optimizer="lamb")).defaults
    assert not build_optimizer(network, TrainConfig("data", "out")).defaults.get("fused")
