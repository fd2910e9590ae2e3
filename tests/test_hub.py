"""Pushing to and loading from a Hub that runs in this process, through the real client over HTTP."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hub_support import hub
from huggingface_hub import ModelCard
from loopback_hub import READER, WRITER, LoopbackHub

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.hub import push_model_folder

__all__ = ["hub"]  # a fixture

ATTRIBUTES = ["collar", "belt", "long sleeves"]
REPO = "user/model"


@pytest.fixture
def model() -> AimonkModel:
    return make_model(0)


def make_model(seed: int) -> AimonkModel:
    torch.manual_seed(seed)
    model = AimonkModel.from_timm("test_efficientnet", ATTRIBUTES, pretrained=False).eval()
    model.config.thresholds = {"collar": 0.41, "belt": 0.5, "long sleeves": 0.7}
    model.metrics = None if seed else _metrics()
    return model


def _metrics() -> dict:
    import numpy as np

    from aimonk_hf.evaluation.report import build_report

    labels = np.array([[1, 0, 1], [0, 1, np.nan], [1, 0, 0]], dtype=np.float32)
    scores = np.array([[0.9, 0.1, 0.6], [0.2, 0.8, 0.5], [0.7, 0.3, 0.2]])
    return build_report(labels, scores, scores >= 0.5, ATTRIBUTES, dict.fromkeys(ATTRIBUTES, 0.5))


def _batch(model: AimonkModel) -> torch.Tensor:
    return torch.randn(2, 3, *model.transform.size, generator=torch.Generator().manual_seed(1))


def _logits(model: AimonkModel) -> torch.Tensor:
    with torch.no_grad():
        return model(_batch(model)).logits


def test_push_and_load_from_a_clean_cache(hub: LoopbackHub, model: AimonkModel, tmp_path: Path):
    url = model.push_to_hub(REPO, commit_message="First version")
    repo = hub.repos["model", REPO]
    assert set(repo.files()) == {".gitattributes", "config.json", "model.safetensors", "README.md", "metrics.json"}
    assert repo.messages == ["initial commit", "First version"]
    assert url == f"{hub.url}/{REPO}/commit/{repo.branches['main']}"
    assert not repo.private
    loaded = AimonkModel.from_pretrained(REPO, cache_dir=tmp_path / "clean")
    assert torch.equal(_logits(loaded), _logits(model))
    assert loaded.config == model.config
    assert loaded.metrics == model.metrics
    assert not loaded.training
    assert (tmp_path / "clean" / "models--user--model").is_dir()


def test_an_unchanged_model_makes_no_commit(hub: LoopbackHub, model: AimonkModel, capsys, tmp_path: Path):
    first = model.push_to_hub(REPO)
    assert AimonkModel.from_pretrained(REPO).push_to_hub(REPO) == first
    assert len(hub.repos["model", REPO].messages) == 2
    model.save_pretrained(tmp_path / "model")
    assert main(["push", "--model", str(tmp_path / "model"), "--repo-id", REPO]) == 0
    assert f"unchanged: {first}" in capsys.readouterr().out
    assert len(hub.repos["model", REPO].messages) == 2


def test_a_changed_threshold_is_one_commit_without_uploading_the_weights_again(hub: LoopbackHub, model: AimonkModel):
    model.push_to_hub(REPO)
    hub.requests.clear()
    model.config.thresholds["belt"] = 0.25
    model.push_to_hub(REPO, commit_message="Lower threshold of belt")
    assert hub.repos["model", REPO].messages[2:] == ["Lower threshold of belt"]
    assert not [request for request in hub.requests if request[0] == "PUT"]
    assert AimonkModel.from_pretrained(REPO).config.thresholds["belt"] == 0.25


def test_the_card_names_the_repository_and_its_metadata_the_task(hub: LoopbackHub, model: AimonkModel):
    model.push_to_hub(REPO)
    card = hub.repos["model", REPO].files()["README.md"].decode()
    assert f'from_pretrained("{REPO}")' in card
    assert f"hf-hub:{REPO}" in card
    assert "PATH_OR_REPO" not in card
    info = huggingface_hub.HfApi().model_info(REPO)
    assert (info.pipeline_tag, info.library_name) == ("image-classification", "timm")


def test_the_card_is_valid_by_the_hubs_own_check(hub: LoopbackHub, model: AimonkModel, tmp_path: Path):
    model.save_pretrained(tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    card.validate(repo_type="model")
    assert card.data.eval_results is not None
    measured = {(result.metric_type, round(result.metric_value, 6)) for result in card.data.eval_results}
    assert ("f1", round(model.metrics["macro"]["f1"], 6)) in {
        (kind.removeprefix("macro_"), value) for kind, value in measured
    }


def test_a_folder_push_takes_only_the_model_s_files(hub: LoopbackHub, model: AimonkModel, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    model.save_pretrained(folder)
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    (folder / "preprocessor_config.json").write_text("{}")
    for name in (
        "history.csv",
        "split.csv",
        "loss_curve.png",
        "train_config.json",
        "scores.csv",
        "checkpoints/step-1/model.safetensors",
    ):
        (folder / name).write_text("private")
    assert main(["push", "--model", str(folder), "--repo-id", REPO, "--private"]) == 0
    assert f"pushed:    {hub.url}/{REPO}/commit/" in capsys.readouterr().out
    allowed = {
        "config.json",
        "model.safetensors",
        "README.md",
        "metrics.json",
        "onnx/model.onnx",
        "preprocessor_config.json",
    }
    assert set(hub.repos["model", REPO].files()) == {".gitattributes", *allowed}
    assert hub.repos["model", REPO].private


def test_other_weights_remove_what_was_true_of_the_old_ones(hub: LoopbackHub, model: AimonkModel, tmp_path: Path):
    folder = tmp_path / "run"
    model.save_pretrained(folder)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    push_model_folder(folder, REPO)
    model.push_to_hub(REPO)  # the same weights: the export stays
    assert "onnx/model.onnx" in hub.repos["model", REPO].files()
    make_model(1).push_to_hub(REPO)
    assert set(hub.repos["model", REPO].files()) == {".gitattributes", "config.json", "model.safetensors", "README.md"}


def test_an_export_of_other_weights_is_not_pushed(hub: LoopbackHub, model: AimonkModel, tmp_path: Path):
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "preprocessor_config.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(AimonkError, match="exported from other weights: run aimonk-hf export again"):
        push_model_folder(tmp_path / "run", REPO)
    assert not hub.repos


def test_branch_revision_and_pull_request(hub: LoopbackHub, model: AimonkModel):
    model.push_to_hub(REPO)
    first = hub.repos["model", REPO].branches["main"]
    other = make_model(1)
    other.push_to_hub(REPO, revision="v2")
    url = make_model(2).push_to_hub(REPO, create_pr=True, commit_message="Proposal")
    assert url == f"{hub.url}/{REPO}/discussions/1"
    assert hub.repos["model", REPO].branches["main"] == first
    assert torch.equal(_logits(AimonkModel.from_pretrained(REPO)), _logits(model))
    assert torch.equal(_logits(AimonkModel.from_pretrained(REPO, revision=first)), _logits(model))
    assert torch.equal(_logits(AimonkModel.from_pretrained(REPO, revision="v2")), _logits(other))
    assert torch.equal(_logits(AimonkModel.from_pretrained(REPO, revision="refs/pr/1")), _logits(make_model(2)))
    with pytest.raises(AimonkError, match="goes against the main branch"):
        other.push_to_hub(REPO, revision="v2", create_pr=True)
    with pytest.raises(AimonkError, match=f"{REPO} has no revision 'v9'"):
        AimonkModel.from_pretrained(REPO, revision="v9")


def test_private_repositories_and_tokens(hub: LoopbackHub, model: AimonkModel, tmp_path: Path, monkeypatch):
    model.push_to_hub(REPO, private=True)
    assert hub.repos["model", REPO].private
    assert torch.equal(_logits(AimonkModel.from_pretrained(REPO, token=WRITER)), _logits(model))
    clean = tmp_path / "clean"
    with pytest.raises(AimonkError, match=f"no Hub repository {REPO}; a private one needs a token"):
        AimonkModel.from_pretrained(REPO, token=READER, cache_dir=clean)
    with pytest.raises(AimonkError, match="does not accept the token; log in with `hf auth login`"):
        AimonkModel.from_pretrained(REPO, token="hf_wrong", cache_dir=clean)
    with pytest.raises(AimonkError, match="cannot push to user/new on the Hub: it does not accept the token"):
        model.push_to_hub("user/new", token="hf_wrong")
    with pytest.raises(AimonkError, match="the token may not do this with user/other"):
        model.push_to_hub("user/other", token=READER)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(AimonkError, match="log in with `hf auth login`"):
        model.push_to_hub("user/new")
    assert list(hub.repos) == [("model", REPO)]


def test_private_is_not_silently_public(hub: LoopbackHub, model: AimonkModel):
    model.push_to_hub(REPO)
    model.config.thresholds["belt"] = 0.1
    with pytest.raises(AimonkError, match="exists and is public: make it private in its settings"):
        model.push_to_hub(REPO, private=True)
    assert len(hub.repos["model", REPO].messages) == 2


def test_an_interrupted_upload_commits_nothing_and_can_be_repeated(hub: LoopbackHub, model: AimonkModel):
    hub.broken_uploads, hub.broken_status = 1, 403
    with pytest.raises(
        AimonkError, match=r"Error while uploading 'model.safetensors' to the Hub \(403 .*\); try again$"
    ) as failure:
        model.push_to_hub(REPO)
    assert "\n" not in str(failure.value)
    assert hub.repos["model", REPO].messages == ["initial commit"]
    with pytest.raises(AimonkError, match=r"user/model is no model: it has no config.json"):
        AimonkModel.from_pretrained(REPO)
    model.push_to_hub(REPO)
    assert torch.equal(_logits(AimonkModel.from_pretrained(REPO)), _logits(model))


def test_a_passing_disturbance_is_retried_by_itself(hub: LoopbackHub, model: AimonkModel, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.broken_uploads = 2
    model.push_to_hub(REPO)
    assert [request[0] for request in hub.requests].count("PUT") == 3
    assert torch.equal(_logits(AimonkModel.from_pretrained(REPO)), _logits(model))


def test_two_pushes_at_once_never_mix(hub: LoopbackHub, model: AimonkModel):
    model.push_to_hub(REPO)
    repo = hub.repos["model", REPO]
    hub.before_commit = lambda: repo.commit("main", repo.files() | {"config.json": b"{}"}, "somebody else") and None
    with pytest.raises(AimonkError, match="has got another commit meanwhile; try again"):
        make_model(1).push_to_hub(REPO)
    assert repo.messages[-1] == "somebody else"


def test_cached_copies_serve_without_the_hub(hub: LoopbackHub, model: AimonkModel, monkeypatch):
    model.push_to_hub(REPO)
    AimonkModel.from_pretrained(REPO)
    hub.requests.clear()
    assert torch.equal(_logits(AimonkModel.from_pretrained(REPO, local_files_only=True)), _logits(model))
    assert not hub.requests
    with pytest.raises(AimonkError, match="no complete copy of user/none; load it once without local_files_only"):
        AimonkModel.from_pretrained("user/none", local_files_only=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(_logits(AimonkModel.from_pretrained(REPO)), _logits(model))
    with pytest.raises(AimonkError, match="HF_HUB_OFFLINE is set, and the cache has no complete copy of user/none"):
        AimonkModel.from_pretrained("user/none")
    with pytest.raises(
        AimonkError, match="cannot push to user/model on the Hub: offline mode is on; unset HF_HUB_OFFLINE"
    ):
        model.push_to_hub(REPO)
    assert not hub.requests


def test_no_network_and_unknown_repository_are_one_line(hub: LoopbackHub, model: AimonkModel, monkeypatch, capsys):
    assert main(["predict", "x.jpg", "--model", "user/none"]) == 2
    unknown = "there is no folder and no Hub repository user/none; a private one needs a token (hf auth login)"
    assert capsys.readouterr().err == f"aimonk-hf: {unknown}\n"
    with pytest.raises(AimonkError, match=r"'a/b/c' is neither a folder nor a Hub repository \(user/name\)"):
        AimonkModel.from_pretrained("a/b/c")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        AimonkError, match=r"the Hub cannot be reached, and the cache has no complete copy of user/none; go online once"
    ):
        AimonkModel.from_pretrained("user/none")
    with pytest.raises(
        AimonkError, match=r"cannot push to user/model on the Hub: .*; check the connection and try again"
    ):
        model.push_to_hub(REPO)


def test_a_folder_that_is_no_model_is_not_pushed(hub: LoopbackHub, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["push", "--model", str(tmp_path / "empty"), "--repo-id", REPO]) == 2
    assert capsys.readouterr().err == f"aimonk-hf: {tmp_path / 'empty'} is no model: it has no config.json\n"
    assert not hub.requests


READERS = """
import json, sys
import timm, torch
from transformers import AutoModelForImageClassification, pipeline
from aimonk_hf import AimonkModel

repo, picture, pixels = sys.argv[1:]
ours = AimonkModel.from_pretrained(repo)
values = torch.load(pixels, weights_only=True)
network = timm.create_model("hf-hub:" + repo, pretrained=True).eval()
transformer = AutoModelForImageClassification.from_pretrained(repo).eval()
with torch.no_grad():
    logits = {"aimonk_hf": ours(values).logits, "timm": network(values), "transformers": transformer(values).logits}
scores = {row["label"]: row["score"] for row in pipeline(model=repo)(picture, top_k=1000)}
print(json.dumps({name: value.tolist() for name, value in logits.items()} | {"scores": scores}))
"""


def test_timm_and_transformers_load_by_repository_id(hub: LoopbackHub, model: AimonkModel, tmp_path: Path):
    model.push_to_hub(REPO)
    pictures = write_sample_data(tmp_path / "data", 1) / "images"
    picture = next(pictures.iterdir())
    values = _batch(model)
    torch.save(values, tmp_path / "pixels.pt")
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "clean"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", READERS, REPO, str(picture), str(tmp_path / "pixels.pt")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    expected = _logits(model)
    for reader in ("aimonk_hf", "timm", "transformers"):
        assert torch.allclose(torch.tensor(found[reader]), expected, atol=1e-5), reader
    assert found["scores"] == pytest.approx(model.predict(picture).scores, abs=1e-5)


def test_a_hub_repository_is_an_architecture(hub: LoopbackHub):
    source = AimonkModel.from_timm(
        "mobilenetv2_100", ["a"], pretrained=False, image_size=64, pad_type="same", drop_rate=0.3
    )
    source.push_to_hub(REPO)
    started = AimonkModel.from_timm(f"hf-hub:{REPO}", ATTRIBUTES)
    assert started.config.architecture == "mobilenetv2_100"
    assert started.config.model_args == {"pad_type": "same", "drop_rate": 0.3}
    assert started.transform.size == (64, 64)
    assert torch.equal(started.timm_model.conv_stem.weight, source.timm_model.conv_stem.weight)
    assert started.timm_model.get_classifier().out_features == len(ATTRIBUTES)
    random = AimonkModel.from_timm(f"hf-hub:{REPO}", ATTRIBUTES, pretrained=False)
    assert not torch.equal(random.timm_model.conv_stem.weight, source.timm_model.conv_stem.weight)
    with pytest.raises(AimonkError, match="no Hub repository user/other"):
        AimonkModel.from_timm("hf-hub:user/other", ATTRIBUTES)


def test_a_timm_name_takes_its_pretrained_weights_from_the_hub(hub: LoopbackHub):
    from timm.models import get_pretrained_cfg

    source = make_model(3)
    source.push_to_hub(REPO)
    hub.repos["model", get_pretrained_cfg("test_efficientnet").hf_hub_id] = hub.repos[
        "model", REPO
    ]  # ours may not push to timm's account
    started = AimonkModel.from_timm("test_efficientnet", ["a", "b"])
    assert torch.equal(started.timm_model.conv_stem.weight, source.timm_model.conv_stem.weight)
    assert started.timm_model.get_classifier().out_features == 2
