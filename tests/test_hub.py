"""Pushing to and loading from a Hub that runs in this process, through the real client over HTTP."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import READER, WRITER, LoopbackHub, Repo
from timm.models import get_pretrained_cfg

from aimonk_hf import AimonkConfig, AimonkModel, AimonkPredictor
from aimonk_hf.cli.main import main
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.report import build_report
from aimonk_hf.modeling.hub import push_model_folder
from aimonk_hf.modeling.onnx_export import export_folder

ATTRIBUTES = ["collar", "belt", "long sleeves"]
REPO = "user/model"
MODEL_FILES = {"config.json", "model.safetensors", "README.md"}


@pytest.fixture
def model() -> AimonkModel:
    """A model with figures."""
    model = make_model(0)
    labels = np.array([[1, 0, 1], [0, 1, np.nan], [1, 0, 0]], dtype=np.float32)
    scores = np.array([[0.9, 0.1, 0.6], [0.2, 0.8, 0.5], [0.7, 0.3, 0.2]])
    model.metrics = build_report(labels, scores, scores >= 0.5, ATTRIBUTES, dict.fromkeys(ATTRIBUTES, 0.5))
    return model


def make_model(seed: int) -> AimonkModel:
    torch.manual_seed(seed)
    model = AimonkModel.from_timm("test_efficientnet", ATTRIBUTES, pretrained=False).eval()
    model.config.thresholds = {"collar": 0.41, "belt": 0.5, "long sleeves": 0.7}
    return model


def pushed(hub: LoopbackHub) -> Repo:
    return hub.repos["model", REPO]


def batch(model: AimonkModel) -> torch.Tensor:
    return torch.randn(2, 3, *model.transform.size, generator=torch.Generator().manual_seed(1))


def logits(model: AimonkModel) -> torch.Tensor:
    with torch.no_grad():
        return model(batch(model)).logits


def same(model: AimonkModel, **options: object) -> bool:
    return torch.equal(logits(AimonkModel.from_pretrained(REPO, **options)), logits(model))


def test_push_and_load_from_a_clean_cache(hub: LoopbackHub, model: AimonkModel, tmp_path: Path):
    url = model.push_to_hub(REPO, commit_message="First version")
    repo = pushed(hub)
    assert set(repo.files()) == {".gitattributes", "metrics.json", *MODEL_FILES}
    assert repo.messages == ["initial commit", "First version"]
    assert url == f"{hub.url}/{REPO}/commit/{repo.branches['main']}"
    assert not repo.private
    loaded = AimonkModel.from_pretrained(REPO, cache_dir=tmp_path / "clean")
    assert torch.equal(logits(loaded), logits(model))
    assert (loaded.config, loaded.metrics, loaded.training) == (model.config, model.metrics, False)
    assert (tmp_path / "clean" / "models--user--model").is_dir()
    card = ModelCard(repo.files()["README.md"].decode())
    assert f'from_pretrained("{REPO}")' in card.text
    assert f"hf-hub:{REPO}" in card.text
    assert "PATH_OR_REPO" not in card.text
    card.validate(repo_type="model")
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-classification", "timm")
    measured = {(result.metric_type, round(result.metric_value, 4)) for result in card.data.eval_results}
    assert ("f1", round(model.metrics["macro"]["f1"], 4)) in measured


def test_saving_can_push_and_subfolders_load(hub: LoopbackHub, model: AimonkModel, tmp_path: Path):
    model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id=REPO, revision="v2", private=True)
    repo = pushed(hub)
    assert repo.private
    assert set(repo.files("v2")) >= MODEL_FILES
    repo.commit("main", {f"inner/{path}": content for path, content in repo.files("v2").items()}, "moved")
    assert same(model, subfolder="inner", force_download=True)
    config = AimonkConfig.from_pretrained(REPO, subfolder="inner")
    assert config.thresholds == model.config.thresholds
    with pytest.raises(AimonkError, match=f"{REPO} is not a model: it has no config.json"):
        AimonkModel.from_pretrained(REPO)


def test_an_unchanged_model_makes_no_commit_and_a_threshold_one_without_the_weights(
    hub: LoopbackHub, model: AimonkModel, capsys, tmp_path: Path
):
    first = model.push_to_hub(REPO)
    assert AimonkModel.from_pretrained(REPO).push_to_hub(REPO) == first
    model.save_pretrained(tmp_path / "model")
    assert main(["push", "--model", str(tmp_path / "model"), "--repo-id", REPO]) == 0
    assert f"unchanged: {first}" in capsys.readouterr().out
    assert len(pushed(hub).messages) == 2
    hub.requests.clear()
    model.config.thresholds["belt"] = 0.25
    model.push_to_hub(REPO, commit_message="Lower threshold of belt")
    assert pushed(hub).messages[2:] == ["Lower threshold of belt"]
    assert not [request for request in hub.requests if request[0] == "PUT"]
    assert AimonkModel.from_pretrained(REPO).config.thresholds["belt"] == 0.25


def test_a_folder_push_takes_only_the_model_s_files(hub: LoopbackHub, model: AimonkModel, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    model.save_pretrained(folder)
    fingerprint = json.loads((folder / "config.json").read_text())["weights_sha256"]
    private = "history.csv split.csv loss_curve.png train_config.json scores.csv checkpoints/step-1/model.safetensors"
    for name in (*private.split(), "onnx/model.onnx", "preprocessor_config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"weights": fingerprint}))
    assert main(["push", "--model", str(folder), "--repo-id", REPO, "--private"]) == 0
    assert f"pushed:    {hub.url}/{REPO}/commit/" in capsys.readouterr().out
    exported = {"metrics.json", "onnx/model.onnx", "preprocessor_config.json"}
    assert set(pushed(hub).files()) == {".gitattributes", *MODEL_FILES, *exported}
    assert pushed(hub).private
    model.push_to_hub(REPO)  # the same weights: the export stays
    assert "onnx/model.onnx" in pushed(hub).files()
    make_model(1).push_to_hub(REPO)
    assert set(pushed(hub).files()) == {".gitattributes", *MODEL_FILES}


def test_a_repository_predicts_by_onnxruntime_without_its_torch_weights(
    hub: LoopbackHub, model: AimonkModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "run")
    export_folder(model, tmp_path / "run")
    push_model_folder(tmp_path / "run", REPO)
    predictor = AimonkPredictor.from_pretrained(REPO, token=READER, cache_dir=tmp_path / "cache")
    image = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    assert (predictor.backend, predictor.thresholds) == ("onnx", model.config.thresholds)
    assert predictor.predict(image).scores == pytest.approx(model.predict(image).scores, abs=1e-4)
    assert not list((tmp_path / "cache").rglob("model.safetensors")), "nothing is downloaded that is not used"
    with pytest.raises(AimonkError, match="no-such"):
        AimonkPredictor.from_pretrained(REPO, revision="no-such", token=READER, cache_dir=tmp_path / "cache")


def test_revisions_and_pull_requests(hub: LoopbackHub, model: AimonkModel):
    model.push_to_hub(REPO)
    first, other = pushed(hub).branches["main"], make_model(1)
    other.push_to_hub(REPO, revision="v2")
    url = make_model(2).push_to_hub(REPO, create_pr=True, commit_message="Proposal")
    assert url == f"{hub.url}/{REPO}/discussions/1"
    assert pushed(hub).branches["main"] == first
    assert same(model)
    assert same(model, revision=first)
    assert same(other, revision="v2")
    assert same(make_model(2), revision="refs/pr/1")
    with pytest.raises(AimonkError, match="goes against the main branch"):
        other.push_to_hub(REPO, revision="v2", create_pr=True)
    with pytest.raises(AimonkError, match=f"{REPO} has no revision 'v9'"):
        AimonkModel.from_pretrained(REPO, revision="v9")


def test_private_repositories_and_tokens(hub: LoopbackHub, model: AimonkModel, tmp_path: Path, monkeypatch):
    model.push_to_hub(REPO, private=True)
    assert pushed(hub).private
    assert same(model, token=WRITER)
    clean = tmp_path / "clean"
    with pytest.raises(AimonkError, match=f"no Hub repository {REPO}; a private or gated one needs a token"):
        AimonkModel.from_pretrained(REPO, token=READER, cache_dir=clean)
    with pytest.raises(AimonkError, match="does not accept the token; log in with `hf auth login`"):
        AimonkModel.from_pretrained(REPO, token="hf_wrong", cache_dir=clean)
    with pytest.raises(AimonkError, match="Cannot push to user/new on the Hub: it does not accept the token"):
        model.push_to_hub("user/new", token="hf_wrong")
    with pytest.raises(AimonkError, match="the token may not do this with user/other"):
        model.push_to_hub("user/other", token=READER)
    model.push_to_hub("user/open")
    with pytest.raises(AimonkError, match="exists and is public: make it private in its settings"):
        model.push_to_hub("user/open", private=True)
    assert len(hub.repos["model", "user/open"].messages) == 2
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(AimonkError, match="log in with `hf auth login`"):
        model.push_to_hub("user/new")
    assert len(hub.repos) == 2


def test_an_interrupted_upload_commits_nothing_and_can_be_repeated(hub: LoopbackHub, model: AimonkModel, monkeypatch):
    hub.broken_uploads, hub.broken_status = 1, 403
    with pytest.raises(AimonkError, match="^Cannot push .* 403 .*; check the connection and try again$"):
        model.push_to_hub(REPO)
    assert pushed(hub).messages == ["initial commit"]
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.broken_uploads, hub.broken_status = 2, 500  # a passing disturbance is retried by itself
    model.push_to_hub(REPO)
    assert [request[0] for request in hub.requests].count("PUT") == 4
    assert same(model)


def test_two_pushes_at_once_never_mix(hub: LoopbackHub, model: AimonkModel):
    model.push_to_hub(REPO)
    repo = pushed(hub)
    hub.before_commit = lambda: repo.commit("main", repo.files() | {"config.json": b"{}"}, "somebody else") and None
    with pytest.raises(AimonkError, match="has got another commit meanwhile; try again"):
        make_model(1).push_to_hub(REPO)
    assert repo.messages[-1] == "somebody else"


def test_cached_copies_serve_without_the_hub(hub: LoopbackHub, model: AimonkModel, monkeypatch):
    model.push_to_hub(REPO)
    AimonkModel.from_pretrained(REPO)
    hub.requests.clear()
    assert same(model, local_files_only=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert same(model)
    with pytest.raises(AimonkError, match="no complete copy of user/none in the cache; the Hub was not reached"):
        AimonkModel.from_pretrained("user/none")
    with pytest.raises(AimonkError, match="Cannot push to user/model on the Hub: .*HF_HUB_OFFLINE"):
        model.push_to_hub(REPO)
    assert not hub.requests


def test_no_network_and_unknown_repository_are_one_line(hub: LoopbackHub, model: AimonkModel, monkeypatch, capsys):
    assert main(["predict", "x.jpg", "--model", "user/none"]) == 2
    unknown = "There is no folder and no Hub repository user/none; a private or gated one needs a token (hf auth login)"
    assert capsys.readouterr().err == f"aimonk-hf: {unknown}\n"
    with pytest.raises(AimonkError, match=r"'a/b/c' is neither a folder nor a Hub repository \(user/name\)"):
        AimonkModel.from_pretrained("a/b/c")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(AimonkError, match="no complete copy of user/none in the cache; the Hub was not reached"):
        AimonkModel.from_pretrained("user/none")
    with pytest.raises(AimonkError, match="Cannot push to user/model on the Hub: .*; check the connection and try"):
        model.push_to_hub(REPO)


READERS = """
import json, sys
import timm, torch
from transformers import AutoModelForImageClassification, pipeline
from aimonk_hf import AimonkModel

repo, image, pixels = sys.argv[1:]
ours = AimonkModel.from_pretrained(repo)
values = torch.load(pixels, weights_only=True)
network = timm.create_model("hf-hub:" + repo, pretrained=True).eval()
transformer = AutoModelForImageClassification.from_pretrained(repo).eval()
with torch.no_grad():
    logits = {"aimonk_hf": ours(values).logits, "timm": network(values), "transformers": transformer(values).logits}
scores = {row["label"]: row["score"] for row in pipeline(model=repo)(image, top_k=1000)}
print(json.dumps({name: value.tolist() for name, value in logits.items()} | {"scores": scores}))
"""


def test_timm_and_transformers_load_by_repository_id(hub: LoopbackHub, model: AimonkModel, tmp_path: Path):
    model.push_to_hub(REPO)
    image = next((write_sample_data(tmp_path / "data", 1) / "images").iterdir())
    torch.save(batch(model), tmp_path / "pixels.pt")
    environment = os.environ | {
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "clean")},
        **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"},
    }
    command = [sys.executable, "-c", READERS, REPO, str(image), str(tmp_path / "pixels.pt")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    for reader in ("aimonk_hf", "timm", "transformers"):
        assert torch.allclose(torch.tensor(found[reader]), logits(model), atol=1e-5), reader
    assert found["scores"] == pytest.approx(model.predict(image).scores, abs=1e-5)


def test_repositories_and_timm_names_are_architectures(hub: LoopbackHub):
    source = AimonkModel.from_timm("mobilenetv2_100", ["a"], pretrained=False, image_size=64, drop_rate=0.3)
    source.push_to_hub(REPO)
    timms = get_pretrained_cfg("mobilenetv2_100").hf_hub_id
    hub.repos["model", timms] = pushed(hub)  # nobody may push to timm's account
    by_repo = AimonkModel.from_timm(f"hf-hub:{REPO}", ATTRIBUTES)
    assert (by_repo.config.architecture, by_repo.config.model_args) == ("mobilenetv2_100", {"drop_rate": 0.3})
    assert by_repo.transform.size == (64, 64)
    for started in (by_repo, AimonkModel.from_timm("mobilenetv2_100", ATTRIBUTES)):
        assert torch.equal(started.timm_model.conv_stem.weight, source.timm_model.conv_stem.weight)
        assert started.timm_model.get_classifier().out_features == len(ATTRIBUTES)
    random = AimonkModel.from_timm(f"hf-hub:{REPO}", ATTRIBUTES, pretrained=False)
    assert not torch.equal(random.timm_model.conv_stem.weight, source.timm_model.conv_stem.weight)
    with pytest.raises(AimonkError, match="no Hub repository user/other"):
        AimonkModel.from_timm("hf-hub:user/other", ATTRIBUTES)
