import keras
import numpy as np
from keras import ops

from keras_smat import functional as F
from keras_smat.checks import check_choice
from keras_smat.checks import check_positive

DISTANCES = ("cosine", "euclidean")


@keras.saving.register_keras_serializable("keras_smat")
class PrototypeHead(keras.layers.Layer):
    """Logits of features against class prototypes.

    `scale * cos(f, p)` or `-scale * ||f - p||^2`, always in float32 (float64
    under a float64 policy).

    Args:
        distance: `"cosine"` or `"euclidean"`. Defaults to `"cosine"`.
        scale: float, initial scale of the logits. Defaults to `10.0`.
        learn_scale: bool, whether the scale is trained, as in PMF. Defaults
            to `False`.
        **kwargs: base layer arguments.

    Call arguments:
        features: tensor of shape (Q, D).
        prototypes: tensor of shape (W, D).
        present: optional tensor of shape (W,), 0 for absent classes, which
            get a large negative logit. Defaults to `None`.

    Returns (call):
        Tensor of logits of shape (Q, W).

    Example:

    ```python
    head = keras_smat.PrototypeHead()
    logits = head(np.eye(3, 8), np.eye(5, 8))  # (3, 5)
    ```

    Reference: Snell et al., NeurIPS 2017; PMF (Hu et al., CVPR 2022).
    """

    def __init__(
        self, distance="cosine", scale=10.0, learn_scale=False, **kwargs
    ):
        # Keras would round the arguments to half precision before `call`.
        super().__init__(autocast=False, **kwargs)
        self.distance = check_choice("distance", distance, DISTANCES)
        check_positive("scale", scale)
        self.scale = scale
        self.learn_scale = learn_scale
        self.build()

    def build(self, *input_shapes):
        self.logit_scale = None
        if self.learn_scale:
            self.logit_scale = self.add_weight(
                name="logit_scale",
                shape=(),
                initializer=keras.initializers.Constant(self.scale),
                autocast=False,
            )
        self.built = True

    @property
    def logit_dtype(self):
        return "float64" if self.variable_dtype == "float64" else "float32"

    def call(self, features, prototypes, present=None):
        features = ops.cast(features, self.logit_dtype)
        prototypes = ops.cast(prototypes, self.logit_dtype)
        scale = self.scale if self.logit_scale is None else self.logit_scale
        logits = (
            F.cosine_logits if self.distance == "cosine" else F.euclidean_logits
        )
        return logits(features, prototypes, scale, present)

    def leave_one_out(self, features, labels, max_way):
        """Logits of support images that did not vote for their own class.

        Args:
            features: tensor of shape (S, D).
            labels: int tensor of shape (S,), -1 for padding.
            max_way: int, W.

        Returns:
            Tuple of logits (S, W) and of which rows count (S,), see
            `functional.leave_one_out_prototypes`.
        """
        features = ops.cast(features, self.logit_dtype)
        prototypes, present = F.class_prototypes(features, labels, max_way)
        own, valid = F.leave_one_out_prototypes(features, labels, max_way)
        own = ops.expand_dims(ops.diagonal(self(features, own)), 1)
        classes = ops.arange(max_way, dtype="int32")
        labels = ops.expand_dims(ops.cast(labels, "int32"), 1)
        logits = self(features, prototypes, present)
        return ops.where(labels == classes, own, logits), valid

    def classifier(self, backbone, prototypes, temperature=1.0):
        """The head on fixed prototypes, in stock Keras layers.

        Args:
            backbone: `keras.Model`, images to features (N, D).
            prototypes: array of shape (W, D).
            temperature: float, divides the logits. Defaults to `1.0`.

        Returns:
            `keras.Model`, images to class probabilities (N, W).
        """
        scale = self.scale if self.logit_scale is None else self.logit_scale
        scale = float(ops.convert_to_numpy(scale)) / temperature
        prototypes = ops.convert_to_numpy(prototypes)
        features, kernel = backbone.outputs[0], prototypes.T
        bias = np.zeros(len(prototypes))
        if self.distance == "cosine":
            features = keras.layers.UnitNormalization(dtype=self.logit_dtype)(
                features
            )
            norms = np.linalg.norm(kernel, axis=0)
            kernel = kernel / np.maximum(norms, 1e-12)
        else:
            # -|f - p|^2 = 2 f.p - |p|^2 - |f|^2; the last cancels in softmax.
            kernel, bias = 2.0 * kernel, -np.sum(prototypes**2, axis=1)
        head = keras.layers.Dense(
            len(prototypes), dtype=self.logit_dtype, name="prototypes"
        )
        logits = head(features)
        head.set_weights([scale * kernel, scale * bias])
        probabilities = keras.layers.Softmax(
            dtype=self.logit_dtype, name="probabilities"
        )(logits)
        return keras.Model(backbone.inputs[0], probabilities, name="classifier")

    def get_config(self):
        config = super().get_config()
        config.update(
            distance=self.distance,
            scale=self.scale,
            learn_scale=self.learn_scale,
        )
        return config
