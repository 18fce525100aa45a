import keras
import numpy as np
from keras import ops

from keras_smat.adapters.adapter import Adapter
from keras_smat.checks import check_integer


@keras.saving.register_keras_serializable("keras_smat")
class HeldOutSelection(Adapter):
    """Chooses among adapters within each task, on held-out support images.

    In fold k, every class with several images leaves out its k-th one: the
    learner and a candidate adapter see the rest, and the images left out are
    classified against the prototypes of the rest. The candidate with the most
    hits over the folds then adapts to the whole support; of equals,
    the first. Where no class has two images, nothing can be held out, and the
    first candidate is taken. No query and no label outside of the support is
    read. Costs `folds` adaptations per candidate.

    `select_adapter(hpo="support")` builds one, its first candidate doing
    nothing.

    Args:
        candidates: list of adapters, the most cautious first; `None` stands
            for no adaptation.
        folds: int, the most folds; classes with fewer images start anew.
            Defaults to `5`.
        selection: see `Adapter`.

    Example:

    ```python
    adapter = keras_smat.select_adapter(
        learner,
        keras_smat.FullFineTune(steps=2),
        learning_rates=[0.0, 1e-3],
        hpo="support",
    )
    model = learner.build_classifier(images, labels, adapter=adapter)
    ```
    """

    def __init__(self, candidates, folds=5, selection=None):
        super().__init__(selection)
        if not candidates:
            raise ValueError(
                "Expected at least one candidate. "
                f"Received: candidates={candidates!r}"
            )
        self.candidates = list(candidates)
        self.folds = check_integer("folds", folds, 1)

    def check(self, learner):
        for candidate in self.candidates:
            check = getattr(candidate, "check", None)
            if check is not None:
                check(learner)

    def __call__(self, learner, x, weights):
        best = self.candidates[np.argmax(self.hits(learner, x))]
        return list(weights) if best is None else best(learner, x, weights)

    def hits(self, learner, x):
        """How many held-out images each candidate gets right: list of int."""
        labels = ops.convert_to_numpy(x["support_labels"])
        rank = np.zeros_like(labels)  # which image of its class each one is
        for label in np.unique(labels):
            rank[labels == label] = np.arange((labels == label).sum())
        shots = np.bincount(labels[labels >= 0])
        several = (labels >= 0) & (shots[labels] > 1)
        hits = np.zeros(len(self.candidates), int)
        for fold in range(min(self.folds, shots.max())):
            held = several & (rank == fold % shots[labels])
            if held.any():
                hits += self._fold(learner, x, labels, held)
        return hits

    def _fold(self, learner, x, labels, held):
        rest = {
            "support_images": x["support_images"],
            "support_labels": np.where(held, -1, labels).astype("int32"),
        }
        weights = learner.task_weights(rest)
        episode = {**rest, "query_images": x["support_images"]}
        hits = []
        for candidate in self.candidates:
            adapted = weights
            if candidate is not None:
                adapted = candidate(learner, rest, weights)
            logits = learner.compiled_call(
                "query_logits", learner.query_logits, adapted, episode
            )
            logits = ops.convert_to_numpy(logits)[held]
            right = logits.argmax(axis=-1) == labels[held]
            # Rows of NaN, where a rate was too high, are hits of class 0.
            hits.append((right & np.isfinite(logits).all(axis=-1)).sum())
        return np.array(hits)

    def get_config(self):
        config = super().get_config()
        config["candidates"] = [
            keras.saving.serialize_keras_object(c) for c in self.candidates
        ]
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["candidates"] = [
            keras.saving.deserialize_keras_object(c)
            if isinstance(c, dict)
            else c
            for c in config["candidates"]
        ]
        return cls(**config)
