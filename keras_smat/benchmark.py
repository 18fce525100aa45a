"""Several methods on the same episodes of several data sets."""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import tempfile
import threading
import time

import keras
import numpy as np

from keras_smat import evaluation
from keras_smat.benchmark_report import BenchmarkReport
from keras_smat.calibration import calibration_error
from keras_smat.report import FewShotReport
from keras_smat.report import FewShotResult
from keras_smat.report import write_text


def evaluate_benchmark(
    methods,
    episodes,
    in_domain=None,
    num_episodes=600,
    folder=None,
    processes=1,
    verbose="auto",
):
    """Compares learners and adapters, pair by pair, on replayed episodes.

    Every method sees the same episodes of every set. With a `folder`, each
    finished pair of method and set is kept there, and the same call again
    goes on where it was killed: the report it ends with is that of an
    undisturbed run, to the last digit. Seconds and memory are no part of that
    comparison: they stand in a file of their own.

    Args:
        methods: dict from the method's name to a `MetaLearner`, or to a pair
            `(learner, adapter)`; see `evaluate_few_shot` for adapters.
        episodes: dict from the set's name to a `data.Episodes`.
        in_domain: list of names of sets, as in `evaluate_few_shot`. Defaults
            to `None` (unknown).
        num_episodes: int, episodes of each set. Defaults to `600`.
        folder: str or path, made when it does not exist: where finished
            sets, `benchmark.json` and `benchmark.costs.json` go. Defaults to
            `None`: nothing is kept.
        processes: int. More than 1 spread methods and sets over new
            processes, which take seconds to start, need a script guarded by
            `if __name__ == "__main__":` and hold a learner each. Limit their
            threads (`OMP_NUM_THREADS`). Defaults to `1`, this process.
        verbose: `"auto"`, 0, 1 or 2: one progress bar over all pairs of
            method and set. `"auto"` becomes 1. Defaults to `"auto"`.

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
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(
            "Expected `verbose` as 'auto', 0, 1 or 2. "
            f"Received: verbose={verbose!r}"
        )
    protocols = {
        name: evaluation.describe(learner, episodes, num_episodes, adapter)
        for name, (learner, adapter) in methods.items()
    }
    folder = None if folder is None else pathlib.Path(folder)
    cells = _Cells(folder, _keys(methods, protocols))
    todo = cells.missing()
    bar = keras.utils.Progbar(
        len(cells.keys), verbose=1 if verbose == "auto" else int(verbose)
    )
    if verbose:
        bar.update(len(cells.keys) - len(todo))
    for cell, outcome in _outcomes(
        todo, methods, episodes, num_episodes, processes
    ):
        cells.keep(cell, outcome)
        if verbose:
            bar.add(1)
    report = _report(methods, protocols, cells.outcomes, in_domain)
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


class _Cells:
    """What is known of every pair of method and set, in a folder if any."""

    def __init__(self, folder, keys):
        self.folder = folder and folder / "sets"
        self.keys = keys
        self.outcomes = {}
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def missing(self):
        """Reads what is there; returns the pairs that are not."""
        if self.folder is not None:
            for cell, key in self.keys.items():
                if self._path(cell).exists():
                    found = json.loads(self._path(cell).read_text("utf-8"))
                    self._check(cell, key, found)
                    self.outcomes[cell] = found
        return [cell for cell in self.keys if cell not in self.outcomes]

    def keep(self, cell, outcome):
        outcome = {"key": self.keys[cell], **outcome}
        self.outcomes[cell] = outcome
        if self.folder is not None:
            write_text(self._path(cell), json.dumps(outcome) + "\n")

    def _path(self, cell):
        words = [re.sub(r"[^\w.+-]+", "_", word)[:40] for word in cell]
        digest = hashlib.sha256(repr(cell).encode()).hexdigest()[:8]
        return self.folder / f"{'.'.join(words)}.{digest}.json"

    def _check(self, cell, key, found):
        if found["key"] != key:
            raise ValueError(
                "Expected a folder that is empty or holds this benchmark. "
                f"Received: {str(self.folder.parent)!r} with results of "
                f"another learner, adapter or episodes as {cell[0]!r} on "
                f"{cell[1]!r}"
            )


def _keys(methods, protocols):
    """A digest per pair of method and set of all that decides its outcome."""
    keys = {}
    for name, (learner, _) in methods.items():
        protocol = dict(protocols[name])
        sets = protocol.pop("sets")
        protocol.pop("episodes_sha256")
        config = learner.get_config()
        # Both hold names that count up within a process.
        config = {
            k: v for k, v in config.items() if k not in ("backbone", "name")
        }
        stamp = evaluation.plain([protocol, config])
        digest = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode())
        for weight in learner.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        for dataset, settings in sets.items():
            own = digest.copy()
            own.update(json.dumps(settings, sort_keys=True).encode())
            keys[name, dataset] = own.hexdigest()[:16]
    return keys


def _outcomes(todo, methods, episodes, num_episodes, processes):
    """Yields `(cell, outcome)`, here or from other processes."""
    if processes == 1 or len(todo) < 2:
        for name, dataset in todo:
            learner, adapter = methods[name]
            yield (
                (name, dataset),
                _measure(learner, adapter, episodes[dataset], num_episodes),
            )
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, _ in todo:
            learner, _ = methods[name]
            if id(learner) not in paths:
                path = os.path.join(folder, f"{len(paths)}.keras")
                learner.save(path)
                paths[id(learner)] = path
        with concurrent.futures.ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("spawn"),
            _end_with_parent,
            (os.getpid(),),
        ) as pool:
            futures = {}
            for name, dataset in todo:
                learner, adapter = methods[name]
                future = pool.submit(
                    _measure_saved,
                    paths[id(learner)],
                    adapter,
                    episodes[dataset],
                    num_episodes,
                )
                futures[future] = name, dataset
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()


def _end_with_parent(parent):
    """Lets no worker outlive a parent that was killed."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_loaded = {}  # In a worker: the last learner, by its file.


def _measure_saved(path, adapter, dataset, num_episodes):
    if path not in _loaded:
        _loaded.clear()
        _loaded[path] = keras.saving.load_model(path)
    return _measure(_loaded[path], adapter, dataset, num_episodes)


def _measure(learner, adapter, dataset, num_episodes):
    """Accuracies, calibration and costs of one method on one set."""
    _forget_peak()
    accuracies, seconds = [], []
    probabilities, answers = [], []
    for i in range(num_episodes):
        episode = dataset[i]
        start = time.perf_counter()
        logits, labels = evaluation.predict_episode(learner, episode, adapter)
        seconds.append(time.perf_counter() - start)
        accuracies.append(float(np.mean(logits.argmax(axis=-1) == labels)))
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        total = exponentials.sum(axis=-1, keepdims=True)
        probabilities.append(exponentials / total)
        answers.append(labels)
    return {
        "per_episode": accuracies,
        "calibration_error": calibration_error(
            np.concatenate(probabilities), np.concatenate(answers)
        ),
        # The median, since the first episodes of a shape compile.
        "seconds": round(float(np.median(seconds)), 6),
        "peak_gb": _peak_gb(),
    }


def _forget_peak():
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # Not Linux, or not allowed: the peak is that of the process.


def _peak_gb():
    """Peak of the process's resident memory, `None` where unknown."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return None
    return round(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e6, 3)


def _report(methods, protocols, outcomes, in_domain):
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
        # By the rule of SMAT, appendix C.3, where the learner knows it.
        count = getattr(learner, "parameter_counts", None)
        if count is not None:
            parameters[name] = count()
    return BenchmarkReport(reports, calibration, parameters, costs)
