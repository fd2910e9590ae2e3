"""What the Hub refuses in the head of a README.md, by its documentation (hub-docs, modelcard.md and docs/hub)."""

import re

import yaml

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other
"""
LICENSES = set(_LICENSES.split())
# of hf.co/metrics, as far as they are of classification
METRICS = {"accuracy", "brier_score", "exact_match", "f1", "matthews_correlation", "precision", "recall", "roc_auc"}
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
REPO_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
LISTS = ("tags", "metrics", "datasets", "models", "preload_from_hub")


def card_errors(kind: str, content: str) -> list[str]:
    """Return the Hub's messages on a README.md of a repository of this kind."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.S)
    if match is None:
        return []  # a card without a head gets a warning only
    try:
        card = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"]
    if not isinstance(card, dict):
        return ["YAML Metadata Error: metadata must be an object"]
    errors = [f'"{key}" must be an array' for key in LISTS if not isinstance(card.get(key, []), list)]
    if errors:
        return errors

    def check(key: str, fits: object, told: str) -> None:
        if key in card and not fits:
            errors.append(f'"{key}" with value "{card[key]}" is not valid. {told}')

    def ids(key: str, pattern: str = REPO_ID) -> bool:
        values = card.get(key) if isinstance(card.get(key), list) else [card.get(key)]
        return all(isinstance(one, str) and re.fullmatch(pattern, one, re.ASCII) for one in values)

    check("tags", all(isinstance(tag, str) and tag for tag in card.get("tags", [])), "Tags are strings.")
    check("license", card.get("license") in LICENSES, "Use one of the licenses that the Hub knows.")
    other = card.get("license") == "other"
    check("license", not other or "license_name" in card, "Set a name for it in license_name.")
    check("license_name", other and ids("license_name", r"[a-z0-9][a-z0-9.+-]*"), "Use an id like my-license-1.0.")
    check("license_link", other and ids("license_link", r"LICENSE(\.md)?|https?://\S+"), "Use LICENSE or a URL.")
    check("datasets", ids("datasets"), "Use a dataset id from https://hf.co/datasets.")
    if kind == "model":
        check("base_model", ids("base_model"), "Use a model id from https://hf.co/models.")
        check("base_model_relation", card.get("base_model_relation") in RELATIONS, f"Use one of {RELATIONS}.")
        check("metrics", set(card.get("metrics", [])) <= METRICS, "Use a metric id from https://hf.co/metrics.")
        check("pipeline_tag", card.get("pipeline_tag") == "image-classification", "Use a task of the Hub.")
        errors += index_errors(card.get("model-index", []))
    if kind == "space":
        check("colorFrom", card.get("colorFrom") in COLOURS, f"Use one of {COLOURS}.")
        check("colorTo", card.get("colorTo") in COLOURS, f"Use one of {COLOURS}.")
        check("sdk", card.get("sdk") in ("gradio", "docker", "static"), "Use an sdk.")
        check("python_version", ids("python_version", r"3\.\d+(\.\d+)?"), "Use 3.x or 3.x.x.")
        check("short_description", len(str(card.get("short_description"))) <= 60, "At most 60 characters.")
        check("models", ids("models"), "Use a model id from https://hf.co/models.")
        preload = REPO_ID + r"( [^ ,]+(,[^ ,]+)*)?( [0-9a-f]{40})?"
        check("preload_from_hub", ids("preload_from_hub", preload), "See docs.")
        errors += [f'"{key}" is required' for key in ("sdk", "emoji", "colorFrom", "colorTo") if key not in card]
    return errors


def index_errors(index: object) -> list[str]:
    """Return the messages on a model-index."""
    try:
        for model in index:
            assert isinstance(model["name"], str), "name"
            for result in model["results"]:
                texts = [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
                texts += [metric["type"] for metric in result["metrics"]]
                assert all(isinstance(text, str) and text for text in texts), "types and names are strings"
                assert result["metrics"], "metrics"
                assert all(isinstance(metric["value"], int | float | str) for metric in result["metrics"]), "value"
    except (AssertionError, KeyError, TypeError) as error:
        return [f'"model-index" is not valid: {error}']
    return []
