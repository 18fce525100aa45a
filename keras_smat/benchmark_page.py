"""A benchmark report as one HTML page and as Markdown tables."""

import csv
import pathlib

from keras_smat import plots
from keras_smat import report_page
from keras_smat.html_page import HtmlPage

_AVERAGES = {
    "in_domain": "in domain",
    "out_of_domain": "out of domain",
    "all": "all sets",
}
RANKS = (
    "Rank is the mean over the sets of the place among these methods; methods "
    "that cannot be told from the best of those left share the mean of their "
    "places, as on the Meta-Dataset leaderboard."
)
COLUMNS = (
    "ECE: expected calibration error of the class probabilities in points, "
    "mean over the sets. Parameters: what it takes to store the learner, a "
    "sparse expert at two numbers per non-zero entry. Seconds: median per "
    "episode, mean over the sets. GB: peak resident memory of the process, "
    "with all learners that it holds."
)
TESTS = (
    "Differences in points of accuracy on the same episodes, every set "
    "counting alike, by paired t tests; p is corrected for all comparisons "
    "shown (Holm). They concern these sets and "
    "these trained learners: training again moves the figures too."
)
PUBLISHED = (
    "Published rows of SMAT (Chen et al., ICML 2024), under another protocol: "
    "other data, image size, training and episodes. They show the order of "
    "methods there and must not be compared with the figures above."
)


def published_rows():
    """Accuracies that SMAT's paper prints, for orientation.

    Returns:
        List of dicts with `method`, `adapter`, `backbone`, `dataset`,
        `accuracy` (float, percent) and `source` (the table).
    """
    path = pathlib.Path(__file__).with_name("published.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{**row, "accuracy": float(row["accuracy"])} for row in rows]


def page(report):
    """The page that `BenchmarkReport.save("report.html")` writes.

    Args:
        report: `BenchmarkReport`.

    Returns:
        `HtmlPage`.
    """
    built = HtmlPage("Few-shot benchmark", report_page.MEASURE)
    built.section("Methods")
    built.table(*_summary(report), caption="A click on a heading sorts.")
    built.paragraph(RANKS)
    built.paragraph(COLUMNS)
    _add_scatter(built, report)
    _add_comparisons(built, report)
    built.section("Accuracy on every set")
    report_page.add_accuracies(built, report.reports)
    built.section("Published figures, another protocol")
    _add_published(built)
    _add_protocol(built, report)
    return built


def markdown(report):
    """The text that `BenchmarkReport.save("report.md")` writes."""
    reports = report.reports
    sets = report_page.set_rows(reports)
    parts = [
        "# Few-shot benchmark",
        report_page.MEASURE,
        _markdown_table(*_summary(report)),
        RANKS,
        COLUMNS,
        "## Every set",
        _markdown_table(["set", "domain", *(f"{n}, %" for n in reports)], sets),
    ]
    if len(reports) > 1:
        parts += [
            "## Paired differences",
            TESTS,
            _markdown_table(*_comparisons(report)),
        ]
    return "\n\n".join(parts) + "\n"


def _summary(report):
    """Columns and rows of the first table; unknown columns are left out."""
    columns = {
        "method": lambda row: row["method"],
        "ID, %": lambda row: _percent(row["averages"].get("in_domain")),
        "OOD, %": lambda row: _percent(row["averages"].get("out_of_domain")),
        "rank": lambda row: _number(row["rank"], "{:.2f}"),
        "ECE": lambda row: _number(100 * row["calibration_error"], "{:.1f}"),
        "parameters": lambda row: _number(row["parameters"], "{:,.0f}"),
        "seconds": lambda row: _number(row["seconds"], "{:.3g}"),
        "GB": lambda row: _number(row["peak_gb"], "{:.2f}"),
        "settings chosen on": lambda row: _chosen_on(
            report.reports[row["method"]].protocol
        ),
    }
    rows = [
        [cell(row) for cell in columns.values()] for row in report.summary()
    ]
    used = [any(cell is not None for cell in column) for column in zip(*rows)]
    return (
        [name for name, keep in zip(columns, used) if keep],
        [[c for c, keep in zip(row, used) if keep] for row in rows],
    )


def _chosen_on(protocol):
    """What the settings of a method's adapter were chosen on, if chosen."""
    adapter = protocol.get("adapter") or {}
    sets = protocol.get("sets") or {}
    evaluated = [
        {k: v for k, v in s.items() if k != "epoch"} for s in sets.values()
    ]
    reads = []
    for each in adapter.get("sets", {None: adapter}).values():
        selection = ((each or {}).get("config") or {}).get("selection")
        if not selection:
            continue
        if selection.get("episodes") in evaluated:
            reads.append("the EVALUATED episodes: the accuracy is optimistic")
        else:
            reads.append(selection["reads"])
    return "; ".join(dict.fromkeys(reads)) or None


def _comparisons(report):
    rows = [
        [
            row["first"],
            row["second"],
            _AVERAGES[row["average"]],
            (_signed(row), 100 * row["difference"]),
            _number(row["p_holm"], "{:.2g}"),
        ]
        for row in report.comparisons()
    ]
    columns = ["method", "against", "sets", "difference", "p, corrected"]
    return columns, rows


def _add_scatter(built, report):
    averages = [single.averages for single in report.reports.values()]
    if not all(len(pair) == 2 for pair in averages):
        return
    groups = ("in_domain", "out_of_domain")
    built.figure(
        plots.id_against_ood(
            *([a[group].accuracy for a in averages] for group in groups),
            *([a[group].ci95 for a in averages] for group in groups),
            list(report.reports),
        ),
        "Average accuracy in domain against out of domain, with 95 % "
        "confidence intervals.",
    )


def _add_comparisons(built, report):
    if len(report.reports) < 2:
        return
    built.section("Paired differences")
    built.paragraph(TESTS)
    shown = report.comparisons()
    if len(shown) <= 40:
        built.figure(
            plots.differences(
                [row["difference"] for row in shown],
                [float(row["ci95"] or "nan") for row in shown],
                [
                    f"{row['first']} against {row['second']}, "
                    f"{_AVERAGES[row['average']]}"
                    for row in shown
                ],
            ),
            "Differences with 95 % intervals, not corrected; grey and hollow "
            "where the interval contains zero.",
        )
    built.table(*_comparisons(report))


def _add_published(built):
    built.note(PUBLISHED)
    methods, sets = {}, {}
    for row in published_rows():
        method = row["source"], row["method"], row["adapter"], row["backbone"]
        cell = f"{row['accuracy']:.2f}", row["accuracy"]
        methods.setdefault(method, {})[row["dataset"]] = cell
        sets[row["dataset"]] = "avg" not in row["dataset"]
    sets = sorted(sets, key=sets.get)  # Averages first.
    built.table(
        ["source", "method", "adapter", "backbone", *sets],
        [
            [*method, *(cells.get(dataset) for dataset in sets)]
            for method, cells in methods.items()
        ],
    )


def _add_protocol(built, report):
    built.section("Protocol")
    protocols = {name: r.protocol for name, r in report.reports.items()}
    own = ("learner", "adapter", "backbone", "precision")
    built.table(
        ["method", *own],
        [
            [name, *(report_page.plain(protocol.get(key)) for key in own)]
            for name, protocol in protocols.items()
        ],
    )
    shared = next(iter(protocols.values()))
    report_page.add_protocol(
        built, {k: v for k, v in shared.items() if k not in own}
    )


def _signed(row):
    half = row["ci95"]
    half = "" if half is None else f" ± {100 * half:.2f}"
    return f"{100 * row['difference']:+z.2f}{half}"


def _percent(value):
    if value is None:
        return None
    return report_page.percent(value)


def _number(value, form):
    return None if value is None else (form.format(value), float(value))


def _markdown_table(columns, rows):
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        cells = [c[0] if isinstance(c, tuple) else c for c in row]
        lines.append(["" if cell is None else str(cell) for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
