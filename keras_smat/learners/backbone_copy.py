"""The learner's own copy of a backbone, and what of it trains."""

import keras


class Owned:
    """A backbone that was made for the learner and needs no clone.

    While Keras loads a file, layers of equal config are shared objects: a
    clone would be tied to its original.
    """

    def __init__(self, backbone):
        self.backbone = backbone


def clone_backbone(backbone):
    """A new model of the same architecture and weights."""
    if isinstance(backbone, Owned):
        return backbone.backbone
    if not isinstance(backbone, keras.Model) or not backbone.built:
        raise ValueError(
            "`backbone` must be a built `keras.Model` from images to features. "
            f"Received: {backbone!r}"
        )
    shape = getattr(backbone, "output_shape", None)
    if shape is None:
        raise ValueError(
            "`backbone` must be a functional or Sequential model, whose output "
            f"shape Keras knows. Received: {backbone!r}"
        )
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(
            "`backbone` must give features of shape (N, D): wrap it with "
            f"`keras_smat.feature_backbone`. Received: output shape {shape}"
        )
    try:
        clone = type(backbone).from_config(backbone.get_config())
    except (TypeError, ValueError):
        # A functional model with layers that nobody registered.
        clone = keras.models.clone_model(backbone)
    clone.set_weights(backbone.get_weights())
    return clone


def freeze(backbone):
    """Nothing of it trains."""
    backbone.trainable = False
    # On TensorFlow, Keras skips layers that are frozen already, although
    # `freeze_statistics` left weights of theirs trainable.
    for weight in backbone.weights:
        weight.trainable = False


def freeze_statistics(backbone):
    """Batch normalisation on moving statistics; scale and shift still tune."""
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            flags = [w.trainable for w in layer.weights]
            layer.trainable = False
            for weight, flag in zip(layer.weights, flags):
                weight.trainable = flag
