"""Pairs of method and set: measured here or elsewhere, kept in a folder."""

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
from keras_smat.calibration import calibration_error
from keras_smat.files import write_text


class Cells:
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
            write_text(
                self._path(cell), json.dumps(outcome, allow_nan=False) + "\n"
            )

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


def keys(methods, protocols):
    """A digest per pair of method and set of all that decides its outcome."""
    keys = {}
    for name, (learner, adapter) in methods.items():
        protocol = dict(protocols[name])
        sets = protocol.pop("sets")
        for part in ("episodes_sha256", "adapter", "backbone"):
            protocol.pop(part)
        config = _without_counters(evaluation.plain(learner.get_config()))
        digest = hashlib.sha256(_bytes([protocol, config]))
        for weight in learner.get_weights():
            digest.update(_bytes([weight.shape, str(weight.dtype)]))
            digest.update(np.ascontiguousarray(weight).tobytes())
        for dataset, settings in sets.items():
            own = digest.copy()
            own.update(_bytes([settings, _identity(adapter, dataset)]))
            keys[name, dataset] = own.hexdigest()[:16]
    return keys


def _identity(adapter, dataset):
    adapter = evaluation.adapter_of(adapter, dataset)
    if adapter is None:
        return None
    kind = adapter if hasattr(adapter, "__qualname__") else type(adapter)
    protocol = evaluation.adapter_protocol(adapter)
    return [kind.__module__, kind.__qualname__, protocol]


def _without_counters(config):
    """Keras counts layers of one kind within a process: dense, dense_1, ..."""
    if isinstance(config, dict):
        return {k: _without_counters(v) for k, v in config.items()}
    if isinstance(config, list):
        return [_without_counters(v) for v in config]
    return re.sub(r"_\d+$", "", config) if isinstance(config, str) else config


def _bytes(value):
    return json.dumps(evaluation.plain(value), sort_keys=True).encode()


def outcomes(todo, methods, episodes, num_episodes, processes):
    """Yields `(cell, outcome)`, here or from other processes."""
    if processes == 1 or len(todo) < 2:
        for name, dataset in todo:
            learner, adapter = methods[name]
            adapter = evaluation.adapter_of(adapter, dataset)
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
                    evaluation.adapter_of(adapter, dataset),
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
    # A learner that draws at test time draws alike on every set, whatever
    # ran before: else a resumed run would differ.
    seeds = [(s, keras.ops.copy(s.value)) for s in learner._seed_states()]
    _forget_peak()
    try:
        runs = [_run(learner, dataset[i], adapter) for i in range(num_episodes)]
    finally:
        for seed, value in seeds:
            seed.assign(value)
    accuracies, probabilities, labels, seconds = zip(*runs)
    return {
        "per_episode": list(accuracies),
        "calibration_error": calibration_error(
            np.concatenate(probabilities), np.concatenate(labels)
        ),
        # The median, since the first episodes of a shape compile.
        "seconds": round(float(np.median(seconds)), 6),
        "peak_gb": _peak_gb(),
    }


def _run(learner, episode, adapter):
    """Accuracy, probabilities (Q, W), labels (Q,) and seconds."""
    start = time.perf_counter()
    logits, labels = evaluation.predict_episode(learner, episode, adapter)
    seconds = time.perf_counter() - start
    accuracy = float(np.mean(evaluation.right(logits, labels)))
    # What diverged says nothing about any class.
    finite = np.isfinite(logits).all(axis=-1, keepdims=True)
    logits = np.where(finite, logits, 0.0)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return accuracy, probabilities, labels, seconds


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
