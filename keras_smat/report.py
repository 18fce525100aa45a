"""The report on few-shot accuracy: prints, saves and loads."""

import dataclasses
import json
import math
import pathlib

import numpy as np

from keras_smat.files import save_as

_FORMAT = "keras_smat.FewShotReport/1"


class FewShotAverage(float):
    """Mean of the accuracies of several sets: a float in [0, 1].

    Attributes:
        accuracy: float, the same number; every set counts alike.
        ci95: float, half of the 95 % confidence interval over episodes.
    """

    def __new__(cls, results):
        average = super().__new__(cls, np.mean([r.accuracy for r in results]))
        # The sets' episodes are independent: variances add up.
        average.ci95 = math.hypot(*(r.ci95 for r in results)) / len(results)
        return average

    @property
    def accuracy(self):
        return float(self)


@dataclasses.dataclass(frozen=True, eq=False)
class FewShotResult:
    """Accuracy on one set of episodes.

    Args:
        per_episode: float array of shape (num_episodes,), accuracies in
            [0, 1].

    Attributes:
        accuracy: float, their mean.
        ci95: float, half of the mean's 95 % confidence interval; NaN for a
            single episode.
    """

    per_episode: np.ndarray

    def __post_init__(self):
        values = np.array(self.per_episode, "float64")
        values.flags.writeable = False
        object.__setattr__(self, "per_episode", values)

    @property
    def accuracy(self):
        return float(self.per_episode.mean())

    @property
    def ci95(self):
        count = len(self.per_episode)
        if count < 2:
            return math.nan
        return float(1.96 * self.per_episode.std(ddof=1) / math.sqrt(count))

    def __eq__(self, other):
        if not isinstance(other, FewShotResult):
            return NotImplemented
        return np.array_equal(self.per_episode, other.per_episode)


class FewShotReport:
    """What `evaluate_few_shot` returns: prints, saves and loads.

    Args:
        results: dict from the name of a set to its `FewShotResult`.
        protocol: dict of JSON values: learner, adapter, backbone, precision,
            versions, and the settings of the episodes with their hash.
        in_domain: list of names of sets. Defaults to `None` (unknown).

    Attributes:
        averages: dict of `FewShotAverage`, with `"in_domain"` and
            `"out_of_domain"` where the domains are known and there are any.

    Example:

    ```python
    import keras_smat

    result = keras_smat.FewShotResult([0.8, 0.6, 1.0])
    report = keras_smat.FewShotReport({"birds": result}, {"learner": "SMAT"})
    print(report)  # 80.00 ± 22.63 %
    report.save("report.json")
    assert keras_smat.FewShotReport.load("report.json") == report
    ```
    """

    def __init__(self, results, protocol, in_domain=None):
        self.results = dict(results)
        self.protocol = dict(protocol)
        self.in_domain = None if in_domain is None else sorted(in_domain)

    @property
    def averages(self):
        groups = {"in_domain": [], "out_of_domain": []}
        if self.in_domain is not None:
            for name, result in self.results.items():
                inside = name in self.in_domain
                groups["in_domain" if inside else "out_of_domain"].append(
                    result
                )
        return {k: FewShotAverage(r) for k, r in groups.items() if r}

    def role(self, name):
        """`"ID"` or `"OOD"` of a set, `None` where unknown."""
        if self.in_domain is None:
            return None
        return "ID" if name in self.in_domain else "OOD"

    def difference(self, other):
        """This report minus another over the same episodes, pair by pair.

        Args:
            other: `FewShotReport` over the same sets and episodes.

        Returns:
            `FewShotReport` whose "accuracies" are differences in [-1, 1];
            their intervals are those of the paired differences.

        Raises:
            ValueError: if the sets or the episodes are not the same.
        """
        for what, mine, its in (
            ("sets", list(self.results), list(other.results)),
            ("episodes", *(_episodes(r) for r in (self, other))),
        ):
            if mine != its:
                raise ValueError(
                    f"Expected two reports over the same {what}. "
                    f"Received: {mine} and {its}"
                )
        pairs = {
            name: FewShotResult(
                result.per_episode - other.results[name].per_episode
            )
            for name, result in self.results.items()
        }
        names = [r.protocol.get("learner") for r in (self, other)]
        protocol = {**self.protocol, "learner": " - ".join(map(str, names))}
        return FewShotReport(pairs, protocol, self.in_domain)

    def rows(self):
        """Flat rows, one per set, as a list of dicts.

        Returns:
            List of dicts with `learner`, `adapter`, `dataset`, `role`,
            `accuracy`, `ci95` and `num_episodes`; `None` where there is no
            value, so that `json.dumps` gives strict JSON.
        """
        adapter = self.protocol.get("adapter")
        return [
            {
                "learner": self.protocol.get("learner"),
                "adapter": adapter and adapter["name"],
                "dataset": name,
                "role": self.role(name),
                "accuracy": result.accuracy,
                "ci95": _or_none(result.ci95),
                "num_episodes": len(result.per_episode),
            }
            for name, result in self.results.items()
        ]

    def save(self, path):
        """Writes the report; an interruption leaves no half-written file.

        Args:
            path: str or path that ends in `.json` (everything, see `load`),
                `.md` (a table) or `.html` (a self-contained page: table,
                bars, protocol). Its folder must exist.
        """
        writers = {
            ".json": self._json,
            ".md": self._markdown,
            ".html": self._html,
        }
        save_as(path, writers)

    @classmethod
    def load(cls, path):
        """Reads a report that `save` wrote as JSON."""
        try:
            content = json.loads(pathlib.Path(path).read_text("utf-8"))
            known = content["format"] == _FORMAT
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(
                "Expected a JSON file that `FewShotReport.save` wrote. "
                f"Received: path={str(path)!r}"
            )
        results = {
            name: FewShotResult(entry["per_episode"])
            for name, entry in content["results"].items()
        }
        return cls(results, content["protocol"], content["in_domain"])

    def __eq__(self, other):
        if not isinstance(other, FewShotReport):
            return NotImplemented
        return vars(self) == vars(other)

    def __str__(self):
        rows = self._table()
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
        )

    def _table(self):
        rows = [("set", "role", "accuracy %", "episodes")]
        for name, result in self.results.items():
            count = str(len(result.per_episode))
            rows.append((name, self.role(name) or "", _percent(result), count))
        for name, average in self.averages.items():
            role = "ID" if name == "in_domain" else "OOD"
            rows.append(("average", role, _percent(average), ""))
        return rows

    def _json(self):
        results = {
            name: {
                "accuracy": result.accuracy,
                "ci95": _or_none(result.ci95),
                "per_episode": result.per_episode.tolist(),
            }
            for name, result in self.results.items()
        }
        averages = {
            name: {"accuracy": a.accuracy, "ci95": _or_none(a.ci95)}
            for name, a in self.averages.items()
        }
        content = {
            "format": _FORMAT,
            "results": results,
            "averages": averages,
            "in_domain": self.in_domain,
            "protocol": self.protocol,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def _html(self):
        # Here, since matplotlib takes long to import.
        from keras_smat.report_page import few_shot_page

        return few_shot_page(self).render()

    def _markdown(self):
        header, *rows = [f"| {' | '.join(row)} |" for row in self._table()]
        stamp = {k: v for k, v in self.protocol.items() if k != "sets"}
        lines = [f"| {k} | {_inline(v)} |" for k, v in stamp.items()]
        return "\n".join(
            [
                "# Few-shot accuracy",
                "",
                "Mean over episodes ± 95 % confidence interval.",
                "",
                *(header, "|---|---|---|---|", *rows),
                "",
                *("| protocol | |", "|---|---|", *lines),
                "",
            ]
        )


def _episodes(report):
    """What tells the episodes of two reports apart."""
    counts = [len(result.per_episode) for result in report.results.values()]
    return report.protocol.get("episodes_sha256"), counts


def _percent(result):
    return f"{100 * result.accuracy:.2f} ± {100 * result.ci95:.2f}"


def _inline(value):
    return value if isinstance(value, str) else json.dumps(value)


def _or_none(value):
    return None if math.isnan(value) else value
