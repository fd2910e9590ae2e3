"""The commands that judge a model or a data folder: evaluate, tune, audit."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimonk_hf.cli import flags
from aimonk_hf.data.splits import NEAR_DUPLICATES
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import make_folder, write_json, write_text

if TYPE_CHECKING:
    from aimonk_hf.audit.checks import Audit
    from aimonk_hf.data.dataset import AttributeDataset


def add_evaluation_commands(command: flags.Command) -> None:
    """Add the commands to the parser."""
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    file: dict[str, Any] = {"type": Path, "metavar": "CSV"}
    evaluate = command("evaluate", _evaluate, "judge a model on labelled images, beside the trivial predictors")
    flags.add_model_flag(evaluate)
    evaluate.add_argument("--output", **folder, help="write metrics.json and plots there")

    compare = command("compare", _compare, "compare models on the same unseen images, with intervals and p-values")
    sides = "model folder, repository or CSV of scores; seeds of one recipe are joined by commas: a1,a2,a3"
    compare.add_argument("sides", nargs="+", metavar="MODEL", help=f"{sides}; the others are compared with the first")
    compare.add_argument("--output", **folder, help="write compare.json and a plot of each comparison there")

    tune = command("tune", _tune, "tune the thresholds of a finished model on labelled images, and save them")
    flags.add_model_flag(tune, "model folder, whose config.json, metrics.json and card are rewritten")
    objectives = "f1, youden, or precision=0.9: the highest recall at that precision (f1)"
    tune.add_argument("--objective", default="f1", help=objectives)
    tune.add_argument("--output", **folder, help="save the model there instead of in its own folder")

    for parser in (evaluate, compare, tune):
        part = "only the images of that part of MODEL/split.csv"
        parser.add_argument("--part", choices=("train", "validation", "report"), help=part)
    for parser in (evaluate, tune):
        near = "group counts near-duplicates as one image where chance is judged, as copies are (group)"
        parser.add_argument("--near-duplicates", choices=NEAR_DUPLICATES, default="group", help=near)

    audit = command("audit", _audit, "list problems of a data folder, and test whether its labels carry any signal")
    flag = audit.add_argument
    flag("--output", **folder, help="write audit.md, audit.json, a contact sheet and suggestions.csv there")
    flag("--probe", action="store_true", help="test for signal: a linear probe on the features of a frozen backbone")
    backbone = "the probe's backbone: timm name, hf-hub:user/repo, local-dir:PATH"
    flag("--architecture", default="mobilenetv2_100", help=backbone)
    curve = "what the next 500 images would bring, by the probe at 1/8 to all of the images"
    flag("--learning-curve", action="store_true", help=curve)
    several = "compare the probe on several backbones: mAP, AUROC, features a second, size"
    flag("--backbones", type=flags.names, metavar="A,B,C", help=several)
    flag("--model", help="model whose scores find suspect labels; its training images are left out")
    flag("--scores", **file, help="out-of-fold scores that find suspect labels, such as a run's oof.csv")
    flag("--split", **file, help="split.csv of a run: find duplicates in different parts")
    flag("--val-labels", **file, help="label file of the validation images: find duplicates in different parts")
    flag("--report-labels", **file, help="label file of the report images, likewise")
    accepted = "suggestions.csv with yes in `accept`, or reviews.csv"
    flag("--accept", **file, help=f"{accepted}: write OUTPUT/labels.csv with these changes")

    for parser in (evaluate, compare, tune, audit):
        flags.add_predictor_flags(parser)
        flags.add_data_flags(parser)


def _evaluate(options: argparse.Namespace) -> int:
    from aimonk_hf.data.duplicates import image_groups
    from aimonk_hf.evaluation.report import judge_dataset
    from aimonk_hf.evaluation.report_table import metrics_table
    from aimonk_hf.evaluation.split_file import choose_part

    dataset = flags.read_data(options)
    model = flags.load_predictor(options)
    dataset = choose_part(model, dataset, options.part)
    dataset.groups = image_groups(dataset, near=options.near_duplicates == "group")
    judged = judge_dataset(model, dataset, progress=True)
    print(metrics_table(judged.report))
    if options.output:
        from aimonk_hf.evaluation.plots import write_report_plots

        path = make_folder(options.output) / "metrics.json"
        write_json(path, judged.report)
        plots = write_report_plots(judged, model.config.thresholds, options.output)
        print(f"written:  {', '.join(map(str, [path, *plots]))}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from aimonk_hf.audit.suspects import read_scores
    from aimonk_hf.evaluation.comparison import GivenScores, compare, comparison_table

    if len(options.sides) < 2:
        raise AimonkError("compare needs two models or more: aimonk-hf compare A B --data-dir DATA")
    if len(set(options.sides)) < len(options.sides):
        raise AimonkError("A model is named twice: there is nothing to compare it with")
    dataset = flags.read_data(options)

    def scorer(name: str) -> Any:
        if Path(name).suffix.lower() == ".csv":
            return GivenScores(dataset.attributes, read_scores(Path(name), dataset.labels.images, dataset.attributes))
        return flags.load_predictor(options, name)

    sides = {side: [scorer(name) for name in side.split(",")] for side in options.sides}
    report = compare(sides, dataset, options.part)
    print(f"{report['n_images']} images", *report["notes"], sep="\n")
    for found in report["comparisons"]:
        print(comparison_table(found))
    if options.output:
        from aimonk_hf.evaluation.plots import plot_differences

        paths = [make_folder(options.output) / "compare.json"]
        write_json(paths[0], report)
        for number, found in enumerate(report["comparisons"], start=1):
            paths.append(options.output / f"compare_{number}.png")
            plot_differences(found, paths[-1])
        print(f"written:  {', '.join(map(str, paths))}")
    return 0


def _tune(options: argparse.Namespace) -> int:
    from aimonk_hf.data.duplicates import image_groups
    from aimonk_hf.evaluation.report import match_known, score_images
    from aimonk_hf.evaluation.report_table import metrics_table, thresholds_table
    from aimonk_hf.evaluation.split_file import choose_part, record_tuning
    from aimonk_hf.evaluation.tuning import choose_and_judge
    from aimonk_hf.modeling.model import AimonkModel

    folder = options.output or Path(options.model)
    if not options.output and not folder.is_dir():
        raise AimonkError(f"{folder} is not a folder: name a folder for the tuned model with --output")
    dataset = flags.read_data(options)
    model = AimonkModel.from_pretrained(options.model)
    dataset, _ = match_known(choose_part(model, dataset, options.part), model.config.attributes, whole=True)
    problems = dataset.find_problems(progress=True)
    usable = dataset.select(row for row in range(len(dataset)) if row not in problems)
    if not len(usable):
        raise AimonkError(f"None of the {len(dataset)} images in {dataset.images_dir} can be read")
    usable.labels.check_observed("images that can be read")
    usable.groups = image_groups(usable, near=options.near_duplicates == "group")
    before, earlier = dict(model.config.thresholds), model.metrics or {}
    predictor = flags.load_predictor(options)

    def score(_: AimonkModel, paths: list[Path]) -> tuple[Any, dict[Path, str]]:
        return score_images(predictor, paths, progress=True)

    parts = (usable, usable.select([]))
    report = choose_and_judge(model, *parts, calibration=False, objective=options.objective, score=score)
    report["measured_on"]["images"] = "the images that `aimonk-hf tune` was given"
    model.metrics = report | {key: earlier[key] for key in ("training", "calibration") if key in earlier}
    model.save_pretrained(folder)
    record_tuning(model, folder, usable)
    print(thresholds_table(report, before))
    print(metrics_table(report))
    print(f"saved:    {folder}")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from aimonk_hf.audit.checks import add_suspects, audit
    from aimonk_hf.audit.report import summary

    dataset = flags.read_data(options)
    if options.accept:
        return _accept(options, dataset)
    if options.model and options.scores:
        raise AimonkError("--model and --scores both name scores: give one of them")
    audited = audit(dataset, options.split, progress=True)
    if options.probe:
        from aimonk_hf.audit.probe import probe_audit

        probe_audit(audited, options.architecture, options.device, with_suspects=not (options.model or options.scores))
    if options.learning_curve:
        from aimonk_hf.audit.forecast import add_learning_curve

        add_learning_curve(audited, options.architecture, options.device)
    if options.backbones:
        from aimonk_hf.audit.forecast import backbones_table, compare_backbones

        print(backbones_table(compare_backbones(audited, options.backbones, options.device)))
    if options.scores:
        from aimonk_hf.audit.suspects import read_scores

        scores = read_scores(options.scores, dataset.labels.images, dataset.attributes)
        add_suspects(audited, scores, f"the scores in {options.scores}")
    elif options.model:
        from aimonk_hf.evaluation.report import score_unseen

        scores, note = score_unseen(flags.load_predictor(options), dataset)
        add_suspects(audited, scores, f"the scores of {options.model} for images {note}")
    print("\n".join(summary(audited.findings)))
    if options.output:
        _write_audit(audited, options.output)
    return 0


def _write_audit(audited: "Audit", folder: Path) -> None:
    from aimonk_hf.audit.contact_sheet import write_contact_sheet
    from aimonk_hf.audit.report import audit_markdown
    from aimonk_hf.audit.suspects import write_suggestions

    make_folder(folder)
    findings, labels = audited.findings, audited.dataset.labels
    write_text(folder / "audit.md", audit_markdown(findings))
    write_json(folder / "audit.json", findings)
    written = ["audit.md", "audit.json"]
    if write_contact_sheet(audited, folder / "contact_sheet.png"):
        written.append("contact_sheet.png")
    if "learning_curve" in findings:
        from aimonk_hf.evaluation.plots import plot_learning_curve

        plot_learning_curve(findings["learning_curve"], folder / "learning_curve.png")
        written.append("learning_curve.png")
    if "suspects" in findings:
        write_suggestions(folder / "suggestions.csv", audited.suggestions, labels.images, labels.attributes)
        written.append("suggestions.csv")
    print(f"written:  {', '.join(str(folder / name) for name in written)}")


def _accept(options: argparse.Namespace, dataset: "AttributeDataset") -> int:
    from aimonk_hf.data.labels import accept_suggestions, write_labels
    from aimonk_hf.data.reviews import reviews_path

    if not options.output:
        raise AimonkError("--accept needs --output: the folder of the new labels.csv")
    path = make_folder(options.output) / "labels.csv"
    if options.accept.resolve() == reviews_path(dataset.labels.source).resolve():  # the labels were read through it
        write_labels(path, dataset.labels)
        print(f"written:  {path}, with the answers of {options.accept}")
    else:
        labels, accepted = accept_suggestions(options.accept, dataset.labels)
        write_labels(path, labels)
        print(f"{accepted} suggestions accepted: {path}")
    data = f"--data-dir {options.data_dir} --labels {path} --images-dir {dataset.images_dir}"
    print(f"train:    aimonk-hf train {data} --output-dir OUT")
    return 0
