"""Episodes of one source as a Keras dataset."""

import numpy as np

from keras_smat.checks import check_integer
from keras_smat.data.arguments import some
from keras_smat.data.augmentation import augmented_shape
from keras_smat.data.augmentation import describe_augmentation
from keras_smat.data.base import Episodes
from keras_smat.data.samplers import EpisodeSampler
from keras_smat.data.sources import ClassIndex
from keras_smat.data.sources import ImageSource


class EpisodeDataset(Episodes):
    """Few-shot episodes of one source.

    Support and query are padded to one of a few sizes, the buckets, so that
    a compiled train step sees few shapes.

    Args:
        source: `ImageSource`.
        sampler: `EpisodeSampler`.
        num_episodes: Integer, episodes per epoch. Defaults to 600.
        seed: Non-negative integer. Defaults to 0.
        support_buckets: List of integers, support sizes to pad to. Defaults
            to `None`: the sampler's largest support, its half and its
            quarter; for episodes of one size that size, without padding.
        query_buckets: List of integers, the same for the queries. Defaults
            to `None`.
        augment: Callable `(images, rng) -> images` on uint8 arrays, such as
            `MetaTrainAugmentation`. If it changes the size of the images it
            has an attribute `image_size`. Defaults to `None`.
        query_source: `ImageSource` with the class names of `source`, in any
            order, from which the queries come. Defaults to `None`: support
            and query are different images of `source`.
        workers: Integer, how many background workers prepare the next
            episodes. Defaults to 0: none.
        use_multiprocessing: Boolean, whether the workers are processes.
            These take seconds to start, need a script guarded by
            `if __name__ == "__main__":`, and use the cores better than
            threads. Defaults to `False`, threads.
        max_queue_size: Integer, episodes prepared ahead and held in memory.
            Defaults to 10.

    Raises:
        ValueError: if the source has too few classes or images for the
            sampler, the two sources do not fit, or a number is out of range.

    Example:

    ```python
    import numpy as np
    from keras_smat import data

    images = np.zeros((200, 32, 32, 3), "uint8")
    source = data.ArraySource(images, np.repeat(np.arange(10), 20))
    sampler = data.FixedEpisodes(n_way=5, n_shot=1, n_query=3)
    episodes = data.EpisodeDataset(source, sampler, num_episodes=100, seed=0)
    x, y, sample_weight = episodes[0]
    x["support_images"].shape  # (5, 32, 32, 3)
    ```
    """

    def __init__(
        self,
        source,
        sampler,
        num_episodes=600,
        seed=0,
        support_buckets=None,
        query_buckets=None,
        augment=None,
        query_source=None,
        workers=0,
        use_multiprocessing=False,
        max_queue_size=10,
    ):
        super().__init__(
            num_episodes,
            seed,
            workers=workers,
            use_multiprocessing=use_multiprocessing,
            max_queue_size=max_queue_size,
        )
        if not isinstance(source, ImageSource):
            raise ValueError(
                "Expected `source` as an `ImageSource`, such as "
                "`ArraySource(images, labels)`. "
                f"Received: source of type {type(source).__name__}."
            )
        if not isinstance(sampler, EpisodeSampler):
            raise ValueError(
                "Expected `sampler` as an `EpisodeSampler`, such as "
                "`FixedEpisodes(n_way=5, n_shot=5, n_query=15)`. "
                f"Received: sampler={sampler!r}."
            )
        if query_source is not None:
            query_source = align(query_source, source)
        self.source = source
        sampler = sampler.bind(source).within(source.class_sizes)
        self.sampler = sampler
        self.augment = augment
        self.query_source = query_source
        sampler.check(source.class_sizes, source.class_names, self._query_sizes)
        self._support_index = ClassIndex(source)
        self._query_index = self._support_index
        if query_source is not None:
            self._query_index = ClassIndex(query_source)
        self.support_buckets = _buckets(
            "support", support_buckets, sampler.min_support, sampler.max_support
        )
        self.query_buckets = _buckets(
            "query", query_buckets, sampler.min_query, sampler.max_query
        )

    @property
    def max_way(self):
        return self.sampler.max_way

    @property
    def role(self):
        return self.source.role

    @property
    def image_shape(self):
        return augmented_shape(self.source, self.augment)

    @property
    def _query_sizes(self):
        return self.query_source and self.query_source.class_sizes

    def draw(self, rng):
        drawn = self.sampler.sample(
            rng, self.source.class_sizes, self._query_sizes
        )
        support = self._support_index.take(drawn.classes, drawn.support)
        query = self._query_index.take(drawn.classes, drawn.query)
        return {
            "classes": drawn.classes,
            "support": support[0],
            "support_labels": support[1],
            "query": query[0],
            "query_labels": query[1],
        }

    def load_episode(self, indices, rng=None):
        images = load_images(
            indices, self.source, self.query_source, self.augment, rng
        )
        return self.assemble(indices, images)

    def sources(self):
        return {"": (self.source, self.query_source)}

    @classmethod
    def from_manifest(
        cls, path, sources, query_sources=None, augment=None, **kwargs
    ):
        """Replays the episodes that `save_manifest` wrote down.

        Every epoch has the same images and the same padding; the first one
        also the same augmentation, if it is given.

        Args:
            path: String or path of the manifest.
            sources: `ImageSource` with the images that the manifest was made
                with; for a mixture, a dict of them by domain.
            query_sources: The same for the queries, where they came from
                other images. Defaults to `None`.
            augment: As for the class. Defaults to `None`.
            **kwargs: `workers`, `use_multiprocessing` and `max_queue_size`,
                as for the class.

        Returns:
            `Episodes` whose protocol, and so a report on them, carries the
            hash of the manifest.

        Raises:
            ValueError: if the file is no manifest or was changed, a source is
                missing, or its fingerprint is another one: the replay would
                load other images.

        Example:

        ```python
        import os
        import tempfile

        import numpy as np
        from keras_smat import data

        images = np.zeros((200, 32, 32, 3), "uint8")
        source = data.ArraySource(images, np.repeat(np.arange(10), 20))
        episodes = data.EpisodeDataset(source, data.MetaDatasetEpisodes())
        path = os.path.join(tempfile.mkdtemp(), "episodes.json")
        episodes.save_manifest(path)
        again = data.EpisodeDataset.from_manifest(path, source)
        again.indices(7)["support"]  # as episodes.indices(7)["support"]
        ```
        """
        # Here, since a replay loads images as this module does.
        from keras_smat.data.replay import ReplayedEpisodes

        return ReplayedEpisodes(path, sources, query_sources, augment, **kwargs)

    def protocol(self):
        query_source = self.query_source
        return {
            "source": self.source.fingerprint(),
            "query_source": query_source and query_source.fingerprint(),
            "sampler": self.sampler.protocol(),
            "augment": describe_augmentation(self.augment),
            "image_shape": self.image_shape,
            "num_episodes": self.num_episodes,
            "seed": self.seed,
        }


def load_images(indices, source, query_source, augment, rng):
    """Loads the images of an episode, support first, `(S + Q, H, W, C)`."""
    support, query = indices["support"], indices["query"]
    if query_source is None:
        images = source.load(np.concatenate([support, query]))
    else:
        images = [source.load(support), query_source.load(query)]
        images = np.concatenate(images)
    if augment is None or rng is None:
        return images
    return augment(images, rng)


def align(query_source, source):
    """Returns `query_source` with the classes of `source` in their order."""
    names = set(query_source.class_names)
    missing = [name for name in source.class_names if name not in names]
    if missing:
        raise ValueError(
            "Expected `query_source` to have every class of `source`. "
            f"Received: a query source without {some(missing)}."
        )
    if query_source.image_shape != source.image_shape:
        raise ValueError(
            "Expected `source` and `query_source` with images of one shape. "
            f"Received: {source.image_shape} and {query_source.image_shape}."
        )
    if list(query_source.class_names) == list(source.class_names):
        return query_source
    return query_source.subset(source.class_names)


def _buckets(name, sizes, smallest, largest):
    if sizes is None:
        halves = {largest, -(-largest // 2), -(-largest // 4)}
        return tuple(sorted({max(size, smallest) for size in halves}))
    sizes = {check_integer(f"{name}_buckets", size, 1) for size in sizes}
    if max(sizes, default=0) < largest:
        raise ValueError(
            f"Expected `{name}_buckets` to hold the sampler's largest "
            f"{name}, {largest} images. "
            f"Received: {name}_buckets={sorted(sizes)}."
        )
    return tuple(sorted(sizes))
