import math

import keras
from keras import ops

from keras_smat import functional as F
from keras_smat.checks import check_choice
from keras_smat.checks import check_integer
from keras_smat.checks import check_number
from keras_smat.checks import check_positive

GRANULARITIES = ("element", "input", "output", "tensor", "on")


def mask_shape(shape, granularity, output_axes=1):
    """Shape of one mask that broadcasts against a parameter of `shape`."""
    if granularity == "element":
        return tuple(shape)
    if granularity in ("tensor", "on"):
        return (1,) * len(shape)
    output_axes = min(output_axes, len(shape))
    inputs = len(shape) - output_axes
    if granularity == "input":
        return tuple(shape[:inputs]) + (1,) * output_axes
    return (1,) * inputs + tuple(shape[inputs:])


@keras.saving.register_keras_serializable("keras_smat")
class ClipLogits(keras.constraints.Constraint):
    """Keeps mask logits in [ln 0.01, ln 100], where masks saturate."""

    def __call__(self, w):
        return ops.clip(w, -F.LOGIT_LIMIT, F.LOGIT_LIMIT)


@keras.saving.register_keras_serializable("keras_smat")
class HardConcreteMask(keras.layers.Layer):
    """M learned sparse masks over one parameter or a list of parameters.

    Each mask entry has a logit `l`; the mask is
    `z = clip(1.2 * sigmoid(l / beta) - 0.1, 0, 1)`, with exact zeros and
    ones. All logits lie in one flat weight of shape (M, K): one large tensor
    compiles and updates faster than hundreds of small ones. It stays float32
    (or float64) under every dtype policy.

    Args:
        shapes: tuple of ints, or list of them: the parameters' shapes.
        num_experts: int. M. Defaults to `8`.
        granularity: str, or list of str, one per shape. `"element"`: one
            entry per scalar; `"input"` or `"output"`: one per input or output
            feature; `"tensor"`: one per parameter; `"on"`: no entry, the
            mask is the constant 1. Defaults to `"element"`.
        output_axes: int, or list of int, one per shape: the number of
            trailing axes that are output features. Defaults to `1`.
        beta: float. Temperature in training. Defaults to `2/3`.
        eval_beta: float. Temperature at test time; the released code uses
            1.0, so that its masks are denser in tests than in training.
            Defaults to `2/3`.
        init_stddev: float. Logits start as Normal(0, `init_stddev`).
            Defaults to `0.5`.
        seed: int. Seed of the initialiser. Defaults to `None`.
        **kwargs: base layer arguments.

    Call arguments:
        training: bool. Selects `beta` or `eval_beta`. Defaults to `False`.
        noise: optional uniform numbers in (0, 1) of shape (M, K) for sampled
            masks. Defaults to `None`.

    Returns (call):
        List of masks, one per shape, each (M, ...) and broadcasting against
        its parameter; a single mask where `shapes` is one tuple.

    Example:

    ```python
    masks = keras_smat.HardConcreteMask((64, 32), num_experts=4)
    z = masks()  # (4, 64, 32)
    ```

    Reference: SMAT section 3.1; Louizos et al. 2018.
    """

    def __init__(
        self,
        shapes,
        num_experts=8,
        granularity="element",
        output_axes=1,
        beta=F.BETA,
        eval_beta=F.BETA,
        init_stddev=0.5,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # An empty shape is a list of no dimensions, hence one scalar.
        self._single = not shapes or isinstance(shapes[0], int)
        all_shapes = [shapes] if self._single else shapes
        self._shapes = tuple(tuple(int(d) for d in s) for s in all_shapes)
        self._granularity = self._one_per_shape(granularity, "granularity")
        self._output_axes = self._one_per_shape(output_axes, "output_axes")
        for name in self._granularity:
            check_choice("granularity", name, GRANULARITIES)
        self.num_experts = check_integer("num_experts", num_experts, 1)
        check_positive("beta", beta)
        check_positive("eval_beta", eval_beta)
        check_number("init_stddev", init_stddev)
        self.beta = beta
        self.eval_beta = eval_beta
        self.init_stddev = init_stddev
        self.seed = seed
        self.build()

    def _one_per_shape(self, value, name):
        if isinstance(value, (str, int)):
            return (value,) * len(self._shapes)
        if len(value) != len(self._shapes):
            raise ValueError(
                f"`{name}` must have one entry per shape, that is "
                f"{len(self._shapes)}. Received: {len(value)} entries"
            )
        return tuple(value)

    def build(self, input_shape=None):
        layout = zip(self._shapes, self._granularity, self._output_axes)
        self._mask_shapes = tuple(mask_shape(*entry) for entry in layout)
        self._sizes = tuple(
            0 if granularity == "on" else math.prod(shape)
            for shape, granularity in zip(self._mask_shapes, self._granularity)
        )
        self.num_entries = sum(self._sizes)  # K
        self.num_parameters = sum(math.prod(s) for s in self._shapes)  # P
        self.logits = self.add_weight(
            name="logits",
            shape=(self.num_experts, self.num_entries),
            initializer=keras.initializers.RandomNormal(
                0.0, self.init_stddev, seed=self.seed
            ),
            constraint=ClipLogits(),
            trainable=self.num_entries > 0,
            dtype="float64" if self.variable_dtype == "float64" else "float32",
            autocast=False,
        )
        self.built = True

    def entry_sizes(self):
        """Parameters that each of the K entries masks: (K,), or 1.0."""
        if self.num_entries == self.num_parameters:
            return 1.0
        sizes = [
            ops.full((entries,), math.prod(shape) / entries, self.logits.dtype)
            for shape, entries in zip(self._shapes, self._sizes)
            if entries
        ]
        return ops.concatenate(sizes) if sizes else 1.0

    def split(self, flat):
        """Cuts (..., K) into one broadcasting mask per shape.

        Args:
            flat: tensor of shape (..., K), such as merged masks.

        Returns:
            List of tensors; a scalar 1.0 stands for a mask that is always on.
        """
        leading = tuple(flat.shape[:-1])
        cuts, total = [], 0
        for size in self._sizes[:-1]:
            total += size
            cuts.append(total)
        parts = ops.split(flat, cuts, axis=-1) if cuts else [flat]
        return [
            ops.reshape(part, leading + shape) if size else 1.0
            for part, shape, size in zip(parts, self._mask_shapes, self._sizes)
        ]

    def temperature(self, training):
        return self.beta if training else self.eval_beta

    def flat(self, training=False, noise=None):
        """All masks as one tensor of shape (M, K)."""
        return F.hard_concrete(
            self.logits.value, self.temperature(training), noise
        )

    def call(self, training=False, noise=None):
        masks = self.split(self.flat(training, noise))
        masks = [
            ops.ones((self.num_experts,) + shape, self.logits.dtype)
            if size == 0
            else mask
            for mask, shape, size in zip(masks, self._mask_shapes, self._sizes)
        ]
        return masks[0] if self._single else masks

    def expected_nonzero(self):
        """E[L0] per expert as a share of the parameters: tensor (M,)."""
        on = self.num_parameters - self.num_maskable
        probability = F.nonzero_probability(self.logits.value, self.beta)
        weighted = ops.sum(probability * self.entry_sizes(), axis=-1)
        return (weighted + on) / self.num_parameters

    @property
    def num_maskable(self):
        """Parameters whose mask is learned, hence can be zero."""
        return sum(
            math.prod(shape)
            for shape, size in zip(self._shapes, self._sizes)
            if size
        )

    def measured_sparsity(self, training=False):
        """Share of exact zeros per expert, by default at test time: (M,)."""
        zero = self.flat(training) <= 0.0
        weighted = ops.sum(
            ops.cast(zero, self.logits.dtype) * self.entry_sizes(), axis=-1
        )
        return weighted / self.num_parameters

    def compute_output_spec(self, training=False, noise=None):
        specs = [
            keras.KerasTensor((self.num_experts,) + shape, self.logits.dtype)
            for shape in self._mask_shapes
        ]
        return specs[0] if self._single else specs

    def get_config(self):
        config = super().get_config()
        one = self._single
        config.update(
            shapes=self._shapes[0] if one else self._shapes,
            num_experts=self.num_experts,
            granularity=list(self._granularity),
            output_axes=list(self._output_axes),
            beta=self.beta,
            eval_beta=self.eval_beta,
            init_stddev=self.init_stddev,
            seed=self.seed,
        )
        return config
