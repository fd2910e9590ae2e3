"""Number formats by what the processor is, and failures of the machine in one line."""

from pathlib import Path

import pytest
import torch

from aimonk_hf import TrainConfig, train
from aimonk_hf.cli.main import main
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.devices import default_workers, resolve_precision

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
def test_auto_is_bf16_where_the_processor_gains_by_it(
    processor: dict, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert resolve_precision("auto", CPU) == precision
    assert resolve_precision("bf16", CPU) == "bf16"


def test_readers_are_shared_among_the_processes_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert (default_workers(1), default_workers(8), default_workers(64)) == (8, 2, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # of 8 on two machines
    assert default_workers(8) == 4


def test_a_batch_of_one_without_room_for_batch_norm_is_explained(sample, tmp_path) -> None:
    config = TrainConfig(
        str(sample),
        str(tmp_path / "out"),
        **{"recipe": "demo", "architecture": "efficientvit_m0", "batch_size": 1, "image_size": 32, "num_workers": 0},
    )
    with pytest.raises(
        AimonkError, match="batch norm needs more than one value per channel: use a --batch-size above 1"
    ):
        train(config)


def test_two_images_are_too_few_whatever_the_batch_size(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_sample_data(tmp_path / "data", n_images=2)
    flags = [
        "--recipe",
        "demo",
        "--image-size",
        "32",
        "--num-workers",
        "0",
        "--batch-size",
        "4",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert main(["train", "--data-dir", str(data), *flags]) == 2
    told = "aimonk-hf: batch norm cannot train on one image, and no more are left to train on of 2 usable ones: add images\n"
    assert capsys.readouterr().err == told
