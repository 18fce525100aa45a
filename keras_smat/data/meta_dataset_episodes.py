"""The sampler of Meta-Dataset."""

import copy
import math

import numpy as np

from keras_smat.checks import check_integer
from keras_smat.data.arguments import check_range
from keras_smat.data.arguments import check_sizes
from keras_smat.data.arguments import check_way
from keras_smat.data.samplers import EpisodeSampler
from keras_smat.data.samplers import reachable


class MetaDatasetEpisodes(EpisodeSampler):
    """Episodes of Meta-Dataset: variable way, imbalanced variable shots.

    For the classes `c` of an episode, with `n_c` images each:

    - way: uniform in its range, ending at the number of classes there are;
    - queries per class: `q = min(n_query, min_c n_c // 2)`, the same for all;
    - `r_c = n_c - q` images remain. The support size is
      `S = min(max_support, sum_c floor(beta * min(max_class_support, r_c) +
      1))`, with one `beta ~ U[0, 1)` per episode;
    - shots: `k_c = min(floor(w_c * (S - way)) + 1, r_c)`, where the `w_c`
      are proportional to `n_c * exp(U(*log_weights))` and sum to 1.

    If the source has a `hierarchy`, the classes come from one of its groups,
    drawn uniformly. For its rule `"uniform"`, the way ends at the size of the
    group. For its rule `"all"`, groups of at least `way[0]` and at most
    `max_span` classes take part, and an episode has all classes of the group,
    or `way[1]` random ones of a larger one.

    Args:
        way: Integer or `(low, high)`, both included. Defaults to `(5, 50)`.
        shot: Integer or `(low, high)`, both included: all classes of an
            episode have this many support images, and up to `n_query` of the
            others become queries. Defaults to `None`, shots as above.
        n_query: Integer, most query images per class. Defaults to 10.
        max_support: Integer, most support images per episode where `shot` is
            `None`. Defaults to 500.
        max_class_support: Integer, most support images that one class
            contributes to the support size. Defaults to 100.
        log_weights: Pair of floats, range of the logarithm of a class's
            weight. Defaults to `(ln 0.5, ln 2)`.
        max_span: Integer, most classes below a node of a graph that takes
            part. Defaults to 392.
        min_class_size: Integer, classes with fewer images are left out.
            Defaults to 0.
        use_hierarchy: Boolean, whether the hierarchy of a source that has one
            is used. It goes neither with a fixed way nor with
            `min_class_size`. Defaults to `True`.

    Raises:
        ValueError: if a range is empty or starts too low, or `max_support` is
            smaller than the largest way; by `EpisodeDataset`, if the source
            does not fit: a class with too few images, fewer classes than
            `way`, or a hierarchy where none can be used.

    Example:

    ```python
    import numpy as np
    from keras_smat import data

    images = np.zeros((600, 32, 32, 3), "uint8")
    source = data.ArraySource(images, np.repeat(np.arange(20), 30))
    episodes = data.EpisodeDataset(source, data.MetaDatasetEpisodes())
    len(episodes.indices(0)["classes"])  # 5 to 20
    ```

    Reference: Triantafillou et al., "Meta-Dataset", ICLR 2020, section 3.2
    and appendix.
    """

    def __init__(
        self,
        way=(5, 50),
        shot=None,
        n_query=10,
        max_support=500,
        max_class_support=100,
        log_weights=(math.log(0.5), math.log(2.0)),
        max_span=392,
        min_class_size=0,
        use_hierarchy=True,
    ):
        self.way = check_range("way", way, 2)
        self.shot = None if shot is None else check_range("shot", shot, 1)
        self.n_query = check_integer("n_query", n_query, 1)
        self.max_class_support = check_integer(
            "max_class_support", max_class_support, 1
        )
        self.max_support = check_integer("max_support", max_support, 1)
        if self.shot is not None:
            self.max_support = self.way[1] * self.shot[1]
        elif max_support < self.way[1]:
            raise ValueError(
                "Expected `max_support` of at least the largest way. "
                f"Received: max_support={max_support}, way={self.way}."
            )
        self.log_weights = _interval("log_weights", log_weights)
        self.max_span = check_integer("max_span", max_span, 1)
        self.min_class_size = check_integer("min_class_size", min_class_size, 0)
        self.use_hierarchy = bool(use_hierarchy)
        self._hierarchy = None

    @property
    def max_way(self):
        return self.way[1]

    @property
    def max_query(self):
        return self.way[1] * self.n_query

    @property
    def min_support(self):
        return self.way[0] * (self.shot[0] if self.shot else 1)

    @property
    def min_query(self):
        return self.way[0]

    def bind(self, source):
        bound = copy.copy(self)
        bound._hierarchy = source.hierarchy if self.use_hierarchy else None
        return bound

    def within(self, class_sizes):
        if self._hierarchy is not None:
            return self  # Its groups decide.
        bound = copy.copy(self)
        bound.way = reachable(self.way, class_sizes)
        most = min(self.max_class_support, int(np.max(class_sizes, initial=0)))
        most = self.shot[1] if self.shot else most
        bound.max_support = min(self.max_support, bound.way[1] * most)
        return bound

    def plan(self, rng, class_sizes, query_sizes=None):
        classes = self._classes(rng, class_sizes)
        sizes = class_sizes[classes]
        shots = None
        if self.shot is not None:
            shot = rng.integers(*self.shot, endpoint=True)
            shots = np.full(len(classes), shot)
        if query_sizes is not None:
            left = query_sizes[classes].min()
        elif shots is None:
            left = sizes.min() // 2
        else:
            left = sizes.min() - shot
        queries = min(self.n_query, left)
        if shots is None:
            remaining = sizes if query_sizes is not None else sizes - queries
            shots = self._shots(rng, sizes, remaining)
        return classes, shots, np.full(len(classes), queries)

    def check(self, class_sizes, class_names, query_sizes=None):
        kept = np.flatnonzero(class_sizes >= self.min_class_size)
        if self._hierarchy is not None:
            self._check_hierarchy(len(class_sizes))
        else:
            check_way("way", self.way[0], kept)
        class_sizes = class_sizes[kept]
        class_names = [class_names[c] for c in kept]
        shot = self.shot[1] if self.shot else 1
        if query_sizes is None:
            reason = f"{shot} support images and a query"
            check_sizes(class_sizes, class_names, shot + 1, reason)
        else:
            reason = f"{shot} support images"
            check_sizes(class_sizes, class_names, shot, reason)
            check_sizes(query_sizes[kept], class_names, 1, "a query")

    def protocol(self):
        hierarchy = self._hierarchy and self._hierarchy.fingerprint()
        return {**super().protocol(), "hierarchy": hierarchy}

    def _classes(self, rng, class_sizes):
        low, high = self.way
        if self._hierarchy is None:
            pool = np.flatnonzero(class_sizes >= self.min_class_size)
        else:
            pool = self._hierarchy.groups[rng.choice(self._groups())]
        way = min(high, len(pool))
        if self._hierarchy is None or self._hierarchy.rule == "uniform":
            way = rng.integers(low, way, endpoint=True)
        return rng.choice(pool, way, replace=False)

    def _shots(self, rng, sizes, remaining):
        most = np.minimum(self.max_class_support, remaining)
        total = np.floor(rng.random() * most + 1).sum()
        total = min(self.max_support, total)
        weights = sizes * np.exp(rng.uniform(*self.log_weights, len(sizes)))
        weights /= weights.sum()
        shots = np.floor(weights * (total - len(sizes))).astype("int64") + 1
        return np.minimum(shots, remaining)

    def _groups(self):
        """Numbers of the groups of the hierarchy that take part."""
        sizes = self._hierarchy.sizes
        if self._hierarchy.rule == "uniform":
            return np.arange(len(sizes))
        return np.flatnonzero((self.way[0] <= sizes) & (sizes <= self.max_span))

    def _check_hierarchy(self, num_classes):
        low, high = self.way
        sizes = self._hierarchy.sizes
        if low == high or self.min_class_size:
            raise ValueError(
                "Expected a range for `way` and no `min_class_size` for a "
                "source with a hierarchy; `use_hierarchy=False` leaves it "
                f"out. Received: way={self.way}, "
                f"min_class_size={self.min_class_size}."
            )
        largest = max(group.max() for group in self._hierarchy.groups)
        if largest >= num_classes:
            raise ValueError(
                "Expected a hierarchy of the source's classes, "
                f"0..{num_classes - 1}. Received: a hierarchy with class "
                f"{largest}."
            )
        if not len(self._groups()):
            raise ValueError(
                f"Expected a group of {low} to {self.max_span} classes in the "
                f"source's hierarchy. Received: way={self.way}, max_span="
                f"{self.max_span} and groups of {np.unique(sizes)} classes."
            )
        if self._hierarchy.rule == "uniform":
            check_way("way", low, range(sizes.min()))


def _interval(name, ends):
    try:
        low, high = map(float, ends)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not -math.inf < low <= high < math.inf:
        raise ValueError(
            f"Expected `{name}` as (low, high) with low <= high. "
            f"Received: {name}={ends!r}."
        )
    return low, high
