"""Samplers decide how many classes and images an episode has, and which."""

import copy
import dataclasses

import numpy as np

from keras_smat.checks import check_integer
from keras_smat.data.arguments import check_range
from keras_smat.data.arguments import check_sizes
from keras_smat.data.arguments import check_way


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeIndices:
    """What a sampler drew.

    Args:
        classes: Integer array of shape `(way,)`, class indices by label.
        support: List of `way` integer arrays, positions within the class.
        query: List of `way` integer arrays, positions within the class.
    """

    classes: np.ndarray
    support: list
    query: list


class EpisodeSampler:
    """Base class of all samplers.

    A sampler knows class sizes, never images. A subclass writes `plan` (how
    many of what) and `check`, and sets the three bounds; `sample` then draws
    the images without replacement, support and query disjoint.

    Attributes:
        max_way: Integer, the most classes of any episode.
        max_support: Integer, the most support images of any episode.
        max_query: Integer, the most query images of any episode.
        min_support, min_query: Integers, the fewest images, so that no
            padding size is below. Default to 1.
    """

    min_support = 1
    min_query = 1

    def bind(self, source):
        """Returns the sampler to use for a source.

        A sampler that needs to know more than class sizes returns a copy of
        itself that holds it. `EpisodeDataset` calls this.

        Args:
            source: `ImageSource`.
        """
        return self

    def within(self, class_sizes):
        """Returns the sampler with bounds that these classes can reach.

        It draws the same episodes; its smaller bounds spare padding.
        `EpisodeDataset` calls this.

        Args:
            class_sizes: Integer array of shape `(classes,)`.
        """
        return self

    def plan(self, rng, class_sizes, query_sizes=None):
        """Draws the classes and their image counts.

        Args:
            rng: `numpy.random.Generator`, the only source of randomness.
            class_sizes: Integer array of shape `(classes,)`.
            query_sizes: Integer array of shape `(classes,)` if the queries
                come from other images. Defaults to `None`: support and
                query share the images of `class_sizes`.

        Returns:
            A tuple of three integer arrays of shape `(way,)`: class indices,
            support images per class, query images per class.
        """
        raise NotImplementedError

    def check(self, class_sizes, class_names, query_sizes=None):
        """Raises a `ValueError` if some episode could not be drawn.

        Args:
            class_sizes, query_sizes: As in `plan`.
            class_names: List of strings, for the error.
        """
        raise NotImplementedError

    def sample(self, rng, class_sizes, query_sizes=None):
        """Draws one episode as `EpisodeIndices`; arguments as `plan`."""
        classes, shots, queries = self.plan(rng, class_sizes, query_sizes)
        support, query = [], []
        for c, k, q in zip(classes, shots, queries):
            if query_sizes is None:
                drawn = rng.choice(class_sizes[c], k + q, replace=False)
                support.append(drawn[:k])
                query.append(drawn[k:])
            else:
                support.append(rng.choice(class_sizes[c], k, replace=False))
                query.append(rng.choice(query_sizes[c], q, replace=False))
        return EpisodeIndices(classes, support, query)

    def protocol(self):
        """Returns the settings as a dict, for the stamp on a report."""
        return {"name": type(self).__name__, **self._settings()}

    def _settings(self):
        values = vars(self).items()
        return {k: v for k, v in values if not k.startswith("_")}

    def __repr__(self):
        settings = (f"{k}={v!r}" for k, v in self._settings().items())
        return f"{type(self).__name__}({', '.join(settings)})"


class FixedEpisodes(EpisodeSampler):
    """Episodes of one size: `n_way` classes, `n_shot` + `n_query` images each.

    Args:
        n_way: Integer, classes per episode, at least 2.
        n_shot: Integer, support images per class.
        n_query: Integer, query images per class.

    Example:

    ```python
    import numpy as np
    from keras_smat import data

    sampler = data.FixedEpisodes(n_way=5, n_shot=1, n_query=15)
    drawn = sampler.sample(np.random.default_rng(0), np.full(20, 100))
    drawn.classes.shape  # (5,)
    ```
    """

    def __init__(self, n_way, n_shot, n_query):
        self.n_way = check_integer("n_way", n_way, 2)
        self.n_shot = check_integer("n_shot", n_shot, 1)
        self.n_query = check_integer("n_query", n_query, 1)

    @property
    def max_way(self):
        return self.n_way

    @property
    def max_support(self):
        return self.n_way * self.n_shot

    @property
    def max_query(self):
        return self.n_way * self.n_query

    min_support = max_support  # one size: no smaller padding is ever used
    min_query = max_query

    def plan(self, rng, class_sizes, query_sizes=None):
        classes = rng.choice(len(class_sizes), self.n_way, replace=False)
        return (
            classes,
            np.full(self.n_way, self.n_shot),
            np.full(self.n_way, self.n_query),
        )

    def check(self, class_sizes, class_names, query_sizes=None):
        check_way("n_way", self.n_way, class_sizes)
        shot, query = f"n_shot={self.n_shot}", f"n_query={self.n_query}"
        if query_sizes is None:
            need = self.n_shot + self.n_query
            check_sizes(class_sizes, class_names, need, f"{shot} + {query}")
        else:
            check_sizes(class_sizes, class_names, self.n_shot, shot)
            check_sizes(query_sizes, class_names, self.n_query, query)


class VariableEpisodes(EpisodeSampler):
    """Episodes whose way and shots vary, for arrays and folders.

    The way is uniform in its range, ending at the number of classes there
    are. Every class then has `q = min(n_query, smallest class // 2)` queries
    and its own number of shots, uniform in its range and at most the class
    size less `q`, so a small class can have fewer shots than the range says.
    Where `way * shot` could exceed `max_support`, the shot range ends earlier.

    Args:
        way: Integer or `(low, high)`, both included. Defaults to `(5, 50)`.
        shot: Integer or `(low, high)`, both included, images per class.
            Defaults to `(1, 10)`.
        n_query: Integer, most query images per class. Defaults to 10.
        max_support: Integer, most support images per episode. Defaults to
            500.

    Raises:
        ValueError: if a range is empty or starts too low, or `max_support`
            is too small for the largest way at the lowest shot.

    Example:

    ```python
    import numpy as np
    from keras_smat import data

    sampler = data.VariableEpisodes(way=(2, 10), shot=(1, 5))
    drawn = sampler.sample(np.random.default_rng(0), np.full(20, 100))
    [len(s) for s in drawn.support]  # 1 to 5 images for each class
    ```
    """

    def __init__(self, way=(5, 50), shot=(1, 10), n_query=10, max_support=500):
        self.way = check_range("way", way, 2)
        self.shot = check_range("shot", shot, 1)
        self.n_query = check_integer("n_query", n_query, 1)
        least = self.way[1] * self.shot[0]
        check_integer("max_support", max_support, 1)
        if max_support < least:
            raise ValueError(
                f"Expected `max_support` of at least {least}, the largest way "
                f"times the lowest shot. Received: max_support={max_support}, "
                f"way={self.way}, shot={self.shot}."
            )
        self.max_support = int(min(max_support, self.way[1] * self.shot[1]))

    @property
    def max_way(self):
        return self.way[1]

    @property
    def max_query(self):
        return self.way[1] * self.n_query

    def within(self, class_sizes):
        bound = copy.copy(self)
        bound.way = reachable(self.way, class_sizes)
        most = bound.way[1] * self.shot[1]
        bound.max_support = min(self.max_support, most)
        return bound

    def plan(self, rng, class_sizes, query_sizes=None):
        most = min(self.way[1], len(class_sizes))
        way = rng.integers(self.way[0], most, endpoint=True)
        classes = rng.choice(len(class_sizes), way, replace=False)
        sizes = class_sizes[classes]
        if query_sizes is None:
            queries = min(self.n_query, sizes.min() // 2)
            sizes = sizes - queries
        else:
            queries = min(self.n_query, query_sizes[classes].min())
        high = min(self.shot[1], self.max_support // way)
        shots = rng.integers(self.shot[0], high, size=way, endpoint=True)
        return classes, np.minimum(shots, sizes), np.full(way, queries)

    def check(self, class_sizes, class_names, query_sizes=None):
        check_way("way", self.way[0], class_sizes)
        if query_sizes is None:
            check_sizes(class_sizes, class_names, 2, "a support and a query")
        else:
            check_sizes(class_sizes, class_names, 1, "a support")
            check_sizes(query_sizes, class_names, 1, "a query")


def reachable(way, class_sizes):
    """The range `way`, ending at the number of classes there are."""
    low, high = way
    return low, max(low, min(high, len(class_sizes)))
