import copy
import itertools
import math
import re

import keras
import numpy as np
from keras import ops

from keras_smat import _backend
from keras_smat import functional as F
from keras_smat.checks import check_choice
from keras_smat.checks import check_integer
from keras_smat.layers.hard_concrete_mask import HardConcreteMask

GRANULARITIES = ("element", "input", "output", "tensor")


@keras.saving.register_keras_serializable("keras_smat")
class ExpertBank(keras.layers.Layer):
    """M sparse experts over all weights of a frozen backbone.

    Expert m of weight `theta` is `theta + z_m * delta`: the dense `delta` is
    shared by the experts, each of which has its own sparse mask `z_m`.
    Merged with weights `a`: `theta + delta * sum_m a_m z_m`. At first `delta`
    is zero, so that every merge gives the backbone's own weights.

    The bank refers to the backbone and neither owns nor changes it: its
    weights are the delta and the mask logits alone. Weights that the backbone
    does not train (moving statistics, frozen layers) get no expert.

    Args:
        backbone: `keras.Model`, built.
        num_experts: int. M. Defaults to `8`.
        granularity: `"element"`, or for kernels `"input"`, `"output"`
            (one mask entry per feature) or `"tensor"`; other weights are
            masked per element. Defaults to `"element"`.
        shared_delta: bool. `False` gives every expert a delta of its own, and
            M times the memory. Defaults to `True`.
        sparse: bool. `False` leaves all masks at 1. Defaults to `True`.
        include: list of str, regular expressions searched for in the weight
            paths: only these weights get experts. Defaults to `None` (all).
        exclude: list of str, weights that get none. Defaults to `None`.
        always_on: list of str, weights that get a delta and no mask. Defaults
            to `None`.
        beta: float, mask temperature in training. Defaults to `2/3`.
        eval_beta: float, mask temperature at test time. Defaults to `2/3`.
        init_stddev: float, of the mask logits. Defaults to `0.5`.
        seed: int, of the mask logits. Defaults to `None`.
        **kwargs: base layer arguments.

    Example:

    ```python
    backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    bank = keras_smat.ExpertBank(backbone, num_experts=2)
    weights = bank.merge(np.array([0.5, 0.5]))
    ```

    Reference: SMAT equation 1 and section 3.1.
    """

    def __init__(
        self,
        backbone,
        num_experts=8,
        granularity="element",
        shared_delta=True,
        sparse=True,
        include=None,
        exclude=None,
        always_on=None,
        beta=2.0 / 3.0,
        eval_beta=2.0 / 3.0,
        init_stddev=0.5,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(backbone, keras.Model) or not backbone.built:
            raise ValueError(
                "Expected `backbone` as a built `keras.Model`. "
                f"Received: {backbone!r}"
            )
        self._reference = _Reference(backbone)
        self.num_experts = check_integer("num_experts", num_experts, 1)
        self.granularity = check_choice(
            "granularity", granularity, GRANULARITIES
        )
        self.shared_delta = shared_delta
        self.sparse = sparse
        self.include = include
        self.exclude = exclude
        self.always_on = always_on
        self.beta = beta
        self.eval_beta = eval_beta
        self.init_stddev = init_stddev
        self.seed = seed
        self._select()
        self.build()

    @property
    def backbone(self):
        return self._reference.backbone

    def _select(self):
        """Finds the weights that get experts, by position in `weights`."""
        weights = self.backbone.weights
        paths = [w.path for w in weights]
        chosen = matches(self.include, paths, "include", default=True)
        dropped = matches(self.exclude, paths, "exclude")
        self._positions = tuple(
            i
            for i, w in enumerate(weights)
            if w.trainable and chosen[i] and not dropped[i]
        )
        if not self._positions:
            raise ValueError(
                "No weight of the backbone gets an expert. Received: "
                f"backbone={self.backbone.name!r} with "
                f"{sum(w.trainable for w in weights)} trainable weights, "
                f"include={self.include}, exclude={self.exclude}"
            )
        on = matches(self.always_on, paths, "always_on")
        kernels = output_axes(self.backbone)
        self._granularities, self._output_axes = [], []
        for i in self._positions:
            axes = kernels.get(id(weights[i]))
            kind = "element" if axes is None else self.granularity
            self._granularities.append(
                "on" if on[i] or not self.sparse else kind
            )
            self._output_axes.append(axes or 1)

    def build(self, input_shape=None):
        weights = self.backbone.weights
        self._shapes = [tuple(weights[i].shape) for i in self._positions]
        self.mask = HardConcreteMask(
            self._shapes,
            num_experts=self.num_experts,
            granularity=self._granularities,
            output_axes=self._output_axes,
            beta=self.beta,
            eval_beta=self.eval_beta,
            init_stddev=self.init_stddev,
            seed=self.seed,
            dtype=self.dtype_policy,
            name="mask",
        )
        self.num_parameters = self.mask.num_parameters  # P
        # One flat tensor: an optimizer step on it is one operation.
        self.delta = self.add_weight(
            name="delta",
            shape=(
                1 if self.shared_delta else self.num_experts,
                self.num_parameters,
            ),
            initializer="zeros",
            autocast=False,
        )
        sizes = [math.prod(shape) for shape in self._shapes]
        self._cuts = list(itertools.accumulate(sizes))[:-1]
        self.built = True

    @property
    def expert_paths(self):
        """Paths of the backbone weights that have experts."""
        return [self.backbone.weights[i].path for i in self._positions]

    @property
    def noise_shape(self):
        """Shape (M, K) of the uniform noise of sampled masks."""
        return tuple(self.mask.logits.shape)

    def merge(self, merging_weights, training=False, noise=None):
        """Weights of the backbone with the experts merged in.

        Args:
            merging_weights: tensor of shape (M,).
            training: bool, which mask temperature. Defaults to `False`.
            noise: optional uniform numbers of shape `noise_shape`, for
                sampled masks. Defaults to `None`.

        Returns:
            List of tensors, aligned with `backbone.weights`.
        """
        return self.merge_with_statistics(merging_weights, training, noise)[0]

    def merge_with_statistics(self, merging_weights, training, noise=None):
        """`merge`, E[L0] (M,) and share of exact zeros (M,), in one pass."""
        dtype = self.mask.logits.dtype
        merging_weights = ops.cast(merging_weights, dtype)
        if tuple(merging_weights.shape) != (self.num_experts,):
            raise ValueError(
                "Expected one merging weight per expert, shape "
                f"({self.num_experts},). "
                f"Received: shape {tuple(merging_weights.shape)}"
            )
        if not self.sparse or self.mask.num_entries == 0:
            merged, (nonzero, zeros) = None, (0.0, 0.0)
        elif self.shared_delta:
            merged, nonzero, zeros = _backend.merge_masks(
                ops.convert_to_tensor(self.mask.logits.value),
                merging_weights,
                self.mask.entry_sizes(),
                self.mask.temperature(training),
                noise,
            )
        else:
            merged = self.mask.flat(training, noise)
            nonzero = self.mask.expected_nonzero() * self.num_parameters
            nonzero = nonzero - self._num_on
            zeros = ops.cast(merged <= 0.0, merged.dtype)
            zeros = ops.sum(zeros * self.mask.entry_sizes(), axis=-1)
        updates = self._updates(merged, merging_weights)
        weights = [w.value for w in self.backbone.weights]
        for i, update in zip(self._positions, updates):
            weights[i] = weights[i] + ops.cast(update, weights[i].dtype)
        expected = (nonzero + self._num_on) / self.num_parameters
        ones = ops.ones((self.num_experts,), dtype)
        return weights, ones * expected, ones * zeros / self.num_parameters

    @property
    def _num_on(self):
        return self.num_parameters - self.mask.num_maskable

    def _updates(self, merged, merging_weights):
        """delta * sum_m a_m z_m, one tensor per weight with experts."""
        # `merged` is (K,), or (M, K) where every expert has its own delta.
        if merged is None:
            masks = [1.0] * len(self._shapes)
        else:
            masks = self.mask.split(merged)
        delta = ops.cast(self.delta.value, self.mask.logits.dtype)
        if self.shared_delta:
            on = ops.sum(merging_weights)
            pieces = _split(delta[0], self._cuts)
            return [
                ops.reshape(piece, shape)
                * (on if isinstance(mask, float) else mask)
                for piece, shape, mask in zip(pieces, self._shapes, masks)
            ]
        pieces = _split(delta, self._cuts)
        return [
            ops.tensordot(
                merging_weights,
                ops.reshape(piece, (self.num_experts,) + shape) * mask,
                axes=1,
            )
            for piece, shape, mask in zip(pieces, self._shapes, masks)
        ]

    def updates(self, training=False):
        """What each expert adds to the backbone: `delta * z_m`.

        Kept, they make further merges of the same experts cheap, for M times
        the memory of the weights that have experts.

        Returns:
            List of tensors (M, ...), one per weight with experts.
        """
        delta = ops.cast(self.delta.value, self.mask.logits.dtype)
        pieces = _split(delta, self._cuts)
        logits = self.mask.split(ops.convert_to_tensor(self.mask.logits.value))
        temperature = self.mask.temperature(training)
        updates = []
        # Weight by weight: masks of all weights at once are slow to allocate.
        for piece, shape, logit in zip(pieces, self._shapes, logits):
            if isinstance(logit, float):  # always on
                mask = ops.ones((self.num_experts,) + (1,) * len(shape))
                mask = ops.cast(mask, piece.dtype)
            else:
                mask = F.hard_concrete(logit, temperature)
            updates.append(ops.reshape(piece, piece.shape[:1] + shape) * mask)
        return updates

    def merge_updates(self, updates, merging_weights):
        """`merge`, of updates that `updates` gave.

        Args:
            updates: list of tensors (M, ...).
            merging_weights: tensor of shape (M,).

        Returns:
            List of tensors, aligned with `backbone.weights`.
        """
        merging_weights = ops.cast(merging_weights, self.mask.logits.dtype)
        weights = [w.value for w in self.backbone.weights]
        for i, update in zip(self._positions, updates):
            merged = ops.tensordot(merging_weights, update, axes=1)
            weights[i] = weights[i] + ops.cast(merged, weights[i].dtype)
        return weights

    def count_stored(self):
        """Numbers it takes to store the experts.

        A sparse expert is a (value, position) pair for every entry that its
        mask leaves; a dense one, or one with more than half of the entries,
        is all its values. The sum over the experts.

        Reference: SMAT appendix C.3.
        """
        share = 1.0 - ops.convert_to_numpy(self.measured_sparsity())
        nonzeros = np.rint(share.astype("float64") * self.num_parameters)
        return int(np.minimum(2 * nonzeros, self.num_parameters).sum())

    def expected_sparsity(self):
        """1 - E[L0] per expert: tensor of shape (M,)."""
        return 1.0 - self.mask.expected_nonzero()

    def measured_sparsity(self, training=False):
        """Share of exact zeros per expert, as used at test: tensor (M,)."""
        return self.mask.measured_sparsity(training)

    def masks(self, training=False):
        """Masks by weight path: dict of tensors (M, ...)."""
        return dict(zip(self.expert_paths, self.mask(training=training)))

    def get_config(self):
        config = super().get_config()
        config.update(
            backbone=keras.saving.serialize_keras_object(self.backbone),
            num_experts=self.num_experts,
            granularity=self.granularity,
            shared_delta=self.shared_delta,
            sparse=self.sparse,
            include=_plain(self.include),
            exclude=_plain(self.exclude),
            always_on=_plain(self.always_on),
            beta=self.beta,
            eval_beta=self.eval_beta,
            init_stddev=self.init_stddev,
            seed=self.seed,
        )
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["backbone"] = keras.saving.deserialize_keras_object(
            # Keras empties the config that it builds a model from.
            copy.deepcopy(config["backbone"])
        )
        return cls(**config)


def _plain(patterns):
    """Without what Keras makes of lists to track them."""
    return list(patterns) if isinstance(patterns, list | tuple) else patterns


class _Reference:
    """Keeps the backbone out of the bank's own weights and saved file."""

    def __init__(self, backbone):
        self.backbone = backbone


def matches(patterns, paths, name, default=False):
    """Which paths match a pattern; every pattern must match one."""
    if patterns is None:
        return [default] * len(paths)
    if isinstance(patterns, str):
        patterns = [patterns]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"Each pattern of `{name}` must match a weight of the "
                f"backbone. Received: {pattern!r}, which matches none of "
                f"{len(paths)} paths such as {paths[0]!r}"
            )
    return [any(re.search(p, path) for p in patterns) for path in paths]


def output_axes(backbone):
    """Number of output axes of each layer kernel, by id of the variable."""
    axes = {}
    for layer in backbone._flatten_layers():
        kernel = getattr(layer, "kernel", None)
        if isinstance(kernel, keras.Variable) and len(kernel.shape) >= 2:
            # Attention kernels (width, heads, size) have two.
            axes[id(kernel)] = 1
            if isinstance(layer, keras.layers.EinsumDense):
                inputs, letters, _ = re.split(",|->", layer.equation)
                axes[id(kernel)] = sum(c not in inputs for c in letters)
    return axes


def _split(flat, cuts):
    return ops.split(flat, cuts, axis=-1) if cuts else [flat]
