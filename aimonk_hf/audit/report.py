"""Write an audit as text: audit.md, and its summary for the terminal."""

from typing import Any

from aimonk_hf.modeling.card import as_code, as_text

_MOST = 20
_FILE_KINDS = {
    "missing": "listed images are missing",
    "unreadable": "images cannot be read",
    "unlisted": "image files are not listed",
    "tiny": "images are tiny",
    "odd_mode": "images are not plain RGB",
    "misnamed": "files hold another format than their name says",
}
_PAIR_KINDS = {
    "exact": ("byte-identical", "Byte-identical"),
    "near": ("nearly identical", "Nearly identical (thumbnails agree; details such as a print may differ)"),
}


def audit_markdown(findings: dict[str, Any]) -> str:
    """Return audit.md for the content of audit.json."""
    lines = [f"# Audit of {as_text(findings['data']['labels'])}", "", *_bullets(map(as_text, summary(findings)))]
    for section in (_files, _duplicates, _labels, _leakage, _probe, _suspects):
        lines += section(findings)
    return "\n".join(lines).rstrip() + "\n"


def summary(findings: dict[str, Any]) -> list[str]:
    """Return the findings that matter, one line each."""
    files, duplicates, patterns = findings["files"], findings["duplicates"], findings["missing_not_at_random"]
    lines = [f"{files['n_usable']} of {findings['data']['n_listed']} listed images can be used"]
    lines += [f"{len(files[kind])} {words}" for kind, words in _FILE_KINDS.items() if files[kind]]
    for kind, (words, _) in _PAIR_KINDS.items():
        found = duplicates[f"{kind}_summary"]
        if found["n_pairs"]:
            lines.append(
                f"{found['n_pairs']} {words} pairs, whose labels conflict in {found['n_conflicts']} of "
                f"{found['n_shared_labels']} cases ({_percent(found['conflict_rate'])}; labels of two strangers would "
                f"in {_percent(found['rate_of_strangers'])})"
            )
    lines += [f"{name}: {reason}" for name, reason in findings["one_sided"].items()]
    lines += [
        f"{' and '.join(pair['attributes'])} are nearly {_relation(pair['phi'])}" for pair in findings["copies"][:_MOST]
    ]
    if patterns:
        told = f"{len(patterns)} dependences, the clearest {_pattern(patterns[0])}"
        lines.append(f"missing labels are not missing at random: {told}")
    if leakage := findings.get("leakage"):
        lines.append(f"{len(leakage['pairs_across_parts'])} pairs of duplicates lie in different parts of the split")
    if probed := findings.get("probe"):
        lines.append(f"probe: {probed['verdict']}")
    if suspects := findings.get("suspects"):
        lines.append(f"{suspects['n_suspect']} suspect labels, {_fillable(suspects)} ({suspects['source']})")
    return lines


def _files(findings: dict[str, Any]) -> list[str]:
    lines = []
    for kind, words in _FILE_KINDS.items():
        if found := findings["files"][kind]:
            reasons = found if isinstance(found, dict) else dict.fromkeys(found, "")
            items = (f"{as_code(name)}: {as_text(why)}".removesuffix(": ") for name, why in reasons.items())
            lines += [f"### {len(found)} {words}", "", *_bullets(items)]
    return ["## Files", "", *(lines or ["Every listed image is there and plain, and all image files are listed.", ""])]


def _duplicates(findings: dict[str, Any]) -> list[str]:
    lines = []
    for kind, (_, words) in _PAIR_KINDS.items():
        pairs = sorted(findings["duplicates"][kind], key=lambda pair: -len(pair["conflicts"]))
        rows = [
            (
                ", ".join(map(as_code, pair["images"])),
                f"{pair['correlation']:.3f}",
                as_text(", ".join(f"{name} {a} / {b}" for name, (a, b) in pair["conflicts"].items())) or "none",
            )
            for pair in pairs
        ]
        if rows:
            header = "| images | agreement | conflicting labels |\n| --- | ---: | --- |"
            lines += [f"### {words}: {len(pairs)} pairs", "", *_table(header, rows)]
    return ["## Duplicates", "", *(lines or ["None.", ""])]


def _labels(findings: dict[str, Any]) -> list[str]:
    header = "| attribute | positive | negative | NA | NA rate |\n| --- | ---: | ---: | ---: | ---: |"
    n_listed = max(findings["data"]["n_listed"], 1)
    rows = [
        (as_text(name), *row.values(), f"{row['n_missing'] / n_listed:.1%}") for name, row in findings["labels"].items()
    ]
    items = [f"{as_code(name)}: {reason}" for name, reason in findings["one_sided"].items()]
    items += [
        f"{' and '.join(map(as_code, pair['attributes']))} are nearly {_relation(pair['phi'])} "
        f"(phi {pair['phi']:.2f} over {pair['n_shared']} images)"
        for pair in findings["copies"]
    ]
    lines = ["## Labels", "", *_table(header, rows)]
    lines += [f"{findings['n_without_any_label']} images have no label at all.", "", *_bullets(items)]
    if patterns := findings["missing_not_at_random"]:
        told = (f"{as_text(_pattern(one))} (p {one['p_value']:.1e})" for one in patterns)
        lines += ["### Missing labels that depend on other labels", "", *_bullets(told)]
    return lines


def _leakage(findings: dict[str, Any]) -> list[str]:
    if not (leakage := findings.get("leakage")):
        return []
    items = [
        f"{' and '.join(map(as_code, pair['images']))} ({pair['kind']}): {' and '.join(map(as_text, pair['parts']))}"
        for pair in leakage["pairs_across_parts"]
    ]
    items += [f"{as_code(name)} is in two parts" for name in leakage["in_two_parts"]]
    lines = ["## Split", "", f"{as_code(leakage['split'])}: {leakage['n_in_no_part']} images are in no part.", ""]
    return [*lines, *(_bullets(items) or ["No duplicates are in different parts.", ""])]


def _probe(findings: dict[str, Any]) -> list[str]:
    if not (probed := findings.get("probe")):
        return []
    rows = [
        (as_text(name), *("n/a" if value is None else f"{value:.3f}" for value in row.values()))
        for name, row in probed["per_attribute"].items()
    ]
    lines = ["## Is there signal?", "", f"**{as_text(probed['verdict'])}**", "", f"{as_text(probed['method'])}.", ""]
    return [*lines, *_table("| attribute | AUROC | p |\n| --- | ---: | ---: |", rows)]


def _suspects(findings: dict[str, Any]) -> list[str]:
    if not (suspects := findings.get("suspects")):
        return []
    rows = [
        (as_code(one["image"]), as_text(one["attribute"]), one["label"], f"{one['score']:.3f}")
        for one in suspects["labels"]
    ]
    told = f"By {as_text(suspects['source'])}, over {suspects['n_scored']} images. All are in `suggestions.csv`."
    lines = ["## Suspect labels", "", told, ""]
    if rows:
        lines += _table("| image | attribute | label | score |\n| --- | --- | ---: | ---: |", rows[: 2 * _MOST])
    if len(rows) > 2 * _MOST:
        lines += [f"and {len(rows) - 2 * _MOST} more.", ""]
    return [*lines, f"{_fillable(suspects)} with confidence.", ""]


def _table(header: str, rows: list[tuple[Any, ...]]) -> list[str]:
    return [header, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def _bullets(items: Any) -> list[str]:
    lines = [f"- {item}" for item in items]
    more = [f"- and {len(lines) - 5 * _MOST} more"] if len(lines) > 5 * _MOST else []
    return [*lines[: 5 * _MOST], *more, ""] if lines else []


def _fillable(suspects: dict[str, Any]) -> str:
    return f"{suspects['n_fillable']} of {suspects['n_missing']} missing ones could be filled"


def _pattern(one: dict[str, Any]) -> str:
    return (
        f"{one['attribute']} is missing in {one['na_rate_where_1']:.0%} of the images with {one['other']} "
        f"and in {one['na_rate_where_0']:.0%} of those without"
    )


def _relation(phi: float) -> str:
    return "copies of each other" if phi > 0 else "opposites of each other"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0%}"
