"""Parts of an HTML page that show few-shot reports."""

import json

from keras_smat import plots
from keras_smat.html_page import HtmlPage

MEASURE = (
    "Accuracy is the share of queries classified rightly, in percent: the "
    "mean over episodes ± half of its 95 % confidence interval."
)
_AVERAGES = {"in_domain": "ID average", "out_of_domain": "OOD average"}
_AVERAGE_GROUP = "averages"
_GROUPS = {"ID": "in domain", "OOD": "out of domain", None: "sets"}


def few_shot_page(report):
    """The page that `FewShotReport.save("report.html")` writes.

    Args:
        report: `FewShotReport`.

    Returns:
        `HtmlPage`.
    """
    learner = str(report.protocol.get("learner") or "Learner")
    page = HtmlPage("Few-shot accuracy", f"{learner}. {MEASURE}")
    page.section("Accuracy")
    add_accuracies(page, {learner: report})
    page.section("Protocol")
    add_protocol(page, report.protocol)
    return page


def add_accuracies(page, reports):
    """Adds bars and a sortable table of one or several learners.

    Args:
        page: `HtmlPage`.
        reports: dict from the learner's name to its `FewShotReport`, all
            over the same sets.
    """
    sets, groups = _layout(next(iter(reports.values())))
    columns = [_values(report) for report in reports.values()]
    page.figure(
        plots.accuracy_bars(
            [[v.accuracy for v in column] for column in columns],
            [[v.ci95 for v in column] for column in columns],
            sets,
            list(reports),
            groups,
        ),
        "Accuracy of every learner, with 95 % confidence intervals.",
    )
    rows = set_rows(reports)
    averages = len(next(iter(reports.values())).averages)
    page.table(
        ["set", "domain", *(f"{name}, %" for name in reports)],
        rows[averages:],
        rows[:averages],
        "A click on a heading sorts.",
    )


def set_rows(reports):
    """Rows of a table: averages, then sets, with a cell for each report.

    Args:
        reports: dict from names to `FewShotReport`, all over the same sets.

    Returns:
        List of lists `[name, domain, percent(...), ...]`.
    """
    sets, groups = _layout(next(iter(reports.values())))
    columns = [_values(report) for report in reports.values()]
    return [
        [
            name,
            "" if group == _AVERAGE_GROUP else group,
            *(percent(column[i]) for column in columns),
        ]
        for i, (name, group) in enumerate(zip(sets, groups))
    ]


def add_protocol(page, protocol):
    """Adds what determined the figures of a report.

    Args:
        page: `HtmlPage`.
        protocol: dict, as in `FewShotReport`.
    """
    facts = {k: v for k, v in protocol.items() if k != "sets"}
    page.table(
        ["what", "value"],
        [[name, plain(value)] for name, value in facts.items()],
    )
    if "sets" in protocol:
        text = json.dumps(protocol["sets"], indent=1, ensure_ascii=False)
        page.folded(
            "The sets of episodes, exactly", lambda: page.preformatted(text)
        )


def _layout(report):
    """Names of all rows, averages first, and the group of each."""
    names = [_AVERAGES[name] for name in report.averages]
    groups = [_AVERAGE_GROUP] * len(names)
    # Sets of one role side by side, in their own order.
    ordered = sorted(report.results, key=lambda n: report.role(n) or "")
    names += ordered
    return names, groups + [_GROUPS[report.role(name)] for name in ordered]


def _values(report):
    """What `_layout` names, in its order."""
    ordered = sorted(report.results, key=lambda n: report.role(n) or "")
    results = [report.results[name] for name in ordered]
    return [*report.averages.values(), *results]


def percent(value):
    """A cell: the text of an accuracy, and the number to sort it by."""
    text = f"{100 * value.accuracy:.1f} ± {100 * value.ci95:.1f}"
    return text, 100 * value.accuracy


def plain(value):
    """The text of a JSON value."""
    return value if isinstance(value, str) else json.dumps(value)
