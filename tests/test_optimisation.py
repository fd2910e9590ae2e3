import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from aimonk_hf import TrainConfig
from aimonk_hf.training.optimisation import build_optimizer, lr_factor


@pytest.mark.parametrize(("total", "warmup"), [(456, 0.3), (20, 0.25), (100, 0.5)])
def test_one_cycle_is_torchs(total: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = OneCycleLR(optimizer, max_lr=1.0, total_steps=total, pct_start=warmup, cycle_momentum=False)
    for step in range(total):
        assert lr_factor("one-cycle", step, total, warmup) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        if step < total - 1:
            theirs.step()


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_short_runs_have_positive_rates(schedule: str, total: int) -> None:
    rates = [lr_factor(schedule, step, total, 0.3) for step in range(total)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates) > 0.5


def test_cosine_and_constant_by_hand() -> None:
    assert [lr_factor("cosine", step, 4, 0.5) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 0.5])
    assert [lr_factor("constant", step, 4, 0.5) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_weight_decay_leaves_norms_and_biases_alone() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = build_optimizer(network, TrainConfig(data_dir="a", output_dir="b", weight_decay=0.1))
    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decayed[id(p)] for name, p in network.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }
