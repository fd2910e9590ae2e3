import pytest
import timm
import torch
from torch import nn

from aimonk_hf import TrainConfig
from aimonk_hf.errors import AimonkError
from aimonk_hf.training.freezing import freeze_parameters, layer_groups, set_train_mode
from aimonk_hf.training.optimisation import build_optimizer, schedule_lr


def network(name: str = "test_resnet") -> nn.Module:
    return timm.create_model(name, num_classes=3)


def trained(model: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_timms_groups_are_stem_blocks_and_head() -> None:
    stem, *blocks, head = layer_groups(network("mobilenetv2_100"))
    assert "conv_stem.weight" in stem
    assert len(blocks) == 17
    assert head == ["classifier.weight", "classifier.bias"]
    n_groups = {name: len(layer_groups(network(name))) for name in ("efficientnet_b0", "resnet34", "test_vit")}
    assert n_groups == {"efficientnet_b0": 18, "resnet34": 18, "test_vit": 8}


@pytest.mark.parametrize(
    ("architecture", "freeze", "left"),
    [
        ("test_resnet", "none", "conv1 bn1 layer1 layer2 layer3 layer4 fc"),
        ("test_resnet", "backbone", "fc"),
        ("test_resnet", "first-0", "layer1 layer2 layer3 layer4 fc"),
        ("test_resnet", "first-2", "layer3 layer4 fc"),
        ("test_resnet", "first-8/16", "layer3 layer4 fc"),
        ("test_resnet", "except-last-1", "layer4 fc"),
        ("test_resnet", "except-last-0", "fc"),
        ("test_resnet", "conv1+bn1+layer1", "layer2 layer3 layer4 fc"),
        ("deit_tiny_distilled_patch16_224", "backbone", "head head_dist"),
        ("levit_128s", "backbone", "head head_dist"),
        ("crossvit_9_240", "backbone", "head"),
        ("volo_d1_224", "backbone", "head aux_head"),
    ],
)
def test_the_layers_that_stay_trained(architecture: str, freeze: str, left: str) -> None:
    model = network(architecture)
    freeze_parameters(model, "backbone")  # of the stage before, which is undone
    freeze_parameters(model, freeze)
    assert trained(model) == set(left.split())


def test_transformer_layers_count_as_blocks() -> None:
    model = network("test_vit")
    freeze_parameters(model, "first-4")
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[1] for name in names if name.startswith("blocks")} == {"4", "5"}
    assert "pos_embed" not in names
    assert "head.weight" in names


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


def test_layer_decay_scales_from_head_to_stem_and_skips_frozen_layers() -> None:
    model = network()
    freeze_parameters(model, "first-1")
    config = TrainConfig("data", "out", lr=0.1, layer_decay=0.5, schedule="constant", warmup=0.0)
    optimizer = build_optimizer(model, config)
    schedule_lr(optimizer, config, 0.04, 0, 1)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    rates = {name: rate.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert rates["fc.weight"] == pytest.approx(0.04)
    assert rates["layer4.0.conv1.weight"] == pytest.approx(0.02)
    assert rates["layer2.0.bn1.bias"] == pytest.approx(0.005)
    assert rates["layer1.0.conv1.weight"] is None
