"""The Hub's fields of a model card: where they come from, what they survive, what the Hub would refuse."""

import json
import re
import shutil
from pathlib import Path

import pytest
from card_rules import card_errors
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub, Repo
from train_support import FLAGS, KillAfter, Killed, places, small, state_of, train_until

from aimonk_hf import AimonkModel, train
from aimonk_hf.cli.main import main
from aimonk_hf.data.imports import imported_from
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.card_fields import given_fields, read_fields
from aimonk_hf.modeling.hub import dataset_id
from aimonk_hf.training.checkpoints import save_checkpoint
from aimonk_hf.training.setup import build_model, load_earlier

OWN_TAGS = ["aimonk_hf", "multi-label-classification", "image-classification", "timm", "transformers", "safetensors"]


def head(readme: bytes | Path) -> dict:
    """Return the fields of a card that the Hub takes as it is."""
    text = readme.read_text() if isinstance(readme, Path) else readme.decode()
    assert card_errors("model", text) == []
    return ModelCard(text).data.to_dict()


def store(hub: LoopbackHub, kind: str, repo_id: str, folder: Path) -> None:
    repo = hub.repos[kind, repo_id] = Repo(private=False)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    repo.commit("main", {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, "files")


def test_a_run_from_the_hub_to_the_hub(hub: LoopbackHub, few: Path, tiny_model: AimonkModel, tmp_path: Path, capsys):
    store(hub, "dataset", "user/garments", few)
    tiny_model.push_to_hub("user/base")
    run, sharing = tmp_path / "run", "--private --license apache-2.0 --tags fashion,street"
    command = ["train", *places(Path("data"), run), *FLAGS, *f"--push-to-hub user/model {sharing}".split()]
    command[2] = "hf://datasets/user/garments"
    assert main([*command, "--architecture", "hf-hub:user/base", "--pretrained"]) == 0
    repo = hub.repos["model", "user/model"]
    assert repo.private
    card = head(repo.files()["README.md"])
    index, took, hardware = (card.pop(key) for key in ("model-index", "training_time", "hardware"))
    assert re.fullmatch(r"\d+ s|\d+ min", took)
    assert re.fullmatch(r"cpu \(.+, \d+ cores\) in float32", hardware)
    assert card == {
        "base_model": "user/base",
        "datasets": ["user/garments"],
        "library_name": "timm",
        "license": "apache-2.0",
        "metrics": ["f1", "roc_auc"],
        "pipeline_tag": "image-classification",
        "tags": [*OWN_TAGS, "fashion", "street"],
        "base_model_relation": "finetune",
    }
    (result,) = index[0]["results"]
    assert (result["task"]["type"], result["dataset"]["type"]) == ("image-classification", "user/garments")
    assert f"Training took {took} on {hardware}." in (run / "README.md").read_text()

    again = tmp_path / "again"  # another license, of a folder and of a repository; the rest stays
    AimonkModel.from_pretrained("user/model").save_pretrained(again)
    assert head(again / "README.md") == head(run / "README.md")
    for model, license, fields in (
        (str(again), "mit", {"license": "mit"}),
        ("user/model", "other:my-1.0", {"license": "other", "license_name": "my-1.0"}),
        ("user/model", "cc-by-4.0", {"license": "cc-by-4.0"}),
    ):
        assert main(["push", "--model", model, "--repo-id", "user/model", "--license", license, "--tags", "more"]) == 0
        found = head(repo.files()["README.md"])
        assert (found.pop("training_time"), found.pop("hardware")) == (took, hardware)
        assert found == card | fields | {"tags": [*card["tags"], "more"], "model-index": index}
    assert len(repo.messages) == 5, "each is a commit"
    assert main(["push", "--model", str(again), "--repo-id", "user/model", "--license", "mti"]) == 2
    assert "--license mti is not a license of the Hub (did you mean mit?)" in capsys.readouterr().err


def test_the_base_model_of_each_origin(hub: LoopbackHub, few: Path, tiny_model: AimonkModel, tmp_path: Path):
    attributes = tiny_model.config.attributes
    tiny_model.save_pretrained(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "timm")
    config = json.loads((tmp_path / "timm/config.json").read_text())
    config["pretrained_cfg"]["hf_hub_id"] = "timm/test_resnet.r160_in1k"
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    shutil.copytree(tmp_path / "timm", tmp_path / "odd")
    (tmp_path / "odd/config.json").write_text(json.dumps(config).replace("timm/test_resnet.r160_in1k", "../etc"))
    for repo_id in ("timm/test_resnet.r160_in1k", "user/base"):
        store(hub, "model", repo_id, tmp_path / "plain")
    for architecture, pretrained, wanted in (
        ("test_resnet", True, "timm/test_resnet.r160_in1k"),
        ("test_resnet", False, None),
        ("hf-hub:user/base", True, "user/base"),
        ("hf-hub:user/base", False, None),
        (f"local-dir:{tmp_path / 'plain'}", True, None),
        (f"local-dir:{tmp_path / 'timm'}", True, "timm/test_resnet.r160_in1k"),
        (f"local-dir:{tmp_path / 'timm'}", False, None),
        (f"local-dir:{tmp_path / 'odd'}", True, None),
    ):
        model = AimonkModel.from_timm(architecture, attributes, pretrained=pretrained)
        expected = {"base_model": wanted, "base_model_relation": "finetune"} if wanted else {}
        assert model.card == expected, architecture
    kept = AimonkModel.from_timm("hf-hub:user/base", attributes)
    kept.card |= {"license": "mit", "datasets": ["user/other"]}
    kept.save_pretrained(tmp_path / "kept")
    for origin, wanted in (("user/base", "user/base"), (tmp_path / "kept", "user/base"), (tmp_path / "plain", None)):
        config = small(few, tmp_path / "out", init_from=origin)
        model = build_model(config, attributes, load_earlier(config))
        assert model.card == ({"base_model": wanted, "base_model_relation": "finetune"} if wanted else {})


def test_the_dataset_of_an_import_is_named(few: Path, tmp_path: Path):
    data = shutil.copytree(few, tmp_path / "data")
    (data / "import.md").write_text("# Import of hf://datasets/user/table@v2\n\nFormat hub.\n")
    train(small(data, tmp_path / "out"))
    assert head(tmp_path / "out/README.md")["datasets"] == ["user/table"]
    for heading in ("# Import of /home/me/labels.csv", "# Import of hf://datasets/", "Something else", ""):
        (data / "import.md").write_text(heading)
        assert dataset_id(imported_from(str(data / "labels.csv"))) is None
    assert imported_from(str(tmp_path / "none.csv")) == ""
    assert dataset_id("hf://datasets/user/table@main/train") == "user/table"


def test_the_seconds_of_a_run_are_kept_over_a_resume(few: Path, tmp_path: Path):
    out = tmp_path / "out"
    train_until(3, small(few, out, epochs=2))
    saved = state_of(out)
    assert 0 < saved["seconds"] < 3600
    save_checkpoint(out / "checkpoints", saved["step"], saved | {"seconds": 7200.0})
    with pytest.raises(Killed):
        train(small(few, out, epochs=2, resume=True), callbacks=[KillAfter(0)])
    train(small(few, out, epochs=2, resume=True))
    assert "Training took 2 h " in (out / "README.md").read_text()


def test_a_checkpoint_of_an_earlier_version_is_resumed(few: Path, tmp_path: Path):
    train_until(3, small(few, tmp_path, epochs=2))
    saved = state_of(tmp_path)
    del saved["seconds"]
    save_checkpoint(tmp_path / "checkpoints", saved["step"], saved)
    assert train(small(few, tmp_path, epochs=2, resume=True)).metrics["training"]["epochs"] == 2


def test_every_license_of_the_hub_is_accepted_by_both_sides():
    from card_rules import LICENSES

    for license in LICENSES - {"other"}:
        assert given_fields(license, None)["license"] == license
    link = "https://example.org/license"
    fields = given_fields(f"other:my-license-1.0:{link}", ["a b"])
    assert fields == {"license": "other", "license_name": "my-license-1.0", "license_link": link, "tags": ["a b"]}


def test_a_card_that_the_hub_refuses_makes_no_commit(hub: LoopbackHub, folder: Path, capsys):
    push = ["push", "--model", str(folder), "--repo-id", "user/model"]
    card = (folder / "README.md").read_text()
    for line, reason in (
        ("license: made-up", '"license" with value "made-up" is not valid'),
        ("base_model: ../weights", '"base_model" with value "../weights" is not valid'),
        ("base_model: a/b\nbase_model_relation: child", '"base_model_relation" with value "child" is not valid'),
        ("datasets: [local folder]", '"datasets" with value'),
        ("metrics: [macro F1]", '"metrics" with value'),
        ("model-index: [{name: x, results: [{}]}]", '"model-index" is not valid'),
        ("license: [", "YAML Metadata Error"),
    ):
        (folder / "README.md").write_text(card.replace("---\n", f"---\n{line}\n", 1))
        assert main(push) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert "Cannot push to user/model on the Hub: Invalid metadata in README.md" in told
        assert reason in told
        assert hub.repos["model", "user/model"].messages == ["initial commit"]
    assert main([*push, "--license", "mit"]) == 2
    assert "README.md: its head is no YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (
            "---\nlicense: mit\ntags: one\ndatasets: a/b\n---\n",
            {"license": "mit", "tags": ["one"], "datasets": ["a/b"]},
        ),
        ("---\nlicense: 3\ntags: [1, 2]\nlanguage: [en]\n1: x\nmetrics: [f1]\n---\n", {}),
        ("---\nlibrary_name: other\ninference: false\nlanguage: [en]\n---\n", {"language": ["en"]}),
        ("---\n" + "[" * 5_000 + "\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\nlicense: mit\nlicense: &a [*a]\n---\n", {}),
        ("no head\n", {}),
        ("", {}),
    ],
)
def test_cards_from_anywhere_are_read_or_left_out(text: str, fields: dict, tmp_path: Path):
    (tmp_path / "README.md").write_text(text)
    assert read_fields(tmp_path / "README.md") == fields
    assert read_fields(tmp_path / "none.md") == {}


def test_a_folder_without_a_card_is_pushed_with_its_license(hub: LoopbackHub, tiny_model: AimonkModel, folder: Path):
    (folder / "README.md").unlink()
    assert main(["push", "--model", str(folder), "--repo-id", "user/model", "--license", "mit"]) == 0
    assert head(hub.repos["model", "user/model"].files()["README.md"]) == {"license": "mit"}
    with pytest.raises(AimonkError, match="is not a license of the Hub"):
        tiny_model.push_to_hub("user/model", license="gpl3")
