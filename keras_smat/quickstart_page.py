"""What a run of the quickstart leaves behind: `report.html`, md and JSON."""

import dataclasses
import json

import numpy as np

from keras_smat import plots
from keras_smat import report_page
from keras_smat.files import write_text
from keras_smat.html_page import HtmlPage

_DOMAINS = {"in_domain": "In domain", "out_of_domain": "Out of domain"}
LEARNERS = {
    "Frozen": "nearest class means of the pretrained features, nothing tuned.",
    "PMF": "the same, after meta-tuning all weights on such tasks.",
    "SMAT": "meta-tunes sparse experts and mixes them anew for every task; "
    "most weights stay pretrained.",
}
_PAIRS = (("SMAT", "PMF"), ("SMAT", "Frozen"))
INTERVALS = (
    "Intervals are over the episodes of these sets, for this one training "
    "run; another seed of training moves the figures too."
)


@dataclasses.dataclass
class Record:
    """What there is to show of a run, filled while it goes on.

    Attributes:
        protocol: list of str, sentences that say what was run.
        note: str, what to keep in mind when reading the figures.
        reports: dict from the learner's name to its `FewShotReport`.
        curves: dict from the learner's name to a dict of lists, `steps`,
            `training` and `validation` (accuracies in [0, 1]).
        sparsity: dict of lists, `steps` and `shares` (M,) of zeros.
        target_sparsity: float, or `None` before SMAT is there.
        merging: dict from the domain to its mean merging weights (M,).
        pictures: list of `Picture`.
        interrupted: bool.
    """

    protocol: list
    note: str
    reports: dict = dataclasses.field(default_factory=dict)
    curves: dict = dataclasses.field(default_factory=dict)
    sparsity: dict = dataclasses.field(
        default_factory=lambda: {"steps": [], "shares": []}
    )
    target_sparsity: float | None = None
    merging: dict = dataclasses.field(default_factory=dict)
    pictures: list = dataclasses.field(default_factory=list)
    interrupted: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """One episode and what SMAT took its queries for."""

    domain: str
    role: str
    class_names: list
    x: dict
    y: np.ndarray
    predictions: np.ndarray


def verdicts(reports):
    """Sentences on the paired differences, honest about their intervals.

    Args:
        reports: dict from the learner's name to its `FewShotReport`.

    Returns:
        List of `(sentence, name, FewShotAverage)`, one per average and pair
        of learners that were both measured.
    """
    found = []
    for first, second in _PAIRS:
        if first not in reports or second not in reports:
            continue
        pairs = reports[first].difference(reports[second])
        for group, average in pairs.averages.items():
            name = f"{first} − {second}, {_DOMAINS[group].lower()}"
            sentence = f"{_DOMAINS[group]}, " + _verdict(first, second, average)
            found.append((sentence, name, average))
    return found


def _verdict(first, second, average):
    points, half = 100 * average.accuracy, 100 * average.ci95
    # As printed: an end that reads 0.0 is no evidence.
    low, high = (round(end, 1) for end in (points - half, points + half))
    side = "above" if points >= 0 else "below"
    text = (
        f"{first} is {abs(points):.1f} points {side} {second} (paired, 95 % "
        f"interval {low:+z.1f} to {high:+z.1f})"
    )
    if low > 0 or high < 0:
        return f"{text}."
    return f"{text}; that contains zero: this run does not tell them apart."


def markdown_table(reports):
    """A table of accuracies: sets as rows, learners as columns."""
    first, *_ = reports.values()
    rows = [["set", "role", *reports]]
    for name in first.results:
        cells = [_percent(r.results[name]) for r in reports.values()]
        rows.append([name, first.role(name), *cells])
    for name in first.averages:
        cells = [_percent(r.averages[name]) for r in reports.values()]
        rows.append(["average", "ID" if name == "in_domain" else "OOD", *cells])
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def save(out, record):
    """Writes `report.html`, `report.md`, `training.json`, and one
    `report_<learner>.json` for each learner that was measured.

    Args:
        out: `pathlib.Path` of a folder.
        record: `Record`.

    Returns:
        str, the text of `report.md` below its title.
    """
    page(record).save(out / "report.html")
    for name in LEARNERS:
        path = out / f"report_{name.lower()}.json"
        path.unlink(missing_ok=True)  # Of an earlier run.
        if name in record.reports:
            record.reports[name].save(path)
    training = {
        "curves": record.curves,
        "sparsity": record.sparsity,
        "target_sparsity": record.target_sparsity,
        "merging_weights": record.merging,
    }
    write_text(out / "training.json", json.dumps(training, indent=1))
    text = _text(record)
    write_text(out / "report.md", f"# Quickstart\n\n{text}")
    return text


def _text(record):
    parts = []
    if record.interrupted:
        parts.append(_interruption(record))
    if record.reports:
        parts += [report_page.MEASURE, markdown_table(record.reports)]
        lines = [f"- {sentence}" for sentence, *_ in verdicts(record.reports)]
        parts += ["\n".join(lines), INTERVALS] if lines else [INTERVALS]
    parts.append(record.note)
    parts.append(_heading(record) + ":")
    parts.append("\n".join(f"- {line}" for line in record.protocol))
    return "\n\n".join(parts) + "\n"


def _heading(record):
    return "What was " + ("planned" if record.interrupted else "run")


def _interruption(record):
    return (
        f"Interrupted: {len(record.reports)} of 3 learners were measured. "
        "What follows is what there was."
    )


def page(record):
    """The HTML page of a run.

    Args:
        record: `Record`.

    Returns:
        `HtmlPage`.
    """
    built = HtmlPage(
        "SMAT on generated domains",
        "Sparse meta-tuning against its baselines: few-shot classification "
        "of new classes, in domain and out of domain, without a gradient "
        "step at test time.",
    )
    if record.interrupted:
        built.note(_interruption(record))
    _add_results(built, record.reports)
    built.note(record.note)
    _add_pictures(built, record.pictures)
    _add_training(built, record)
    built.section(_heading(record))
    built.bullets(record.protocol)
    for report in list(record.reports.values())[-1:]:
        report_page.add_protocol(built, report.protocol)
    return built


def _add_results(built, reports):
    if not reports:
        return
    built.section("Accuracy on new classes")
    built.bullets([f"{name}: {text}" for name, text in LEARNERS.items()])
    built.paragraph(
        "A task shows a learner a few labelled images of classes that it never "
        "saw (the support) and asks for the class of others (the queries). "
        "Classes in domain (ID) are new ones of the domains that were trained "
        "on, those out of domain (OOD) come from other domains."
    )
    built.paragraph(report_page.MEASURE)
    found = verdicts(reports)
    if found:
        built.bullets([sentence for sentence, *_ in found])
        built.figure(
            plots.differences(
                [average.accuracy for *_, average in found],
                [average.ci95 for *_, average in found],
                [name for _, name, _ in found],
            ),
            "Differences over the same episodes, pair by pair, with 95 % "
            "intervals; grey and hollow where the interval contains zero.",
        )
    built.paragraph(INTERVALS)
    report_page.add_accuracies(built, reports)


def _add_pictures(built, pictures):
    if not pictures:
        return
    built.section("Episodes as SMAT sees them")
    built.paragraph(
        "The first test episode of some domains. Each row is one class: the "
        "support that SMAT was given, then the first queries. A thin green "
        "frame is right; a thick orange one is wrong and carries the letter "
        "of the class that the query was taken for."
    )
    for picture in pictures:
        right = int((picture.predictions == picture.y).sum())
        names = ", ".join(
            f"{chr(ord('A') + i)} = {name}"
            for i, name in enumerate(picture.class_names)
        )
        built.figure(
            plots.episode_picture(
                picture.x["support_images"],
                picture.x["support_labels"],
                picture.x["query_images"],
                picture.y,
                picture.predictions,
            ),
            f"{picture.domain} ({picture.role}): {right} of {len(picture.y)} "
            f"queries right. {names}.",
        )


def _add_training(built, record):
    if record.curves:
        built.section("Meta-tuning")
        curves = {
            split: {
                name: (c["steps"], 100 * np.array(c[split]))
                for name, c in record.curves.items()
                if c[split]
            }
            for split in ("validation", "training")
        }
        built.figure(
            plots.learning_curves(curves["validation"], curves["training"]),
            "Accuracy on validation classes of the in-domain sets (solid) "
            "and on the training episodes of the steps before (dotted).",
        )
    if record.sparsity["steps"]:
        built.figure(
            plots.sparsity_over_time(
                record.sparsity["steps"],
                record.sparsity["shares"],
                record.target_sparsity,
            ),
            "Share of exact zeros in the mask of every expert. The target "
            "rises to the dashed line over the first 40 % of the steps.",
        )
    if record.merging:
        built.section("How SMAT mixes its experts")
        built.figure(
            plots.merging_weights(
                list(record.merging.values()), list(record.merging)
            ),
            "Merging weight of every expert, mean over test episodes of a "
            "domain. Equal rows: this run has not learned to tell these "
            "domains apart. A column of zeros: an expert that none needs.",
        )


def _percent(result):
    return f"{100 * result.accuracy:.1f} ± {100 * result.ci95:.1f}"
