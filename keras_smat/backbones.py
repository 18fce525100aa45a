"""Any vision backbone as a plain Keras model: images to features (N, D)."""

import difflib
import os
import pathlib

import keras
import numpy as np

from keras_smat import converters
from keras_smat import vision_transformers
from keras_smat import vit_mini
from keras_smat.vision_transformers import FAMILIES

POOLINGS = ("cls", "mean", "cls+mean")
IMAGENET = (converters.IMAGENET_MEAN, converters.IMAGENET_STD)


def feature_backbone(
    model,
    image_size=None,
    pooling=None,
    num_blocks=None,
    dtype=None,
    name=None,
    mean=None,
    std=None,
):
    """Makes a feature extractor from a vision backbone.

    The result takes images as they are stored, values 0 to 255, and returns
    one feature vector per image. It is a plain functional `keras.Model` of
    Keras and keras-hub layers only, so it saves, loads and exports without
    `keras_smat`. It always is a copy: the given model stays as it is.

    Transformers (ViT, DeiT, DINOv2, DINOv3) are rebuilt at `image_size` and
    `num_blocks`. Learned position tables are resized once, here, by bicubic
    interpolation; no call interpolates. Unlike keras-hub's `DINOV2Backbone`,
    the model holds exactly one position table and no mask token, so that
    every variable takes part in the features. All variables are trainable.

    Args:
        model: What to build on. One of: `"vit_mini"`, the small pretrained
            ViT inside this package (64 px, D = 192); the name of a keras-hub
            preset (this alone downloads); a local keras-hub preset directory;
            a local Hugging Face directory of a `ViTModel` or `Dinov2Model`
            (`config.json` and `*.safetensors`); an `.npz` file of a
            `Dinov2Model` state; a keras-hub backbone; or any functional or
            Sequential Keras image model with output (N, D) or feature map
            (N, h, w, C).
        image_size: int. Side of the square input in pixels, a multiple of
            the patch size. Defaults to `None`, the model's own size.
        pooling: `"cls"`, `"mean"` (patch tokens, without class, register
            and distillation tokens) or `"cls+mean"` (both, concatenated:
            (N, 2D)). Defaults to `None`: `"cls"` for transformers (`"mean"`
            where they have no class token), the mean over positions for
            feature maps, and nothing for outputs (N, D).
        num_blocks: int. Keep only the first transformer blocks, followed by
            the model's final norm. Defaults to `None`, all.
        dtype: str or `keras.DTypePolicy` of the transformer layers. Defaults
            to `None`, the model's own or, for weights from files, Keras's
            global one. Normalisation stays in float32.
        name: str. Name of the model, which reports show. Defaults to `None`,
            that of the preset, directory, file or model.
        mean: float or one float per channel, subtracted from images in
            [0, 1]. Defaults to `None`: what the preset says, ImageNet's for
            other transformers, and no normalisation for any other Keras
            model. Give `mean` and `std` together.
        std: float or one float per channel, the divisor after `mean`.

    Returns:
        A `keras.Model` from images (N, H, W, C), uint8 or float in 0..255,
        to features (N, D).

    Raises:
        ValueError: The model is not understood, an argument does not fit it,
            or its weights are those of another backbone.

    Example:

    ```python
    import keras_hub
    import numpy as np

    import keras_smat

    vit = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    backbone = keras_smat.feature_backbone(vit, image_size=48, num_blocks=1)
    images = np.zeros((4, 48, 48, 3), "uint8")
    features = backbone(images)  # (4, 16)

    # Pretrained, without a download:
    backbone = keras_smat.feature_backbone("vit_mini")  # 64 px, (N, 192)
    ```

    Reference:
    - [ViT](https://arxiv.org/abs/2010.11929)
    - [DINO](https://arxiv.org/abs/2104.14294)
    - [DINOv2](https://arxiv.org/abs/2304.07193)
    """
    if pooling not in (None, *POOLINGS):
        raise ValueError(
            f"`pooling` should be None or one of {POOLINGS}. "
            f"Received: pooling={pooling!r}"
        )
    if (mean is None) != (std is None):
        raise ValueError(
            "`mean` and `std` should be given together. "
            f"Received: mean={mean}, std={std}"
        )
    source, statistics = _resolve(model)
    if mean is not None:
        statistics = (mean, std)
    name = name or _name(model)
    if vision_transformers.is_transformer(source):
        images, tokens, prefix = vision_transformers.rebuild(
            source, statistics, image_size, num_blocks, dtype
        )
        policy = dtype or source.dtype_policy
        features = _pool(tokens, prefix, pooling, policy)
        return keras.Model(images, features, name=name)
    if num_blocks is not None or dtype is not None:
        raise ValueError(
            f"`num_blocks` and `dtype` need a transformer of {FAMILIES}. "
            f"Received: num_blocks={num_blocks}, dtype={dtype}, "
            f"model={source!r}"
        )
    return _image_model(source, statistics, image_size, pooling, name)


def _name(model):
    if isinstance(model, keras.Model):
        return model.name
    return pathlib.PurePath(model).name.removesuffix(".npz")


def _resolve(model):
    """Returns the model to copy and its `(mean, std)`, or None for neither."""
    if isinstance(model, keras.Model):
        known = vision_transformers.is_transformer(model)
        return model, IMAGENET if known else None
    if not isinstance(model, str | os.PathLike):
        raise ValueError(
            "`model` should be a preset name, a path or a Keras model. "
            f"Received: model={model!r}"
        )
    if model == "vit_mini":
        return vit_mini.build(), vit_mini.STATISTICS
    path = os.path.expanduser(os.fspath(model))
    if os.path.isdir(path):
        config = converters.read_json(path, "config.json")
        if config.get("model_type") in converters.MODEL_TYPES:
            return converters.load_huggingface(path)
        return _load_preset(path)  # keras-hub converts more model types.
    if path.endswith(".npz"):
        if not os.path.isfile(path):
            raise ValueError(
                f"`model` should be an existing file. Received: model={model!r}"
            )
        return converters.load_npz(path)
    return _load_preset(os.fspath(model))


def _load_preset(preset):
    import keras_hub

    known = keras_hub.models.Backbone.presets
    if not (os.path.isdir(preset) or "://" in preset or preset in known):
        raise ValueError(
            "`model` should be a keras-hub preset, a local directory or an "
            "`.npz` file, and none of these has this name. Transformer "
            f"families: {FAMILIES}. Presets with a similar name: "
            f"{difflib.get_close_matches(preset, known)}. "
            f"Received: model={preset!r}"
        )
    try:
        backbone = keras_hub.models.Backbone.from_preset(preset)
    except (ValueError, OSError) as error:
        raise ValueError(
            "`model` should be a complete keras-hub preset or Hugging Face "
            f"directory of an image backbone ({error}). Transformer families: "
            f"{FAMILIES}. Received: model={preset!r}"
        ) from error
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except (ValueError, OSError):  # A preset need not bring one.
        converter = None
    if converter is None:
        return backbone, IMAGENET
    # Its x * scale + offset, written as (x / 255 - mean) / std.
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    std = 1.0 / (255.0 * np.asarray(scale, "float64"))
    return backbone, (-np.asarray(offset) * std, std)


def _image_model(source, statistics, image_size, pooling, name):
    try:
        shape, output_shape = source.input_shape, source.output_shape
        rank = len(keras.KerasTensor(output_shape).shape)
    except (AttributeError, TypeError, ValueError):
        shape, rank = None, None
    if not isinstance(shape, tuple) or len(shape) != 4 or rank not in (2, 4):
        raise ValueError(
            "`model` should be a built functional or Sequential model from "
            "images (N, H, W, C) to (N, D) or (N, h, w, C). "
            f"Received: model={source!r}"
        )
    if pooling not in ((None,) if rank == 2 else (None, "mean")):
        raise ValueError(
            "`pooling` should be None for outputs (N, D), None or 'mean' for "
            f"feature maps. Received: pooling={pooling!r}"
        )
    if image_size is not None and any(
        side not in (None, image_size) for side in shape[1:3]
    ):
        raise ValueError(
            "`image_size` should be the size that the model was built for. "
            f"Received: image_size={image_size}, input_shape={shape}"
        )
    clone = keras.models.clone_model(source)
    clone.set_weights(source.get_weights())
    sides = shape[1:3] if image_size is None else (image_size, image_size)
    images, x = vision_transformers.normalized_input(
        (*sides, shape[-1]), statistics
    )
    x = clone(x)
    if rank == 4:
        x = keras.layers.GlobalAveragePooling2D(name="mean_features")(x)
    return keras.Model(images, x, name=name)


def _pool(tokens, prefix, pooling, dtype):
    """Tokens (N, prefix + patches, D) to features (N, D) or (N, 2D)."""
    if pooling is None:
        pooling = "cls" if prefix else "mean"
    if "cls" in pooling and not prefix:
        raise ValueError(
            "`pooling` should be 'mean' for a model without class token. "
            f"Received: pooling={pooling!r}"
        )
    features = []
    # Layers rather than slices: they serialize the same in every version.
    if "cls" in pooling:
        crop = keras.layers.Cropping1D(
            (0, tokens.shape[1] - 1), dtype=dtype, name="cls_token"
        )
        flatten = keras.layers.Flatten(dtype=dtype, name="cls_features")
        features.append(flatten(crop(tokens)))
    if "mean" in pooling:
        crop = keras.layers.Cropping1D(
            (prefix, 0), dtype=dtype, name="patch_tokens"
        )
        mean = keras.layers.GlobalAveragePooling1D(
            dtype=dtype, name="mean_features"
        )
        features.append(mean(crop(tokens)))
    if len(features) == 1:
        return features[0]
    return keras.layers.Concatenate(dtype=dtype, name="features")(features)
