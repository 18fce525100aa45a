"""The report on a benchmark: tables, tests, files."""

import functools
import itertools
import json
import math
import pathlib

import numpy as np

from keras_smat import statistics
from keras_smat.files import save_as
from keras_smat.files import write_text
from keras_smat.report import FewShotReport
from keras_smat.report import FewShotResult

_FORMAT = "keras_smat.BenchmarkReport/1"


class BenchmarkReport:
    """What `evaluate_benchmark` returns: compares, prints, saves and loads.

    Args:
        reports: dict from the method's name to its `FewShotReport`, all over
            the same episodes.
        calibration: dict from the method's name to a dict from the set's
            name to the expected calibration error in [0, 1] of all queries
            of the set, ten bins.
        parameters: dict from the method's name to a dict of ints with
            `"total"`, what it takes to store the learner: sparse experts
            count twice their non-zero entries. Defaults to `None` (unknown).
        costs: dict from the method's name to a dict from the set's name to
            `{"seconds": median per episode, "peak_gb": peak of the process's
            resident memory}`. Defaults to `None` (unknown).
        pairs: list of pairs of names of methods, which the report compares.
            Defaults to `None`: every method with all that were listed before
            it. The fewer there are, the milder the correction.

    Raises:
        ValueError: if the methods saw other episodes, or a pair names none
            of them.

    Example:

    ```python
    import keras_smat


    def report(*accuracies):
        result = keras_smat.FewShotResult(accuracies)
        return keras_smat.FewShotReport({"birds": result}, {}, ["birds"])


    both = keras_smat.BenchmarkReport(
        {"PMF": report(0.5, 0.6, 0.4), "SMAT": report(0.7, 0.8, 0.5)},
        {"PMF": {"birds": 0.1}, "SMAT": {"birds": 0.2}},
    )
    both.comparisons()[0]["p_value"]  # 0.038
    ```
    """

    def __init__(
        self, reports, calibration, parameters=None, costs=None, pairs=None
    ):
        self.reports = dict(reports)
        self.calibration = dict(calibration)
        self.parameters = dict(parameters or {})
        self.costs = dict(costs or {})
        first, *others = self.reports.values()
        for other in others:
            first.difference(other)  # Raises where episodes differ.
        self.pairs = checked_pairs(pairs, self.reports)

    @property
    def sets(self):
        """List of the names of the sets."""
        return list(next(iter(self.reports.values())).results)

    def ranks(self):
        """Dict from the method's name to a dict of its rank on every set.

        See `statistics.leaderboard_ranks`.
        """
        results = [list(r.results.values()) for r in self.reports.values()]
        ranks = statistics.leaderboard_ranks(
            [[r.accuracy for r in row] for row in results],
            [[r.ci95 for r in row] for row in results],
        )
        return {
            name: dict(zip(self.sets, row.tolist()))
            for name, row in zip(self.reports, ranks)
        }

    def comparisons(self, pairs=None):
        """Paired t tests between methods, on the averages over sets.

        Args:
            pairs: list of pairs of names of methods. Defaults to `None`,
                those of the report.

        Returns:
            List of dicts: `first`, `second`, `average` (`"in_domain"`,
            `"out_of_domain"`, or `"all"` where the domains are unknown),
            `difference` first minus second, its half width `ci95`,
            `p_value`, and `p_holm`, corrected for all rows together. `None`
            where there is no value.
        """
        if pairs is None:
            pairs = self.pairs
        rows = []
        for first, second in checked_pairs(pairs, self.reports):
            report = self.reports[first].difference(self.reports[second])
            for average, names in _groups(report).items():
                test = statistics.paired_t_test(
                    [report.results[name].per_episode for name in names]
                )
                rows.append(
                    {
                        "first": first,
                        "second": second,
                        "average": average,
                        "difference": test.difference,
                        "ci95": test.ci95,
                        "p_value": test.p_value,
                    }
                )
        corrected = statistics.holm([row["p_value"] for row in rows])
        for row, p_holm in zip(rows, corrected):
            row["p_holm"] = float(p_holm)
        return [{k: _or_none(v) for k, v in row.items()} for row in rows]

    def rows(self):
        """Flat rows, one per method and set, as a list of dicts.

        Returns:
            Those of `FewShotReport.rows`, with `method` before them and
            `calibration_error` and `rank` after.
        """
        ranks = self.ranks()
        return [
            {
                "method": name,
                **row,
                "calibration_error": self.calibration[name][row["dataset"]],
                "rank": ranks[name][row["dataset"]],
            }
            for name, report in self.reports.items()
            for row in report.rows()
        ]

    def summary(self):
        """One dict per method: what the first table of the report shows.

        Returns:
            List of dicts: `method`, `averages` (a dict of `FewShotAverage`),
            `rank` and `calibration_error` (means over the sets),
            `parameters`, `seconds` (mean over the sets) and `peak_gb`
            (largest), `None` where unknown.
        """
        ranks = self.ranks()
        rows = []
        for name, report in self.reports.items():
            costs = list(self.costs.get(name, {}).values())
            seconds = [c["seconds"] for c in costs]
            peaks = [c["peak_gb"] for c in costs if c["peak_gb"] is not None]
            rows.append(
                {
                    "method": name,
                    "averages": report.averages,
                    "rank": float(np.mean(list(ranks[name].values()))),
                    "calibration_error": float(
                        np.mean(list(self.calibration[name].values()))
                    ),
                    "parameters": self.parameters.get(name, {}).get("total"),
                    "seconds": float(np.mean(seconds)) if seconds else None,
                    "peak_gb": max(peaks, default=None),
                }
            )
        return rows

    def save(self, path):
        """Writes the report; an interruption leaves no half-written file.

        Args:
            path: str or path that ends in `.json` (everything, see `load`;
                the costs, which differ from run to run, go to a file beside
                it that ends in `.costs.json`), `.md` (tables) or `.html` (a
                self-contained page). Its folder must exist.
        """
        from keras_smat import benchmark_page

        writers = {
            ".json": self._json,
            ".md": lambda: benchmark_page.markdown(self),
            ".html": lambda: benchmark_page.page(self).render(),
        }
        path = save_as(path, writers)
        if path.suffix == ".json" and self.costs:
            costs = json.dumps(self.costs, indent=1) + "\n"
            write_text(path.with_suffix(".costs.json"), costs)

    @classmethod
    def load(cls, path):
        """Reads a report that `save` wrote as JSON, and its costs if any."""
        path = pathlib.Path(path)
        try:
            content = json.loads(path.read_text("utf-8"))
            known = content["format"] == _FORMAT
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(
                "Expected a JSON file that `BenchmarkReport.save` wrote. "
                f"Received: path={str(path)!r}"
            )
        reports, calibration, parameters = {}, {}, {}
        for name, method in content["methods"].items():
            protocol = method["protocol"]
            if content["sets"] is not None:
                protocol["sets"] = content["sets"]
            reports[name] = FewShotReport(
                {
                    s: FewShotResult(r["per_episode"])
                    for s, r in method["results"].items()
                },
                protocol,
                content["in_domain"],
            )
            calibration[name] = {
                s: r["calibration_error"] for s, r in method["results"].items()
            }
            if method["parameters"] is not None:
                parameters[name] = method["parameters"]
        costs = path.with_suffix(".costs.json")
        costs = json.loads(costs.read_text("utf-8")) if costs.exists() else {}
        compared = [(r["first"], r["second"]) for r in content["comparisons"]]
        pairs = list(dict.fromkeys(compared))
        return cls(reports, calibration, parameters, costs, pairs)

    def __eq__(self, other):
        if not isinstance(other, BenchmarkReport):
            return NotImplemented
        return self._json() == other._json()

    def __str__(self):
        rows = [["method", "ID %", "OOD %", "rank"]]
        for row in self.summary():
            averages = [
                _percent(row["averages"].get(group))
                for group in ("in_domain", "out_of_domain")
            ]
            rows.append([row["method"], *averages, f"{row['rank']:.2f}"])
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
        )

    def _json(self):
        """Everything but the costs."""
        first = next(iter(self.reports.values()))
        methods = {
            name: {
                "protocol": {
                    k: v for k, v in report.protocol.items() if k != "sets"
                },
                "parameters": self.parameters.get(name),
                "results": {
                    s: {
                        "accuracy": result.accuracy,
                        "ci95": _or_none(result.ci95),
                        "calibration_error": self.calibration[name][s],
                        "per_episode": result.per_episode.tolist(),
                    }
                    for s, result in report.results.items()
                },
                "averages": {
                    k: {"accuracy": a.accuracy, "ci95": _or_none(a.ci95)}
                    for k, a in report.averages.items()
                },
            }
            for name, report in self.reports.items()
        }
        content = {
            "format": _FORMAT,
            "in_domain": first.in_domain,
            "rows": self.rows(),
            "comparisons": self.comparisons(),
            "methods": methods,
            "sets": first.protocol.get("sets"),
        }
        return _two_levels(content)


def checked_pairs(pairs, methods):
    """Pairs of names as a list of tuples; `None` gives all there are."""
    if pairs is None:
        combinations = itertools.combinations(methods, 2)
        return [(later, earlier) for earlier, later in combinations]
    pairs = [tuple(pair) for pair in pairs]
    for pair in pairs:
        if len(pair) != 2 or len(set(pair) & set(methods)) != 2:
            raise ValueError(
                f"Expected pairs of two methods of {list(methods)}. "
                f"Received: {pair!r}"
            )
    return pairs


def _two_levels(content):
    """JSON with a line for every entry of an entry: short, and diffs well."""

    def inner(value):
        dump = functools.partial(json.dumps, allow_nan=False)
        if isinstance(value, dict) and value:
            lines = (f"{dump(k)}: {dump(v)}" for k, v in value.items())
            return "{\n  " + ",\n  ".join(lines) + "\n }"
        if isinstance(value, list) and value:
            return "[\n  " + ",\n  ".join(map(dump, value)) + "\n ]"
        return dump(value)

    lines = (f'"{key}": {inner(value)}' for key, value in content.items())
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def _groups(report):
    """Names of the sets of every average."""
    if report.in_domain is None:
        return {"all": list(report.results)}
    groups = {"in_domain": [], "out_of_domain": []}
    for name in report.results:
        inside = name in report.in_domain
        groups["in_domain" if inside else "out_of_domain"].append(name)
    return {average: names for average, names in groups.items() if names}


def _or_none(value):
    nan = isinstance(value, float) and math.isnan(value)
    return None if nan else value


def _percent(value):
    if value is None:
        return ""
    return f"{100 * value.accuracy:.2f} ± {100 * value.ci95:.2f}"
