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


@pytest.mark.parametrize(("name", "theirs"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_the_fused_kernel_steps_as_torchs_loop_does(name: str, theirs: type[torch.optim.Optimizer]) -> None:
    networks = [_convolutions() for _ in range(2)]
    settings = TrainConfig(data_dir="a", output_dir="b", optimizer=name, lr=0.1, weight_decay=0.0)
    options = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {"weight_decay": 0.0}  # timm's
    optimizers = [build_optimizer(networks[0], settings), theirs(networks[1].parameters(), lr=0.1, fused=False, foreach=False, **options)]
    before = networks[0][0].weight.detach().clone()
    for step in range(3):
        pixels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)).contiguous(memory_format=torch.channels_last)
        for network, optimizer in zip(networks, optimizers, strict=True):
            network(pixels).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert optimizers[0].defaults["fused"]
    assert not torch.allclose(before, networks[0][0].weight)
    for own, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_an_optimiser_without_a_fused_kernel_is_built_all_the_same() -> None:
    optimizer = build_optimizer(_convolutions(), TrainConfig(data_dir="a", output_dir="b", optimizer="lamb"))
    assert type(optimizer).__name__ == "Lamb"


def _convolutions() -> torch.nn.Sequential:
    """A full, a depthwise and a 1 x 1 convolution, channels_last, always with the same weights."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Tanh(), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 2, 1)
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
