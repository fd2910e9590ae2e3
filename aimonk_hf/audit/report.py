"""Write an audit as text: audit.md, and its summary for the terminal."""

from collections.abc import Iterable, Iterator
from typing import Any

from aimonk_hf.console import figure
from aimonk_hf.data.agreement import describe_agreement
from aimonk_hf.data.label_checks import describe_copy, describe_pattern
from aimonk_hf.modeling.card import as_code, as_text

_MOST = 100
_MOST_SUSPECTS = 40
_FILE_KINDS = {
    "missing": "listed images are missing",
    "unreadable": "images cannot be read",
    "unlisted": "image files are not listed",
    "tiny": "images are tiny",
    "odd_mode": "images are not plain RGB",
    "misnamed": "files hold another format than their name says",
}
_PAIR_KINDS = {"exact": "byte-identical", "near": "nearly identical"}


def audit_markdown(findings: dict[str, Any]) -> str:
    """Return audit.md for the content of audit.json; a section without findings is left out."""
    lines = [f"# Audit of {as_text(findings['data']['labels'])}", "", *_bullets(map(as_text, summary(findings)))]
    for title, section in _SECTIONS.items():
        if body := list(section(findings)):
            lines += [f"## {title}", "", *body]
    return "\n".join(lines).rstrip() + "\n"


def summary(findings: dict[str, Any]) -> list[str]:
    """Return the findings that matter, one line each."""
    files, patterns = findings["files"], findings["missing_not_at_random"]
    lines = [f"{files['n_usable']} of {findings['data']['n_listed']} listed images can be used"]
    lines += [f"{len(files[kind])} {words}" for kind, words in _FILE_KINDS.items() if files[kind]]
    for kind, words in _PAIR_KINDS.items():
        found = findings["duplicates"][f"{kind}_summary"]
        if found["n_pairs"]:
            cases = f"in {found['n_conflicts']} of {found['n_shared_labels']} cases"
            rates = _percent(found["conflict_rate"]), _percent(found["rate_of_strangers"])
            told = f"{cases} ({rates[0]}; labels of two strangers would in {rates[1]})"
            lines.append(f"{found['n_pairs']} {words} pairs, whose labels conflict {told}")
    lines += [f"{name}: {reason}" for name, reason in findings["one_sided"].items()]
    lines += map(describe_copy, findings["copies"][:20])
    if patterns:
        told = f"{len(patterns)} dependences, the clearest {describe_pattern(patterns[0])}"
        lines.append(f"missing labels are not missing at random: {told}")
    if annotators := findings.get("agreement"):
        lines.append(describe_agreement(annotators))
    if leakage := findings.get("leakage"):
        lines.append(f"{len(leakage['pairs_across_parts'])} pairs of duplicates lie in different parts of the split")
        for part, one in leakage["twins"].items():
            if one["n_twins"]:
                told = f"{one['n_twins']} of {one['n_images']} {part} images"
                lines.append(f"{told} have a twin or an image of their group in training")
    if probed := findings.get("probe"):
        lines.append(f"probe: {probed['verdict']}")
    if curve := findings.get("learning_curve"):
        lines.append(f"learning curve: {learning_curve_line(curve)}")
    if compared := findings.get("backbones"):
        doubt = "" if compared.get("is_clear", True) else " (no evidence: an interval of the differences covers 0)"
        lines.append(f"best of {len(compared['rows'])} backbones by the probe: {compared['best']}{doubt}")
    if suspects := findings.get("suspects"):
        filled = f"{suspects['n_fillable']} of {suspects['n_missing']} missing ones could be filled"
        lines.append(f"{suspects['n_suspect']} suspect labels, {filled} ({suspects['source']})")
    return lines


def learning_curve_line(found: dict[str, Any]) -> str:
    """Return a learning curve in one sentence."""
    macro, kinds = found["macro"], [own["limited_by"] for own in found["per_attribute"].values()]
    if macro["limited_by"] == "unknown" and "gain" not in macro:
        return "the learning curve says nothing: too few labels of both kinds"
    low, high = macro["gain_ci95"]
    now = f"mAP {macro['average_precision'][-1]:.3f} of the probe with {found['numbers'][-1]} images"
    more = f"{found['more']} more would bring {macro['gain']:+.3f} ({low:+.3f} to {high:+.3f})"
    counts = f"clear on {kinds.count('number')} of {len(kinds)} attributes, flat on {kinds.count('flat')}"
    return f"{now}; {more}, {counts}"


def _files(findings: dict[str, Any]) -> Iterator[str]:
    for kind, words in _FILE_KINDS.items():
        if found := findings["files"][kind]:
            reasons = found if isinstance(found, dict) else dict.fromkeys(found, "")
            items = (f"{as_code(name)}: {as_text(why)}".removesuffix(": ") for name, why in reasons.items())
            yield from (f"### {len(found)} {words}", "", *_bullets(items))


def _duplicates(findings: dict[str, Any]) -> Iterator[str]:
    for kind, words in _PAIR_KINDS.items():
        if pairs := sorted(findings["duplicates"][kind], key=lambda pair: -len(pair["conflicts"])):
            rows = []
            for pair in pairs:
                conflicts = ", ".join(f"{name} {a} / {b}" for name, (a, b) in pair["conflicts"].items())
                images = ", ".join(map(as_code, pair["images"]))
                rows.append((images, f"{pair['correlation']:.3f}", as_text(conflicts) or "none"))
            yield from (f"### {len(pairs)} {words} pairs", "")
            yield from _table(("images", "agreement", "conflicting labels"), rows)


def _labels(findings: dict[str, Any]) -> Iterator[str]:
    n_listed = max(findings["data"]["n_listed"], 1)
    counts = findings["labels"].items()
    rows = [(as_text(name), *row.values(), f"{row['n_missing'] / n_listed:.1%}") for name, row in counts]
    yield from _table(("attribute", "positive", "negative", "NA", "NA rate"), rows)
    yield from (f"{findings['n_without_any_label']} images have no label at all.", "")
    told = [f"{as_code(name)}: {reason}" for name, reason in findings["one_sided"].items()]
    told += [
        as_text(f"{describe_copy(pair)} (phi {pair['phi']:.2f}, {pair['n_shared']} images)")
        for pair in findings["copies"]
    ]
    yield from _bullets(told)
    if patterns := findings["missing_not_at_random"]:
        yield from ("### Missing labels that depend on other labels", "")
        yield from _bullets(f"{as_text(describe_pattern(one))} (p {one['p_value']:.1e})" for one in patterns)


def _agreement(findings: dict[str, Any]) -> Iterator[str]:
    if annotators := findings.get("agreement"):
        yield from (f"{annotators['n_annotators']} annotators; {as_text(annotators['measure'])}.", "")
        rows = [
            (as_text(name), figure(row["alpha"]), *(row[key] for key in ("n_images", "n_unanimous", "n_ties")))
            for name, row in annotators["per_attribute"].items()
        ]
        yield from _table(("attribute", "alpha", "images with several votes", "all agree", "ties"), rows)


def _leakage(findings: dict[str, Any]) -> Iterator[str]:
    if leakage := findings.get("leakage"):
        yield from (f"{as_code(leakage['split'])}: {leakage['n_in_no_part']} images are in no part.", "")
        pairs = leakage["pairs_across_parts"]
        told = [f"{' and '.join(map(as_code, pair['images']))}: {as_text(', '.join(pair['parts']))}" for pair in pairs]
        yield from _bullets([*told, *(f"{as_code(name)} is in two parts" for name in leakage["in_two_parts"])])
        yield from _bullets(f"the group {as_code(name)} is in several parts" for name in leakage["groups_across_parts"])


def _probe(findings: dict[str, Any]) -> Iterator[str]:
    if probed := findings.get("probe"):
        yield from (f"**{as_text(probed['verdict'])}**", "", f"{as_text(probed['method'])}.", "")
        rows = [(as_text(name), *map(figure, row.values())) for name, row in probed["per_attribute"].items()]
        yield from _table(("attribute", "AUROC", "p"), rows)


def _suspects(findings: dict[str, Any]) -> Iterator[str]:
    if suspects := findings.get("suspects"):
        told = f"By {as_text(suspects['source'])}, over {suspects['n_scored']} images"
        yield from (f"{told}. All {suspects['n_suspect']} are in `suggestions.csv`.", "")
        rows = [
            (as_code(one["image"]), as_text(one["attribute"]), one["label"], f"{one['score']:.3f}")
            for one in suspects["labels"][:_MOST_SUSPECTS]
        ]
        yield from _table(("image", "attribute", "label", "score"), rows)


_SECTIONS = {
    "Files": _files,
    "Duplicates": _duplicates,
    "Labels": _labels,
    "Agreement of annotators": _agreement,
    "Split": _leakage,
    "Is there signal?": _probe,
    "Suspect labels": _suspects,
}


def _table(header: Iterable[str], rows: list[tuple[Any, ...]]) -> list[str]:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, *rows)]
    return [lines[0], "| --- " * len(list(header)) + "|", *lines[1:], ""] if rows else []


def _bullets(items: Iterable[str]) -> list[str]:
    lines = [f"- {item}" for item in items]
    more = [f"- and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return [*lines[:_MOST], *more, ""] if lines else []


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0%}"
