"""Run the loops of others on the plain loop's task: transformers' Trainer, and fastai's Learner where installed.

Both start from the plain loop's weights and a head drawn as its own is, and see its images: squashed to 224 x 224
pixels, mirrored half of the time, with the mean and spread that the weights want. Readers, optimiser and schedule are
their own; their loss is masked, since neither has one that knows missing labels, and not weighted. Their learning rates
are what their users would type:

- transformers: the default AdamW with a linear decay, at the plain loop's 1e-4 (the default 5e-5 is meant for language
models); - fastai: `fit_one_cycle` as it comes: its Adam with weight decay, up to 1e-3 and down again, the whole network
at once.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

from plain import SIDE, AfterEpoch, AfterStep, Images, Loop, Task, masked_loss, new_network, score_files, squashing


def transformers_trainer(task: Task, after_step: AfterStep, after_epoch: AfterEpoch) -> Callable[[], None]:
    """transformers' Trainer on TimmWrapper, with its own image processor."""
    import torch
    from torchvision import transforms
    from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainerCallback

    folder = save_timm_wrapper(task)
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)

    def process(image: Any) -> Any:
        return processor(image)["pixel_values"][0]

    def collate(items: list[Any]) -> dict[str, Any]:
        pixels, labels = zip(*items, strict=True)
        return {"pixel_values": torch.stack(pixels), "labels": torch.stack(labels)}

    class Masked(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            wanted = inputs.pop("labels")
            return masked_loss(model(**inputs).logits, wanted)

    class Tell(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            after_step(task.batch_size)

        def on_epoch_end(self, *arguments: Any, **more: Any) -> None:
            after_epoch(
                lambda paths: score_files(model, lambda pixels: model(pixel_values=pixels).logits, process, paths)
            )

    images = Images(task.dataset, transforms.Compose([transforms.RandomHorizontalFlip(), process]))
    trainer = Masked(
        model=model, args=trainer_settings(task), data_collator=collate, train_dataset=images, callbacks=[Tell()]
    )

    def train() -> None:
        trainer.train()

    return train


def save_timm_wrapper(task: Task) -> str:
    """Write the network as this library does, which TimmWrapper reads, and return the folder."""
    from aimonk_hf import AimonkModel

    names = [
        f"new {number}" for number in range(task.dataset.labels.values.shape[1])
    ]  # names of no saved head: it would be kept
    squash = {"crop_mode": "squash", "crop_pct": 1.0}
    model = AimonkModel.from_timm(
        task.architecture, names, pretrained=task.pretrained, image_size=SIDE, preprocessing=squash
    )
    model.save_pretrained(task.scratch / "model")
    return str(task.scratch / "model")


def trainer_settings(task: Task) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(task.scratch / "out"),
        learning_rate=1e-4,
        num_train_epochs=task.epochs,
        per_device_train_batch_size=task.batch_size,
        dataloader_num_workers=2,
        dataloader_drop_last=True,
        dataloader_persistent_workers=True,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )


def fastai_learner(task: Task, after_step: AfterStep, after_epoch: AfterEpoch) -> Callable[[], None]:
    """fastai's Learner, with its own loaders and its transforms in batches."""
    import torch
    from fastai.vision import all as fastai

    paths, labels, network = task.dataset.paths, task.dataset.labels.values, new_network(task)
    rows = list(range(len(paths)))
    items = [[lambda row: fastai.PILImage.create(paths[row])], [lambda row: torch.from_numpy(labels[row])]]
    normalise = fastai.Normalize.from_stats(network.pretrained_cfg["mean"], network.pretrained_cfg["std"], cuda=False)  # type: ignore[index]
    loaders = fastai.Datasets(rows, items, splits=[rows, rows[:1]]).dataloaders(
        bs=task.batch_size,
        num_workers=2,
        drop_last=True,
        device=torch.device("cpu"),
        after_item=[fastai.Resize(SIDE, fastai.ResizeMethod.Squish), fastai.ToTensor()],
        after_batch=[fastai.IntToFloatTensor(), fastai.Flip(), normalise],
    )

    class Tell(fastai.Callback):
        def after_step(self) -> None:
            after_step(task.batch_size)

        def after_train(self) -> None:
            after_epoch(lambda paths: score_files(network, network, squashing(network), paths))

        def before_validate(self) -> None:
            raise fastai.CancelValidException

    learner = fastai.Learner(
        loaders, network, lambda logits, wanted: masked_loss(logits, wanted), cbs=[Tell()], path=task.scratch
    )

    def train() -> None:
        with learner.no_bar(), learner.no_logging():
            learner.fit_one_cycle(task.epochs)

    return train


PEERS: dict[str, Loop] = {
    "transformers Trainer": transformers_trainer,
    **({"fastai": fastai_learner} if importlib.util.find_spec("fastai") else {}),
}
