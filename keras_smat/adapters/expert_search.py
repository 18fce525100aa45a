import dataclasses
import itertools

import keras
import numpy as np
from keras import ops

from keras_smat import functional as F
from keras_smat.adapters.adapter import Adapter
from keras_smat.checks import check_choice
from keras_smat.checks import check_integer
from keras_smat.checks import check_number

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
    pass of the support. No pattern is evaluated twice. A flip waits for what
    became of the last one; the patterns of an exhaustive search are queued
    without waiting, which keeps an accelerator busy.

    Args:
        rounds: int, R; 0 rounds the hypernetwork's scores. Defaults to `2`.
        acceptance: float in [0, 1]. Defaults to `1.0` (greedy).
        loss: `"leave_one_out"`: the cross-entropy of each support image
            against prototypes for which it did not vote (images of classes
            with one image do not count; if all are such, it is the other
            loss);
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
        self.rounds = check_integer("rounds", rounds, 0)
        self.acceptance = check_number("acceptance", acceptance, 0.0, 1.0)
        self.loss = check_choice("loss", loss, LOSSES)
        self.relaxed = bool(relaxed)
        self.exhaustive = bool(exhaustive)
        self.seed = check_integer("seed", seed, 0)

    def __call__(self, learner, x, weights):
        updates, scores, found = self._search(learner, x)
        return learner.compiled_call(
            (type(self), "merge"),
            learner.experts.merge_updates,
            updates,
            self.merging_weights(found.pattern, scores, learner.rounding),
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

    def merging_weights(self, pattern, scores, rounding=0.5):
        """Merging weights (M,) of a pattern.

        Args:
            pattern: M bools.
            scores: array of shape (M,), the hypernetwork's.
            rounding: float, above which score an expert is on: that of the
                learner. Defaults to `0.5`.
        """
        bits = np.array(pattern, bool)
        if self.relaxed:
            bits = np.where(
                bits == _round(scores, rounding), scores, 1 - scores
            )
        bits = bits.astype("float32")
        # A single expert keeps its score; no expert has nothing to divide.
        return bits if len(bits) == 1 else bits / max(bits.sum(), 1e-8)

    def _search(self, learner, x):
        self.check(learner)
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

        def losses_of(patterns):
            todo = [p for p in dict.fromkeys(patterns) if p not in visited]
            losses = [
                learner.compiled_call(
                    key,
                    candidate,
                    updates,
                    self.merging_weights(pattern, scores, learner.rounding),
                    x,
                )
                for pattern in todo
            ]
            for pattern, loss in zip(todo, losses):
                visited[pattern] = float(ops.convert_to_numpy(loss))
            return [visited[pattern] for pattern in patterns]

        start = tuple(_round(scores, learner.rounding).tolist())
        if self.exhaustive:
            every = itertools.product((False, True), repeat=len(start))
            losses_of([start, *every])
        else:
            self._flip(start, losses_of)
        # The first of equals: the start, or what was reached by fewer flips.
        best = min(visited, key=lambda p: (np.isnan(visited[p]), visited[p]))
        return updates, scores, Found(best, visited[best], visited)

    def _flip(self, pattern, losses_of):
        rng = np.random.default_rng(self.seed)
        (current,) = losses_of([pattern])
        for _ in range(self.rounds):
            for m in range(len(pattern)):
                flipped = pattern[:m] + (not pattern[m],) + pattern[m + 1 :]
                (loss,) = losses_of([flipped])
                lower = loss < current
                chance = self.acceptance if lower else 1.0 - self.acceptance
                if rng.random() < chance:
                    pattern, current = flipped, loss

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

    def check(self, learner):
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


def _round(scores, rounding):
    return np.asarray(scores) > rounding
