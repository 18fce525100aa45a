import keras
from keras import ops

from keras_smat import functional as F
from keras_smat.checks import check_choice
from keras_smat.checks import check_integer

READOUTS = ("mean", "extra_token", "class_0")


@keras.saving.register_keras_serializable("keras_smat")
class TaskHypernetwork(keras.layers.Layer):
    """Class prototypes in, one logit per expert out.

    The prototypes and a few learned tokens pass one pre-norm transformer
    block with spectrally normalised weights; the read-out gives the task
    embedding `e`, and expert m gets the logit `<key_m, e>`.

    Args:
        num_experts: int. M. Defaults to `8`.
        readout: `"mean"` over the classes present (invariant to the order of
            the classes), `"extra_token"` (the first learned token, invariant
            too), or `"class_0"` (the token of class 0, as released: it
            depends on which class is number 0). Defaults to `"mean"`.
        num_extra_tokens: int. Defaults to `4`.
        num_heads: int, must divide D. Defaults to `4`.
        mlp_ratio: float, width of the hidden layer over D. Defaults to `2`.
        spectral_norm: bool. Weights are divided by their largest singular
            value, found with one power iteration per training call. Defaults
            to `True`.
        **kwargs: base layer arguments.

    Call arguments:
        prototypes: tensor of shape (W, D).
        present: optional tensor of shape (W,), 0 for absent classes, which
            take no part. Defaults to `None`.
        training: bool, whether the power iteration moves.

    Returns (call):
        Tensor of logits of shape (M,).

    Example:

    ```python
    hypernetwork = keras_smat.TaskHypernetwork(num_experts=4)
    logits = hypernetwork(np.random.normal(size=(5, 32)))  # (4,)
    ```

    Reference: SMAT section 3.2.
    """

    def __init__(
        self,
        num_experts=8,
        readout="mean",
        num_extra_tokens=4,
        num_heads=4,
        mlp_ratio=2,
        spectral_norm=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("readout", readout, READOUTS)
        if readout == "extra_token" and num_extra_tokens < 1:
            raise ValueError(
                "`readout='extra_token'` needs `num_extra_tokens >= 1`. "
                f"Received: num_extra_tokens={num_extra_tokens}"
            )
        self.num_experts = check_integer("num_experts", num_experts, 1)
        self.readout = readout
        self.num_extra_tokens = num_extra_tokens
        self.num_heads = check_integer("num_heads", num_heads, 1)
        self.mlp_ratio = mlp_ratio
        self.spectral_norm = spectral_norm

    def build(self, prototypes_shape, present_shape=None):
        width = int(prototypes_shape[-1])
        if width % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the feature width. Received: "
                f"num_heads={self.num_heads}, feature width={width}"
            )
        hidden = int(self.mlp_ratio * width)
        self.norm_1, self.norm_2 = (
            keras.layers.LayerNormalization(
                epsilon=1e-5, dtype=self.dtype_policy, name=name
            )
            for name in ("norm_1", "norm_2")
        )
        for norm in (self.norm_1, self.norm_2):
            norm.build((None, width))
        self._add_dense("qkv", width, 3 * width, use_bias=False)
        self._add_dense("projection", width, width)
        self._add_dense("expand", width, hidden)
        self._add_dense("contract", hidden, width)
        self.keys = self.add_weight(
            name="keys",
            shape=(self.num_experts, width),
            initializer=keras.initializers.RandomNormal(
                0.0, (2.0 / width) ** 0.5
            ),
        )
        self.extra_tokens = self.add_weight(
            name="extra_tokens",
            shape=(self.num_extra_tokens, width),
            initializer=keras.initializers.RandomNormal(0.0, 1e-3),
        )
        self.built = True

    def _add_dense(self, name, inputs, outputs, use_bias=True):
        # The initial range of a linear layer of the released code.
        bound = inputs**-0.5
        uniform = keras.initializers.RandomUniform(-bound, bound)
        kernel = self.add_weight(
            name=f"{name}_kernel", shape=(inputs, outputs), initializer=uniform
        )
        bias = None
        if use_bias:
            bias = self.add_weight(
                name=f"{name}_bias", shape=(outputs,), initializer=uniform
            )
        singular = None
        if self.spectral_norm:
            singular = self.add_weight(
                name=f"{name}_singular_vector",
                shape=(outputs,),
                initializer=keras.initializers.RandomNormal(0.0, 1.0),
                trainable=False,
            )
        setattr(self, name, (kernel, bias, singular))

    def _dense(self, name, x, training):
        kernel, bias, singular = getattr(self, name)
        kernel = ops.convert_to_tensor(kernel.value)
        if singular is not None:
            kernel = kernel / self._largest_singular_value(
                kernel, singular, training
            )
        x = ops.matmul(x, kernel)
        return x if bias is None else x + bias

    def _largest_singular_value(self, kernel, singular, training):
        matrix = ops.stop_gradient(kernel)
        u = F.l2_normalize(ops.cast(singular.value, kernel.dtype))
        if training:
            v = F.l2_normalize(ops.matmul(matrix, u))
            u = F.l2_normalize(ops.matmul(v, matrix))
            singular.assign(u)
        v = F.l2_normalize(ops.matmul(matrix, u))
        return ops.sum(v * ops.matmul(kernel, u))

    def _attend(self, x, valid, training):
        tokens, width = x.shape
        qkv = ops.reshape(
            self._dense("qkv", x, training),
            (tokens, 3, self.num_heads, width // self.num_heads),
        )
        query, key, value = ops.unstack(qkv, axis=1)  # each (T, heads, d)
        scores = ops.einsum("qhd,khd->hqk", query, key)
        scores = scores * (width // self.num_heads) ** -0.5
        scores = ops.where(valid > 0, scores, ops.cast(-1e9, scores.dtype))
        context = ops.einsum("hqk,khd->qhd", ops.softmax(scores), value)
        return self._dense(
            "projection", ops.reshape(context, (tokens, width)), training
        )

    def call(self, prototypes, present=None, training=False):
        prototypes = ops.cast(prototypes, self.compute_dtype)
        way = prototypes.shape[0]
        if present is None:
            present = ops.ones((way,), self.compute_dtype)
        present = ops.cast(present, self.compute_dtype)
        tokens = ops.concatenate([prototypes, self.extra_tokens], axis=0)
        valid = ops.concatenate(
            [present, ops.ones((self.num_extra_tokens,), present.dtype)]
        )
        tokens = tokens + self._attend(self.norm_1(tokens), valid, training)
        hidden = self._dense("expand", self.norm_2(tokens), training)
        tokens = tokens + self._dense(
            "contract", ops.gelu(hidden, approximate=False), training
        )
        if self.readout == "class_0":
            embedding = tokens[0]
        elif self.readout == "extra_token":
            embedding = tokens[way]
        else:
            weight = present / ops.maximum(ops.sum(present), 1.0)
            embedding = ops.matmul(weight, tokens[:way])
        return ops.matmul(self.keys, embedding)

    def compute_output_spec(self, prototypes, present=None, training=False):
        return keras.KerasTensor((self.num_experts,), self.compute_dtype)

    def get_config(self):
        config = super().get_config()
        config.update(
            num_experts=self.num_experts,
            readout=self.readout,
            num_extra_tokens=self.num_extra_tokens,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            spectral_norm=self.spectral_norm,
        )
        return config
