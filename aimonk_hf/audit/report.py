"""An audit as text: audit.md, and the same lines for the terminal."""

from typing import Any

from aimonk_hf.modeling.card import as_code, as_text

_MOST = 20


def audit_markdown(findings: dict[str, Any]) -> str:
    """Return audit.md for the content of audit.json."""
    data = findings["data"]
    lines = [f"# Audit of {as_text(data['labels'])}", "", *(f"- {as_text(line)}" for line in summary(findings)), ""]
    lines += _files(findings["files"]) + _duplicates(findings["duplicates"]) + _labels(findings)
    for section in (_leakage, _probe, _suspects):
        lines += section(findings)
    return "\n".join(lines).rstrip() + "\n"


def summary(findings: dict[str, Any]) -> list[str]:
    """Return the findings that matter, one line each."""
    files, duplicates = findings["files"], findings["duplicates"]
    lines = [f"{files['n_usable']} of {findings['data']['n_listed']} listed images can be used"]
    lines += [f"{len(files[kind])} {words}" for kind, words in _FILE_KINDS.items() if files[kind]]
    for kind, words in (("exact", "byte-identical"), ("near", "nearly identical")):
        of_kind = duplicates[f"{kind}_summary"]
        if of_kind["n_pairs"]:
            lines.append(
                f"{of_kind['n_pairs']} {words} pairs, whose labels conflict in {of_kind['n_conflicts']} of {of_kind['n_shared_labels']} cases "
                f"({_percent(of_kind['conflict_rate'])}; labels of two strangers would in {_percent(of_kind['rate_of_strangers'])})"
            )
    lines += [f"{name}: {reason}" for name, reason in findings["one_sided"].items()]
    lines += [
        f"{' and '.join(pair['attributes'])} are nearly {_relation(pair['phi'])}" for pair in findings["copies"][:_MOST]
    ]
    patterns = findings["missing_not_at_random"]
    if patterns:
        lines.append(
            f"missing labels are not missing at random: {len(patterns)} dependences, the clearest {_pattern(patterns[0])}"
        )
    if leakage := findings.get("leakage"):
        lines.append(f"{len(leakage['pairs_across_parts'])} pairs of duplicates lie in different parts of the split")
    if probed := findings.get("probe"):
        lines.append(f"probe: {probed['verdict']}")
    if suspects := findings.get("suspects"):
        lines.append(
            f"{suspects['n_suspect']} suspect labels, {suspects['n_fillable']} of {suspects['n_missing']} missing ones could be filled "
            f"({suspects['source']})"
        )
    return lines


_FILE_KINDS = {
    "missing": "listed images are missing",
    "unreadable": "images cannot be read",
    "unlisted": "image files are not listed",
    "tiny": "images are tiny",
    "odd_mode": "images are not plain RGB",
    "misnamed": "files hold another format than their name says",
}


def _files(files: dict[str, Any]) -> list[str]:
    lines = ["## Files", ""]
    for kind, words in _FILE_KINDS.items():
        found = files[kind]
        if not found:
            continue
        lines.append(f"### {len(found)} {words}")
        lines.append("")
        items = (
            [f"{as_code(name)}: {as_text(reason)}" for name, reason in found.items()]
            if isinstance(found, dict)
            else [as_code(name) for name in found]
        )
        lines += _bullets(items)
    return (
        lines
        if len(lines) > 2
        else [*lines, "Every listed image is there and plain, and no other lies beside them.", ""]
    )


def _duplicates(duplicates: dict[str, Any]) -> list[str]:
    lines = ["## Duplicates", ""]
    for kind, words in (
        ("exact", "Byte-identical"),
        ("near", "Nearly identical (thumbnails agree; details such as a print may differ)"),
    ):
        pairs = duplicates[kind]
        if not pairs:
            continue
        lines += [
            f"### {words}: {len(pairs)} pairs",
            "",
            "| images | agreement | conflicting labels |",
            "| --- | ---: | --- |",
        ]
        for pair in sorted(pairs, key=lambda pair: -len(pair["conflicts"])):
            told = ", ".join(f"{name} {first} / {second}" for name, (first, second) in pair["conflicts"].items())
            names = ", ".join(as_code(name) for name in pair["images"])
            lines.append(f"| {names} | {pair['correlation']:.3f} | {as_text(told) or 'none'} |")
        lines.append("")
    return lines if len(lines) > 2 else [*lines, "None.", ""]


def _labels(findings: dict[str, Any]) -> list[str]:
    lines = [
        "## Labels",
        "",
        "| attribute | positive | negative | NA | NA rate |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in findings["labels"].items():
        rate = row["n_missing"] / max(findings["data"]["n_listed"], 1)
        lines.append(
            f"| {as_text(name)} | {row['n_positive']} | {row['n_negative']} | {row['n_missing']} | {rate:.1%} |"
        )
    lines += ["", f"{findings['n_without_any_label']} images have no label at all.", ""]
    items = [f"{as_code(name)}: {reason}" for name, reason in findings["one_sided"].items()]
    items += [
        f"{as_code(pair['attributes'][0])} and {as_code(pair['attributes'][1])} are nearly {_relation(pair['phi'])} "
        f"(phi {pair['phi']:.2f} over {pair['n_shared']} images)"
        for pair in findings["copies"]
    ]
    lines += _bullets(items)
    if patterns := findings["missing_not_at_random"]:
        lines += ["### Missing labels that depend on other labels", ""]
        lines += _bullets([f"{as_text(_pattern(one))} (p {one['p_value']:.1e})" for one in patterns])
    return lines


def _leakage(findings: dict[str, Any]) -> list[str]:
    if "leakage" not in findings:
        return []
    leakage = findings["leakage"]
    lines = ["## Split", "", f"{as_code(leakage['split'])}: {leakage['n_in_no_part']} images stand in no part.", ""]
    items = [
        f"{' and '.join(map(as_code, pair['images']))} ({pair['kind']}): {' and '.join(map(as_text, pair['parts']))}"
        for pair in leakage["pairs_across_parts"]
    ]
    items += [f"{as_code(name)} stands in two parts" for name in leakage["in_two_parts"]]
    return lines + (_bullets(items) if items else ["No duplicates lie in different parts.", ""])


def _probe(findings: dict[str, Any]) -> list[str]:
    if "probe" not in findings:
        return []
    probed = findings["probe"]
    lines = ["## Is there signal?", "", f"**{as_text(probed['verdict'])}**", "", f"{as_text(probed['method'])}.", ""]
    lines += ["| attribute | AUROC | p |", "| --- | ---: | ---: |"]
    for name, row in probed["per_attribute"].items():
        told = ["n/a" if row[key] is None else f"{row[key]:.3f}" for key in ("auroc", "p_value")]
        lines.append(f"| {as_text(name)} | {told[0]} | {told[1]} |")
    return [*lines, ""]


def _suspects(findings: dict[str, Any]) -> list[str]:
    if "suspects" not in findings:
        return []
    suspects = findings["suspects"]
    lines = [
        "## Suspect labels",
        "",
        f"By {as_text(suspects['source'])}, over {suspects['n_scored']} images. All of them stand in `suggestions.csv`.",
        "",
    ]
    shown = suspects["labels"][: 2 * _MOST]
    if shown:
        lines += ["| image | attribute | label | score |", "| --- | --- | ---: | ---: |"]
        lines += [
            f"| {as_code(one['image'])} | {as_text(one['attribute'])} | {one['label']} | {one['score']:.3f} |"
            for one in shown
        ]
    if len(suspects["labels"]) > len(shown):
        lines += ["", f"and {len(suspects['labels']) - len(shown)} more."]
    return [
        *lines,
        "",
        f"{suspects['n_fillable']} of {suspects['n_missing']} missing labels could be filled with confidence.",
        "",
    ]


def _bullets(items: list[str]) -> list[str]:
    shown = [f"- {item}" for item in items[: 5 * _MOST]]
    if len(items) > len(shown):
        shown.append(f"- and {len(items) - len(shown)} more")
    return [*shown, ""] if shown else []


def _pattern(one: dict[str, Any]) -> str:
    return (
        f"{one['attribute']} is missing in {one['na_rate_where_1']:.0%} of the images with {one['other']} "
        f"and in {one['na_rate_where_0']:.0%} of those without"
    )


def _relation(phi: float) -> str:
    return "copies of each other" if phi > 0 else "opposites of each other"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0%}"
