"""Several methods on the same episodes of several data sets."""

import pathlib

import keras

from keras_smat import benchmark_cells
from keras_smat import evaluation
from keras_smat.benchmark_report import BenchmarkReport
from keras_smat.benchmark_report import checked_pairs
from keras_smat.report import FewShotReport
from keras_smat.report import FewShotResult


def evaluate_benchmark(
    methods,
    episodes,
    in_domain=None,
    num_episodes=600,
    folder=None,
    processes=1,
    verbose="auto",
    pairs=None,
):
    """Compares learners and adapters, pair by pair, on replayed episodes.

    Every method sees the same episodes of every set. With a `folder`, each
    finished pair of method and set is kept there, and the same call again
    goes on where it was killed: the report it ends with is that of an
    undisturbed run, to the last digit. Seconds and memory are no part of that
    comparison: they stand in a file of their own.

    Args:
        methods: dict from the method's name to a `MetaLearner`, or to a pair
            `(learner, adapter)`; see `evaluate_few_shot` for adapters, of
            which there may be one for each set.
        episodes: dict from the set's name to a `data.Episodes`.
        in_domain: list of names of sets, as in `evaluate_few_shot`. Defaults
            to `None` (unknown).
        num_episodes: int, episodes of each set. Defaults to `600`.
        folder: str or path, made when it does not exist: where finished
            sets, `benchmark.json` and `benchmark.costs.json` go. An adapter
            that is a plain function is known there by its name alone.
            Defaults to `None`: nothing is kept.
        processes: int. More than 1 spread methods and sets over new
            processes, which take seconds to start, need a script guarded by
            `if __name__ == "__main__":` and hold a learner each. Limit their
            threads (`OMP_NUM_THREADS`). Defaults to `1`, this process.
        verbose: `"auto"`, 0, 1 or 2: one progress bar over all pairs of
            method and set. `"auto"` becomes 1. Defaults to `"auto"`.
        pairs: list of pairs of names of methods, those that the report
            compares. Defaults to `None`: every method with all that were
            listed before it. The fewer there are, the milder the correction.

    Returns:
        `BenchmarkReport`.

    Raises:
        ValueError: before any episode runs, if a method, a set or a number is
            not as above, or the folder holds results of other learners,
            adapters or episodes under the same names.

    Example:

    ```python
    import keras
    import numpy as np

    import keras_smat

    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten()]
    backbone = keras.Sequential(layers)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 3), "uint8")
    source = keras_smat.data.ArraySource(images, np.repeat(range(6), 10))
    sampler = keras_smat.data.FixedEpisodes(n_way=5, n_shot=1, n_query=5)
    noise = keras_smat.data.EpisodeDataset(source, sampler, num_episodes=20)
    report = keras_smat.evaluate_benchmark(
        {
            "cosine": keras_smat.ProtoNet(backbone),
            "euclidean": keras_smat.ProtoNet(backbone, distance="euclidean"),
        },
        {"noise": noise},
        num_episodes=20,
        folder="benchmark",
        verbose=0,
    )
    print(report)
    report.save("benchmark.html")
    ```

    Reference: Triantafillou et al., "Meta-Dataset", ICLR 2020.
    """
    methods = _checked(methods, episodes, in_domain, num_episodes, processes)
    _check_adapters(methods, episodes, folder, processes)
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(
            "Expected `verbose` as 'auto', 0, 1 or 2. "
            f"Received: verbose={verbose!r}"
        )
    pairs = checked_pairs(pairs, methods)
    protocols = {
        name: evaluation.describe(learner, episodes, num_episodes, adapter)
        for name, (learner, adapter) in methods.items()
    }
    folder = None if folder is None else pathlib.Path(folder)
    keys = benchmark_cells.keys(methods, protocols)
    cells = benchmark_cells.Cells(folder, keys)
    todo = cells.missing()
    bar = keras.utils.Progbar(
        len(keys), verbose=1 if verbose == "auto" else int(verbose)
    )
    if verbose:
        bar.update(len(keys) - len(todo))
    for cell, outcome in benchmark_cells.outcomes(
        todo, methods, episodes, num_episodes, processes
    ):
        cells.keep(cell, outcome)
        if verbose:
            bar.add(1)
    report = _report(methods, protocols, cells.outcomes, in_domain, pairs)
    if folder is not None:
        report.save(folder / "benchmark.json")
    return report


def _checked(methods, episodes, in_domain, num_episodes, processes):
    """Returns the methods as a dict of pairs."""
    if not isinstance(methods, dict) or not methods:
        raise ValueError(
            "Expected `methods` as a dict from names to a learner or a pair "
            f"(learner, adapter). Received: methods={methods!r}"
        )
    if not isinstance(episodes, dict):
        raise ValueError(
            "Expected `episodes` as a dict from names to `data.Episodes`. "
            f"Received: episodes={episodes!r}"
        )
    whole = isinstance(processes, int) and not isinstance(processes, bool)
    if not whole or processes < 1:
        raise ValueError(
            "Expected `processes` as a positive integer. "
            f"Received: processes={processes!r}"
        )
    pairs = {}
    for name, method in methods.items():
        pair = method if isinstance(method, tuple) else (method, None)
        if not isinstance(name, str) or len(pair) != 2:
            raise ValueError(
                "Expected `methods` as a dict from names to a learner or a "
                f"pair (learner, adapter). Received: {name!r}: {method!r}"
            )
        learner, adapter = pairs[name] = pair
        evaluation.check_arguments(
            learner, episodes, in_domain, num_episodes, adapter
        )
    return pairs


def _check_adapters(methods, episodes, folder, processes):
    """Adapters that a folder or another process can tell from others."""
    for name, (_, adapter) in methods.items():
        for dataset in episodes:
            each = evaluation.adapter_of(adapter, dataset)
            anonymous = "<" in getattr(each, "__qualname__", "")
            if anonymous and (folder is not None or processes > 1):
                raise ValueError(
                    "Expected adapters with a name of their own, functions of "
                    "a module or `Adapter`s, for results that are kept or "
                    "made in other processes. "
                    f"Received: {each.__qualname__!r} as that of {name!r}"
                )


def _report(methods, protocols, outcomes, in_domain, pairs):
    reports, calibration, parameters, costs = {}, {}, {}, {}
    for name, (learner, _) in methods.items():
        sets = {s: o for (m, s), o in outcomes.items() if m == name}
        sets = {s: sets[s] for s in protocols[name]["sets"]}  # In order.
        results = {
            s: FewShotResult(outcome["per_episode"])
            for s, outcome in sets.items()
        }
        reports[name] = FewShotReport(results, protocols[name], in_domain)
        calibration[name] = {s: o["calibration_error"] for s, o in sets.items()}
        costs[name] = {
            s: {k: outcome[k] for k in ("seconds", "peak_gb")}
            for s, outcome in sets.items()
        }
        # By the rule of SMAT, appendix C.3.
        parameters[name] = learner.parameter_counts()
    return BenchmarkReport(reports, calibration, parameters, costs, pairs)
