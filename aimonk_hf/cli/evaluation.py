"""The commands that judge a model or a data folder: evaluate, tune, audit."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimonk_hf.errors import AimonkError

if TYPE_CHECKING:
    from aimonk_hf.audit.checks import Audit
    from aimonk_hf.data.dataset import AttributeDataset

Run = Callable[[argparse.Namespace], int]


def add_judging_commands(command: Callable[[str, Run, str], argparse.ArgumentParser]) -> None:
    """Add the commands; `command` makes the parser of a name, a function and a help text."""
    evaluate = command("evaluate", _evaluate, "judge a model on labelled images, beside the trivial predictors")
    evaluate.add_argument("--model", required=True, help="model folder or Hub repository")
    _add_data_flags(evaluate)
    evaluate.add_argument("--output", type=Path, metavar="DIR", help="write metrics.json and plots there")
    evaluate.add_argument(
        "--part", choices=("train", "validation", "report"), help="only the images of that part of MODEL/split.csv"
    )

    tune = command("tune", _tune, "tune the thresholds of a finished model on labelled images, and save them")
    tune.add_argument(
        "--model", required=True, help="model folder, whose config.json, metrics.json and card are rewritten"
    )
    _add_data_flags(tune)
    tune.add_argument(
        "--objective", default="f1", help="f1, youden, or precision=0.9: the highest recall at that precision (f1)"
    )
    tune.add_argument("--output", type=Path, metavar="DIR", help="save the model there instead of in its own folder")
    tune.add_argument(
        "--part", choices=("train", "validation", "report"), help="only the images of that part of MODEL/split.csv"
    )

    audit = command("audit", _audit, "say what is wrong with a data folder, and whether its labels carry any signal")
    _add_data_flags(audit)
    audit.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write audit.md, audit.json, a contact sheet and suggestions.csv there",
    )
    audit.add_argument(
        "--probe", action="store_true", help="test for signal: a linear probe on the features of a frozen backbone"
    )
    audit.add_argument(
        "--architecture",
        default="mobilenetv2_100",
        help="the probe's backbone: timm name, hf-hub:user/repo, local-dir:PATH",
    )
    audit.add_argument(
        "--model", help="model whose scores find suspect labels; images that it was trained on are left out"
    )
    audit.add_argument(
        "--scores",
        type=Path,
        metavar="CSV",
        help="out-of-fold scores (image, one column per attribute) that find suspect labels",
    )
    audit.add_argument(
        "--split", type=Path, metavar="CSV", help="split.csv of a run: are there duplicates in different parts?"
    )
    audit.add_argument(
        "--accept",
        type=Path,
        metavar="CSV",
        help="suggestions.csv with yes in `accept`: write OUTPUT/labels.csv with these changes",
    )


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--labels", help="label file other than labels.csv or labels.txt")
    parser.add_argument("--images-dir", help="where the images lie, if not in images/")
    parser.add_argument("--attributes", type=_names, metavar="A,B,C", help="names of the columns of a labels.txt")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _read_data(options: argparse.Namespace) -> "AttributeDataset":
    from aimonk_hf.data.dataset import AttributeDataset

    return AttributeDataset.from_folder(options.data_dir, options.labels, options.images_dir, options.attributes)


def _evaluate(options: argparse.Namespace) -> int:
    from aimonk_hf.evaluation.report import judge_dataset
    from aimonk_hf.evaluation.report_table import metrics_table
    from aimonk_hf.evaluation.split_file import choose_part, seen_before
    from aimonk_hf.modeling.model import AimonkModel
    from aimonk_hf.storage import make_folder, write_json

    dataset = choose_part(_read_data(options), options.model, options.part)
    model = AimonkModel.from_pretrained(options.model)
    judged = judge_dataset(model, dataset, progress=True, seen=seen_before(options.model, dataset))
    print(metrics_table(judged.report))
    if options.output:
        from aimonk_hf.evaluation.plots import write_report_plots

        write_json(make_folder(options.output) / "metrics.json", judged.report)
        written = write_report_plots(judged, model.config.thresholds, options.output)
        print(f"written:  {', '.join(str(path) for path in [options.output / 'metrics.json', *written])}")
    return 0


def _tune(options: argparse.Namespace) -> int:
    from aimonk_hf.evaluation.report_table import metrics_table, thresholds_table
    from aimonk_hf.evaluation.split_file import choose_part, record_tuning
    from aimonk_hf.evaluation.tuning import choose_and_judge
    from aimonk_hf.modeling.model import AimonkModel

    if not options.output and not Path(options.model).is_dir():
        raise AimonkError(f"{options.model} is no folder: say with --output where the tuned model goes")
    dataset = choose_part(_read_data(options), options.model, options.part)
    model = AimonkModel.from_pretrained(options.model)
    dataset = dataset.match(model.config.attributes)
    problems = dataset.find_problems(progress=True)
    before, earlier = dict(model.config.thresholds), model.metrics or {}
    usable = dataset.select(row for row in range(len(dataset)) if row not in problems)
    if not len(usable):
        raise AimonkError(f"none of the {len(dataset)} images in {dataset.images_dir} can be read")
    usable.labels.check_observed("images that can be read")
    report = choose_and_judge(model, usable, usable.select([]), calibration=False, objective=options.objective)
    report["measured_on"]["images"] = "the images that `aimonk-hf tune` was given"
    model.metrics = report | {key: earlier[key] for key in ("training", "calibration") if key in earlier}
    folder = options.output or Path(options.model)
    model.save_pretrained(folder)
    record_tuning(options.model, folder, usable)
    print(thresholds_table(report, before))
    print(metrics_table(report))
    print(f"saved:    {folder}")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from aimonk_hf.audit.checks import audit
    from aimonk_hf.audit.report import summary

    dataset = _read_data(options)
    if options.accept:
        return _accept(options, dataset)
    if options.model and options.scores:
        raise AimonkError("--model and --scores both name scores: give one of them")
    audited = audit(dataset, options.split, progress=True)
    if options.probe or options.model or options.scores:
        _add_scores(audited, options)
    for line in summary(audited.findings):
        print(line)
    if options.output:
        _write_audit(audited, options.output)
    return 0


def _add_scores(audited: "Audit", options: argparse.Namespace) -> None:
    """Probe for signal, and find suspect labels by the best scores at hand: those given, a model's, or the probe's own."""
    from aimonk_hf.audit.checks import add_suspects

    dataset = audited.dataset
    if options.probe:
        from aimonk_hf.audit.probe import probe_audit

        probe_audit(audited, options.architecture, with_suspects=not (options.model or options.scores))
    if options.scores:
        from aimonk_hf.audit.suspects import read_scores

        add_suspects(
            audited,
            read_scores(options.scores, dataset.labels.images, dataset.attributes),
            f"the scores in {options.scores}",
        )
    elif options.model:
        from aimonk_hf.evaluation.split_file import scores_of_unseen

        scores, source = scores_of_unseen(options.model, dataset)
        add_suspects(audited, scores, source)


def _write_audit(audited: "Audit", folder: Path) -> None:
    from aimonk_hf.audit.contact_sheet import write_contact_sheet
    from aimonk_hf.audit.report import audit_markdown
    from aimonk_hf.audit.suspects import write_suggestions
    from aimonk_hf.storage import make_folder, write_json, write_text

    make_folder(folder)
    findings: dict[str, Any] = audited.findings
    write_text(folder / "audit.md", audit_markdown(findings))
    write_json(folder / "audit.json", findings)
    written = ["audit.md", "audit.json"]
    if write_contact_sheet(audited, folder / "contact_sheet.png"):
        written.append("contact_sheet.png")
    if "suspects" in findings:
        labels = audited.dataset.labels
        write_suggestions(folder / "suggestions.csv", audited.suggestions, labels.images, labels.attributes)
        written.append("suggestions.csv")
    print(f"written:  {', '.join(str(folder / name) for name in written)}")


def _accept(options: argparse.Namespace, dataset: "AttributeDataset") -> int:
    from aimonk_hf.data.labels import accept_suggestions, write_labels
    from aimonk_hf.storage import make_folder

    if not options.output:
        raise AimonkError("--accept needs --output: the folder of the new labels.csv")
    labels, accepted = accept_suggestions(options.accept, dataset.labels)
    path = make_folder(options.output) / "labels.csv"
    write_labels(path, labels)
    print(f"{accepted} suggestions accepted: {path}")
    print(
        f"train:    aimonk-hf train --data-dir {options.data_dir} --labels {path} --images-dir {dataset.images_dir} --output-dir OUT"
    )
    return 0
