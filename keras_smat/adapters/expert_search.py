import dataclasses
import itertools

import keras
import numpy as np
from keras import ops

from keras_smat import functional as F
from keras_smat.adapters.adapter import Adapter
from keras_smat.adapters.gradient import check_count
from keras_smat.layers.checks import check_choice

LOSSES = ("leave_one_out", "resubstitution")
MAX_EXHAUSTIVE = 10


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        pattern: tuple of M bools, the experts that are on.
        loss: float, its loss on the support.
        visited: dict from patterns to losses, the start first.
    """

    pattern: tuple
    loss: float
    visited: dict


@keras.saving.register_keras_serializable("keras_smat")
class ExpertSearch(Adapter):
    """Chooses the experts of a task by forward passes of its support.

    A pattern `b` of M bits says which experts are on; they are merged with
    equal weights `b / sum(b)`. From the hypernetwork's rounded scores on, for
    a number of rounds, the bits are flipped one after the other. A flip that
    lowers the support loss is accepted with probability `acceptance`, another
    one with `1 - acceptance`. The best pattern that was seen wins. No expert
    at all gives the pretrained weights.

    The masks are evaluated once per task and kept, M times the memory of the
    weights that have experts; a candidate then costs a sum and one forward
    pass of the support. No pattern is evaluated twice.

    Args:
        rounds: int, R; 0 rounds the hypernetwork's scores. Defaults to `2`.
        acceptance: float in [0, 1]. Defaults to `1.0` (greedy).
        loss: `"leave_one_out"`: the cross-entropy of each support image
            against prototypes for which it did not vote (images of classes
            with one image do not count, unless all are such);
            `"resubstitution"`: against the prototypes of all, as in the
            paper, which favours patterns that merely spread the images.
            Defaults to `"leave_one_out"`.
        relaxed: bool. `True` keeps the soft scores `s`: the search starts at
            the learner's own merging weights, and a flip turns `s_m` into
            `1 - s_m`. Defaults to `False`.
        exhaustive: bool. `True` tries all `2^M` patterns, for M up to 10;
            `rounds` and `acceptance` have no effect. Defaults to `False`.
        seed: int, of the acceptance. Defaults to `0`.
        selection: see `Adapter`.

    Example:

    ```python
    adapter = keras_smat.ExpertSearch(rounds=2)
    model = learner.build_classifier(images, labels, adapter=adapter)
    ```

    Reference: SMAT algorithm 2 (gradient-free expert selection), for which
    neither the paper nor the released code gives R and the acceptance.
    """

    def __init__(
        self,
        rounds=2,
        acceptance=1.0,
        loss="leave_one_out",
        relaxed=False,
        exhaustive=False,
        seed=0,
        selection=None,
    ):
        super().__init__(selection)
        self.rounds = check_count("rounds", rounds)
        if not 0.0 <= acceptance <= 1.0:
            raise ValueError(
                "Expected `acceptance` in [0, 1]. "
                f"Received: acceptance={acceptance!r}"
            )
        self.acceptance = float(acceptance)
        self.loss = check_choice("loss", loss, LOSSES)
        self.relaxed = bool(relaxed)
        self.exhaustive = bool(exhaustive)
        self.seed = check_count("seed", seed)

    def __call__(self, learner, x, weights):
        updates, scores, found = self._search(learner, x)
        return learner.compiled_call(
            (type(self), "merge"),
            learner.experts.merge_updates,
            updates,
            self.merging_weights(found.pattern, scores),
        )

    def search(self, learner, x):
        """The search itself, for a look at what it did.

        Args:
            learner: learner with experts.
            x: dict of `support_images` and `support_labels`.

        Returns:
            `Found`: `pattern`, `loss` and all `visited` patterns.
        """
        return self._search(learner, x)[2]

    def merging_weights(self, pattern, scores):
        """Merging weights (M,) of a pattern.

        Args:
            pattern: M bools.
            scores: array of shape (M,), the hypernetwork's.
        """
        bits = np.array(pattern, bool)
        if self.relaxed:
            bits = np.where(bits == _round(scores), scores, 1.0 - scores)
        bits = bits.astype("float32")
        # A single expert keeps its score; no expert has nothing to divide.
        return bits if len(bits) == 1 else bits / max(bits.sum(), 1e-8)

    def _search(self, learner, x):
        self._check(learner)
        names = ("support_images", "support_labels")
        x = {name: x[name] for name in names}
        key = (type(self), self.loss)
        scores = learner.compiled_call(
            (type(self), "scores"), learner.expert_scores, x
        )
        scores = ops.convert_to_numpy(scores)
        updates = learner.compiled_call(
            (type(self), "updates"), learner.experts.updates
        )

        def candidate(updates, merging_weights, x):
            return self._loss(learner, updates, merging_weights, x)

        visited = {}

        def loss_of(pattern):
            if pattern not in visited:
                merging_weights = self.merging_weights(pattern, scores)
                loss = learner.compiled_call(
                    key, candidate, updates, merging_weights, x
                )
                visited[pattern] = float(ops.convert_to_numpy(loss))
            return visited[pattern]

        start = tuple(_round(scores).tolist())
        search = self._try_all if self.exhaustive else self._flip
        search(start, loss_of)
        # The first of equals: the start, or what was reached by fewer flips.
        best = min(visited, key=lambda p: (np.isnan(visited[p]), visited[p]))
        return updates, scores, Found(best, visited[best], visited)

    def _flip(self, pattern, loss_of):
        rng = np.random.default_rng(self.seed)
        current = loss_of(pattern)
        for _ in range(self.rounds):
            for m in range(len(pattern)):
                flipped = pattern[:m] + (not pattern[m],) + pattern[m + 1 :]
                lower = loss_of(flipped) < current
                chance = self.acceptance if lower else 1.0 - self.acceptance
                if rng.random() < chance:
                    pattern, current = flipped, loss_of(flipped)

    def _try_all(self, pattern, loss_of):
        loss_of(pattern)
        for other in itertools.product((False, True), repeat=len(pattern)):
            loss_of(other)

    def _loss(self, learner, updates, merging_weights, x):
        weights = learner.experts.merge_updates(updates, merging_weights)
        features = learner.embed(weights, x["support_images"])
        labels = x["support_labels"]
        if self.loss == "leave_one_out":
            logits, valid = learner.head.leave_one_out(
                features, labels, learner.max_way
            )
        else:
            prototypes, present = F.class_prototypes(
                features, labels, learner.max_way
            )
            logits, valid = learner.head(features, prototypes, present), None
            valid = labels >= 0
        return F.cross_entropy(logits, labels, valid)

    def _check(self, learner):
        if not hasattr(learner, "experts"):
            raise ValueError(
                "ExpertSearch needs a learner with experts, such as `SMAT`. "
                f"Received: {type(learner).__name__}"
            )
        num_experts = learner.experts.num_experts
        if self.exhaustive and num_experts > MAX_EXHAUSTIVE:
            raise ValueError(
                f"Expected at most {MAX_EXHAUSTIVE} experts for an exhaustive "
                f"search. Received: {num_experts}, that is "
                f"2^{num_experts} patterns"
            )


def _round(scores):
    return np.asarray(scores) > 0.5
