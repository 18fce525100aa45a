import keras
from keras import ops

from keras_smat.checks import check_choice
from keras_smat.checks import check_integer
from keras_smat.layers.hard_concrete_mask import HardConcreteMask

GRANULARITIES = ("element", "input", "output", "tensor")


@keras.saving.register_keras_serializable("keras_smat")
class SparseInterpolatedDense(keras.layers.Layer):
    """A Dense layer that holds M sparse interpolated experts.

    With merging weights `a` and masks `z`, the kernel in force is
    `kernel + delta * sum_m a_m z_m`; the pretrained kernel and bias are
    frozen. Structured masks cost one extra matrix product, not M, and take
    merging weights per example: `x @ kernel + (x * (a @ z)) @ delta` for
    masks over inputs, `x @ kernel + (x @ delta) * (a @ z)` over outputs.

    Args:
        units: int, output width.
        num_experts: int. M. Defaults to `8`.
        activation: as in `keras.layers.Dense`. Defaults to `None`.
        use_bias: bool. Defaults to `True`.
        granularity: `"element"`, `"input"`, `"output"` or `"tensor"`, of the
            kernel's masks; the bias is masked per element. Defaults to
            `"output"`.
        kernel_initializer: initialiser of the frozen kernel. Defaults to
            `"glorot_uniform"`.
        bias_initializer: initialiser of the frozen bias. Defaults to
            `"zeros"`.
        beta: float, mask temperature in training. Defaults to `2/3`.
        eval_beta: float, mask temperature at test time. Defaults to `2/3`.
        seed: int, seed of the mask logits. Defaults to `None`.
        **kwargs: base layer arguments.

    Call arguments:
        inputs: tensor of shape (N, ..., inputs).
        merging_weights: tensor of shape (M,), or (N, M): one set per example.
        training: bool. Defaults to `False`.

    Returns (call):
        Tensor of shape (N, ..., units).

    Example:

    ```python
    layer = keras_smat.SparseInterpolatedDense(16, num_experts=2)
    y = layer(np.ones((3, 8)), np.array([0.5, 0.5]))  # (3, 16)
    ```

    Reference: SMAT equation 1; SIMoE (arXiv 2506.12597).
    """

    def __init__(
        self,
        units,
        num_experts=8,
        activation=None,
        use_bias=True,
        granularity="output",
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        beta=2.0 / 3.0,
        eval_beta=2.0 / 3.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = check_integer("units", units, 1)
        self.num_experts = check_integer("num_experts", num_experts, 1)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.granularity = check_choice(
            "granularity", granularity, GRANULARITIES
        )
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.beta = beta
        self.eval_beta = eval_beta
        self.seed = seed

    def build(self, inputs_shape, merging_weights_shape=None):
        shape = (int(inputs_shape[-1]), self.units)
        self.kernel = self.add_weight(
            name="kernel",
            shape=shape,
            initializer=self.kernel_initializer,
            trainable=False,
        )
        self.kernel_delta = self.add_weight(
            name="kernel_delta", shape=shape, initializer="zeros"
        )
        shapes, granularity = [shape], [self.granularity]
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.units,),
                initializer=self.bias_initializer,
                trainable=False,
            )
            self.bias_delta = self.add_weight(
                name="bias_delta", shape=(self.units,), initializer="zeros"
            )
            shapes.append((self.units,))
            granularity.append("element")
        self.masks = HardConcreteMask(
            shapes,
            num_experts=self.num_experts,
            granularity=granularity,
            beta=self.beta,
            eval_beta=self.eval_beta,
            seed=self.seed,
            dtype=self.dtype_policy,
            name="masks",
        )
        self.built = True

    def call(self, inputs, merging_weights, training=False):
        masks = [
            ops.cast(mask, self.compute_dtype)
            for mask in self.masks(training=training)
        ]
        a = ops.cast(merging_weights, self.compute_dtype)
        # Per example, (N, 1, ..., 1, features) broadcasts against inputs.
        per_example = len(a.shape) == 2
        middle = tuple(range(1, len(inputs.shape) - 1 if per_example else 1))

        def merged(mask):
            mask = ops.matmul(a, ops.reshape(mask, (self.num_experts, -1)))
            return ops.expand_dims(mask, middle) if middle else mask

        if self.granularity == "element":
            x = self._dense_path(inputs, a, masks[0], middle)
        elif self.granularity == "input":
            x = ops.matmul(inputs, self.kernel) + ops.matmul(
                inputs * merged(masks[0]), self.kernel_delta
            )
        else:
            x = ops.matmul(inputs, self.kernel) + ops.matmul(
                inputs, self.kernel_delta
            ) * merged(masks[0])
        if self.use_bias:
            x = x + self.bias + self.bias_delta * merged(masks[1])
        return self.activation(x)

    def _dense_path(self, inputs, a, masks, middle):
        """Masks per scalar: merge first, or M products per example."""
        if len(a.shape) == 1:
            mask = ops.tensordot(a, masks, axes=1)
            return ops.matmul(inputs, self.kernel + self.kernel_delta * mask)
        x = ops.matmul(inputs, self.kernel)
        for m in range(self.num_experts):
            expert = ops.matmul(inputs, self.kernel_delta * masks[m])
            weight = a[:, m : m + 1]
            if middle:
                weight = ops.expand_dims(weight, middle)
            x = x + weight * expert
        return x

    def compute_output_shape(self, inputs_shape, merging_weights_shape=None):
        return tuple(inputs_shape[:-1]) + (self.units,)

    def get_config(self):
        config = super().get_config()
        config.update(
            units=self.units,
            num_experts=self.num_experts,
            activation=keras.activations.serialize(self.activation),
            use_bias=self.use_bias,
            granularity=self.granularity,
            kernel_initializer=keras.initializers.serialize(
                self.kernel_initializer
            ),
            bias_initializer=keras.initializers.serialize(
                self.bias_initializer
            ),
            beta=self.beta,
            eval_beta=self.eval_beta,
            seed=self.seed,
        )
        return config
