"""Episodes of several domains in one dataset."""

import copy

import numpy as np

from keras_smat.data.arguments import some
from keras_smat.data.base import Episodes
from keras_smat.data.dataset import EpisodeDataset


def mix(datasets, weights=None, num_episodes=None, seed=0, **kwargs):
    """Mixes the episodes of several domains.

    Each episode comes from one domain, drawn by the weights; the domain's
    own seed and epoch play no part. All domains pad to the same sizes, the
    buckets of all of them together.

    Args:
        datasets: Dict from the domain's name to its `EpisodeDataset`. They
            are not changed.
        weights: Dict from every domain's name to a float, how often it is
            drawn relative to the others. Defaults to `None`: all alike.
        num_episodes: Integer, episodes per epoch. Defaults to `None`, the
            sum over the domains.
        seed: Non-negative integer. Defaults to 0.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size`, as
            in `EpisodeDataset`; those of the domains are not used.

    Returns:
        A dataset with the interface of `EpisodeDataset`, whose `domain(i)`
        is the name of an episode's domain.

    Raises:
        ValueError: if there is no domain, the images of the domains differ
            in shape, or the weights have other names, are negative or all
            zero.

    Example:

    ```python
    import numpy as np
    from keras_smat import data

    images = np.zeros((100, 32, 32, 3), "uint8")
    source = data.ArraySource(images, np.repeat(np.arange(5), 20))
    easy = data.EpisodeDataset(source, data.FixedEpisodes(2, 5, 5))
    hard = data.EpisodeDataset(source, data.FixedEpisodes(5, 1, 5))
    episodes = data.mix({"easy": easy, "hard": hard}, {"easy": 1, "hard": 3})
    len(episodes), episodes.domain(0)  # 1200, "easy" or "hard"
    ```
    """
    return MixedEpisodes(datasets, weights, num_episodes, seed, **kwargs)


class MixedEpisodes(Episodes):
    """The dataset that `mix` returns; see there for the arguments."""

    def __init__(
        self, datasets, weights=None, num_episodes=None, seed=0, **kwargs
    ):
        single = isinstance(datasets, dict) and all(
            isinstance(ds, EpisodeDataset) for ds in datasets.values()
        )
        if not datasets or not single:
            raise ValueError(
                "Expected a dict from names to `EpisodeDataset`, at least "
                f"one. Received: datasets={datasets!r}."
            )
        shapes = {name: ds.image_shape for name, ds in datasets.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                "Expected images of one shape (H, W, C) in all domains. "
                f"Received: {shapes}."
            )
        if num_episodes is None:
            num_episodes = sum(len(ds) for ds in datasets.values())
        super().__init__(num_episodes, seed, **kwargs)
        self.names = list(datasets)
        self.probabilities = _probabilities(self.names, weights)
        self.image_shape = shapes[self.names[0]]
        self.max_way = max(ds.max_way for ds in datasets.values())
        self.support_buckets = _union(datasets, "support_buckets")
        self.query_buckets = _union(datasets, "query_buckets")
        self.datasets = {}
        for name, dataset in datasets.items():
            dataset = copy.copy(dataset)
            dataset.support_buckets = self.support_buckets
            dataset.query_buckets = self.query_buckets
            self.datasets[name] = dataset

    def domain(self, index):
        """Returns the name of episode `index`'s domain."""
        return self._pick(self._rng(self.epoch, self._check_index(index)))

    def draw(self, rng):
        name = self._pick(rng)
        return {"domain": name, **self.datasets[name].draw(rng)}

    def load_episode(self, indices, rng=None):
        return self.datasets[indices["domain"]].load_episode(indices, rng)

    def sources(self):
        domains = self.datasets.items()
        return {name: ds.sources()[""] for name, ds in domains}

    def protocol(self):
        return {
            "domains": {n: d.protocol() for n, d in self.datasets.items()},
            "probabilities": dict(zip(self.names, self.probabilities)),
            "num_episodes": self.num_episodes,
            "seed": self.seed,
        }

    def _pick(self, rng):
        return self.names[rng.choice(len(self.names), p=self.probabilities)]


def _union(datasets, name):
    sizes = {size for ds in datasets.values() for size in getattr(ds, name)}
    return tuple(sorted(sizes))


def _probabilities(names, weights):
    if weights is None:
        weights = dict.fromkeys(names, 1)
    if set(weights) != set(names):
        raise ValueError(
            f"Expected one weight for each domain, {some(names)}. "
            f"Received: weights for {some(list(weights))}."
        )
    values = np.array([weights[name] for name in names], "float64")
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError(
            "Expected weights of at least 0, not all zero. "
            f"Received: weights={weights}."
        )
    return (values / values.sum()).tolist()
