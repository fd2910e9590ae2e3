"""Number formats by the kind of processor, and failures of the machine in one line."""

from pathlib import Path

import pytest
import torch

from aimonk_hf.cli.main import main
from aimonk_hf.data.sample_data import write_sample_data
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
    monkeypatch.setattr(Path, "exists", lambda path: False)  # no /proc/cpuinfo of this machine
    assert resolve_precision("auto", CPU) == precision
    assert resolve_precision("bf16", CPU) == "bf16"


def test_workers_are_shared_among_the_processes_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_too_few_values_for_batch_norm_are_explained(
    n_images: int, flags: str, advice: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = write_sample_data(tmp_path / "data", n_images=n_images)
    command = f"train --data-dir {data} --output-dir {tmp_path / 'out'} --recipe demo --image-size 32 --num-workers 0"
    assert main([*command.split(), *flags.split()]) == 2
    told = f"aimonk-hf: batch norm needs more than one value per channel: {advice}\n"
    assert capsys.readouterr().err.endswith(told)
