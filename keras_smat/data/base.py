"""What every set of episodes is to Keras."""

import keras
import numpy as np

from keras_smat.checks import check_integer
from keras_smat.data.episode import bucket_size
from keras_smat.data.episode import make_episode
from keras_smat.data.manifest import write_manifest
from keras_smat.data.prefetch import Prefetcher


class Episodes(keras.utils.PyDataset):
    """What `EpisodeDataset` and `mix` have in common.

    Episode `i` is a pure function of `(seed, epoch, i)`: the order of access
    and the number of workers change nothing. `fit` sets the epoch of the
    training episodes; validation and test episodes stay in epoch 0.

    Attributes:
        epoch: Integer, 0 until `set_epoch`.
        max_way: Integer, the most classes of any episode.
        image_shape: Tuple `(H, W, C)` of the images in an episode.
        support_buckets: Tuple of integers, the padded support sizes.
        query_buckets: Tuple of integers, the padded query sizes.
        role: `"ID"` or `"OOD"`, the role of its source, or `None`.
    """

    role = None

    def __init__(self, num_episodes, seed, **kwargs):
        # Keras must see no workers: see `Prefetcher`.
        super().__init__(workers=0)
        self.num_episodes = check_integer("num_episodes", num_episodes, 1)
        self.seed = check_integer("seed", seed, 0)
        self.epoch = 0
        self._prefetcher = Prefetcher(**kwargs)

    @property
    def image_size(self):
        """Tuple `(H, W)`, in pixels."""
        return tuple(self.image_shape[:2])

    def set_epoch(self, epoch):
        """Moves to the episodes of another epoch.

        Args:
            epoch: Integer, at least 0.
        """
        self.epoch = check_integer("epoch", epoch, 0)

    def __len__(self):
        return self.num_episodes

    def __getitem__(self, index):
        return self._prefetcher.fetch(self, self._check_index(index))

    def episode(self, epoch, index):
        """Returns `(x, y, sample_weight)` of one episode of any epoch."""
        indices = self.draw(self._rng(epoch, index))
        # A stream of its own, so that a replay, which draws nothing, augments
        # alike.
        return self.load_episode(indices, self._rng(epoch, index, 1))

    def indices(self, index):
        """Returns which images an episode has, without loading them.

        Args:
            index: Integer, the episode.

        Returns:
            A dict of integer arrays: `classes` of shape `(way,)`, the
            source's class of each label; `support` `(S,)` and `query`
            `(Q,)`, positions in the source; `support_labels` and
            `query_labels`, labels in `0..way-1`. A mixture adds `domain`,
            a string.
        """
        return self.draw(self._rng(self.epoch, self._check_index(index)))

    def draw(self, rng):
        """Draws the `indices` of an episode from a generator."""
        raise NotImplementedError

    def load_episode(self, indices, rng=None):
        """Loads the episode that `indices` describe.

        Args:
            indices: Dict, as `indices()` returns it.
            rng: `numpy.random.Generator` for the augmentation. Defaults to
                `None`, no augmentation.

        Returns:
            A tuple `(x, y, sample_weight)`, padded, as `make_episode`.
        """
        raise NotImplementedError

    def sources(self):
        """Returns a dict from the domain to a pair of its `ImageSource` and
        its query source, or `None`; the domain is `""` where there is one."""
        raise NotImplementedError

    def protocol(self):
        """Returns a dict of what determines the episodes."""
        raise NotImplementedError

    def save_manifest(self, path):
        """Writes down which images the episodes of this epoch have.

        `EpisodeDataset.from_manifest` replays them, whatever version of the
        library and of NumPy drew them. The file is JSON: seed, protocol, a
        fingerprint of every source, the indices of every episode, and a hash
        of all of it. An interruption leaves no half-written file.

        Args:
            path: String or path. Its folder must exist.

        Returns:
            A string, the hash of the manifest.

        Raises:
            ValueError: if the folder does not exist.
        """
        return write_manifest(self, path)

    def assemble(self, indices, images):
        """Returns the padded episode of `indices` and their loaded images.

        Args:
            indices: Dict, as `indices()` returns it.
            images: uint8 array of shape `(S + Q, H, W, C)`, support first.
        """
        support, query = len(indices["support"]), len(indices["query"])
        return make_episode(
            images[:support],
            indices["support_labels"],
            images[support:],
            indices["query_labels"],
            bucket_size(support, self.support_buckets),
            bucket_size(query, self.query_buckets),
        )

    def _rng(self, *key):
        # A spawn key, as a list [seed, epoch, index] could collide with
        # another one: NumPy drops the zeros at its end.
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return np.random.default_rng(sequence)

    def _check_index(self, index):
        if not 0 <= index < len(self):
            raise IndexError(
                f"Expected an episode in 0..{len(self) - 1}. "
                f"Received: index={index}."
            )
        return int(index)
