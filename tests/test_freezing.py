import pytest
import timm
import torch
from torch import nn

from aimonk_hf import TrainConfig
from aimonk_hf.errors import AimonkError
from aimonk_hf.training.freezing import freeze_parameters, layer_groups, set_train_mode
from aimonk_hf.training.optimisation import build_optimizer, set_learning_rate


def network(name: str = "test_resnet") -> nn.Module:
    return timm.create_model(name, num_classes=3)


def trained(model: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_timms_groups_are_stem_blocks_and_head() -> None:
    stem, *blocks, head = layer_groups(timm.create_model("mobilenetv2_100"))
    assert "conv_stem.weight" in stem
    assert len(blocks) == 17
    assert head == ["classifier.weight", "classifier.bias"]
    assert len(layer_groups(timm.create_model("efficientnet_b0"))) == 18
    assert len(layer_groups(timm.create_model("resnet34"))) == 18
    assert len(layer_groups(timm.create_model("test_vit"))) == 8


@pytest.mark.parametrize(
    ("freeze", "left"),
    [
        ("none", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}),
        ("backbone", {"fc"}),
        ("first-0", {"layer1", "layer2", "layer3", "layer4", "fc"}),
        ("first-2", {"layer3", "layer4", "fc"}),
        ("first-8/16", {"layer3", "layer4", "fc"}),
        ("except-last-1", {"layer4", "fc"}),
        ("except-last-0", {"fc"}),
        ("conv1+bn1+layer1", {"layer2", "layer3", "layer4", "fc"}),
    ],
)
def test_what_stays_trained(freeze: str, left: set[str]) -> None:
    model = network()
    freeze_parameters(model, freeze)
    assert trained(model) == left


@pytest.mark.parametrize(
    ("architecture", "left"),
    [
        ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}),
        ("levit_128s", {"head", "head_dist"}),
        ("crossvit_9_240", {"head"}),
        ("volo_d1_224", {"head", "aux_head"}),
    ],
)
def test_all_heads_are_trained_where_the_backbone_is_frozen(architecture: str, left: set[str]) -> None:
    model = network(architecture)
    freeze_parameters(model, "backbone")
    assert trained(model) == left


def test_transformer_layers_count_as_blocks() -> None:
    model = network("test_vit")
    freeze_parameters(model, "first-4")
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[1] for name in names if name.startswith("blocks")} == {"4", "5"}
    assert "pos_embed" not in names
    assert "head.weight" in names


def test_freezing_is_undone_by_the_next_stage() -> None:
    model = network()
    freeze_parameters(model, "backbone")
    freeze_parameters(model, "none")
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("first-5", "this network has 4 blocks"),
        ("first-9/8", "9 of 8 blocks is more than all"),
        ("layer5", r"no layer 'layer5' \(did you mean layer"),
        ("conv1+bn1+layer1+layer2+layer3+layer4+fc", "leaves nothing to train"),
    ],
)
def test_impossible_requests_are_refused(freeze: str, message: str) -> None:
    with pytest.raises(AimonkError, match=message):
        freeze_parameters(network(), freeze)


def test_frozen_batch_norm_keeps_its_statistics_and_the_rest_does_not() -> None:
    model = network()
    freeze_parameters(model, "first-2")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    set_train_mode(model)
    assert not model.bn1.training
    assert model.layer3.training
    model(torch.randn(4, 3, 32, 32))
    changed = {name.split(".")[0] for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed == {"layer3", "layer4"}


def test_no_gradient_is_computed_for_a_frozen_prefix() -> None:
    model = network()
    freeze_parameters(model, "first-2")
    set_train_mode(model)
    inside: list[torch.Tensor] = []
    model.layer2.register_forward_hook(lambda *arguments: inside.append(arguments[2]))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert not inside[0].requires_grad
    assert model.layer1[0].conv1.weight.grad is None


def test_layer_decay_scales_from_head_to_stem_and_skips_what_is_frozen() -> None:
    model = network()
    freeze_parameters(model, "first-1")
    optimizer = build_optimizer(model, TrainConfig("data", "out", lr=0.1, layer_decay=0.5))
    set_learning_rate(optimizer, 0.04)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    rates = {name: rate.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert rates["fc.weight"] == pytest.approx(0.04)
    assert rates["layer4.0.conv1.weight"] == pytest.approx(0.02)
    assert rates["layer2.0.bn1.bias"] == pytest.approx(0.005)
    assert rates["layer1.0.conv1.weight"] is None
