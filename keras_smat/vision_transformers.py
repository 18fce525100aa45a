"""Vision transformers of keras-hub, rebuilt at another size or depth."""

import math

import keras
import numpy as np
from keras.initializers import Zeros

FAMILIES = ("ViTBackbone", "DINOV2Backbone", "DINOV3Backbone", "DeiTBackbone")


def is_transformer(model):
    """Whether a model is a keras-hub backbone of one of `FAMILIES`."""
    import keras_hub

    return isinstance(
        model, tuple(getattr(keras_hub.models, family) for family in FAMILIES)
    )


def rebuild(source, statistics, image_size=None, num_blocks=None, dtype=None):
    """Copies a transformer as a graph, images to tokens.

    Args:
        source: keras-hub backbone of one of `FAMILIES`, left as it is.
        statistics: `(mean, std)` of images in [0, 1].
        image_size: int or `None`, see `keras_smat.feature_backbone`.
        num_blocks: int or `None`.
        dtype: str, `keras.DTypePolicy` or `None`.

    Returns:
        Tuple of the symbolic images (N, H, W, C), the symbolic tokens
        (N, K + patches, D), and K, the number of tokens before the patches.

    Raises:
        ValueError: An argument does not fit the backbone.
    """
    image_shape, patch = _image_shape(source, image_size)
    blocks = source.num_layers if num_blocks is None else num_blocks
    if not isinstance(blocks, int) or not 1 <= blocks <= source.num_layers:
        raise ValueError(
            f"`num_blocks` should be in 1..{source.num_layers}, the blocks of "
            f"the model. Received: num_blocks={num_blocks}"
        )
    config = {
        **source.get_config(),
        "image_shape": image_shape,
        "num_layers": blocks,
        "dtype": dtype or source.dtype_policy,
        "data_format": "channels_last",
        "trainable": True,
        "name": None,
    }
    images, x = normalized_input(image_shape, statistics)
    grid = (image_shape[0] // patch[0], image_shape[1] // patch[1])
    if hasattr(source, "position_embedding_shape"):
        tokens = _dinov2_tokens(source, config, grid, x)
    elif hasattr(source, "rope_theta"):
        tokens = _dinov3_tokens(source, config, x)
    else:
        tokens = _vit_tokens(source, config, grid, x)
    return images, tokens, tokens.shape[1] - grid[0] * grid[1]


def zero_start():
    """A scope for layers whose weights are overwritten as soon as they exist.

    Random values would cost JAX seconds, since it compiles them shape by
    shape.
    """
    zeros = dict.fromkeys(["glorot_uniform", "random_normal"], Zeros)
    return keras.saving.custom_object_scope(zeros)


def normalized_input(image_shape, statistics):
    """An image input and its normalisation, as two symbolic tensors.

    Args:
        image_shape: tuple (H, W, C).
        statistics: `(mean, std)` of images in [0, 1], numbers or one per
            channel, or `None` to leave the images as they are.

    Returns:
        Tuple of the input tensor and the normalised tensor, (N, H, W, C).

    Raises:
        ValueError: `statistics` do not fit the channels.
    """
    # Keras converts uint8 to the float32 of the input; the other way round
    # it would truncate.
    images = keras.Input(image_shape, name="images", dtype="float32")
    if statistics is None:
        return images, images
    mean, std = (np.asarray(s, "float64") for s in statistics)
    if any(s.shape not in ((), (image_shape[-1],)) for s in (mean, std)):
        raise ValueError(
            "`mean` and `std` should be numbers or have one entry for each of "
            f"the {image_shape[-1]} channels. Received: mean={mean}, std={std}"
        )
    rescaling = keras.layers.Rescaling(
        scale=(1.0 / (255.0 * std)).tolist(),
        offset=(-mean / std).tolist(),
        dtype="float32",
        name="normalization",
    )
    return images, rescaling(images)


def resize_position_table(table, old_grid, new_grid, antialias=False):
    """Resizes the patch rows of a learned position table, bicubic.

    The same on every backend, and as in PyTorch, whose cubic kernel the
    models were trained with (a = -0.75, or -0.5 with antialiasing).

    Args:
        table: array (K + h * w, D), K rows of class and other tokens first,
            which are kept.
        old_grid: `(h, w)`, the patch grid of `table`.
        new_grid: `(h, w)`, the patch grid to make.
        antialias: bool. Widen the kernel when shrinking. Defaults to
            `False`, as DINO and DINOv2 do without registers.

    Returns:
        Array (K + new_h * new_w, D), dtype of `table`.
    """
    if tuple(old_grid) == tuple(new_grid):
        return table
    rows, columns = (
        _cubic_matrix(new, old, antialias)
        for new, old in zip(new_grid, old_grid)
    )
    kept = table.shape[0] - old_grid[0] * old_grid[1]
    patches = table[kept:].astype("float64").reshape(*old_grid, -1)
    patches = np.einsum("ih,jw,hwd->ijd", rows, columns, patches, optimize=True)
    patches = patches.reshape(-1, table.shape[-1]).astype(table.dtype)
    return np.concatenate([table[:kept], patches])


def _cubic_matrix(new, old, antialias):
    """Interpolation weights of one axis, (new, old)."""
    a = -0.5 if antialias else -0.75
    stretch = max(old / new, 1.0) if antialias else 1.0
    centre = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    reach = math.ceil(2 * stretch)
    taps = np.floor(centre).astype(int) + np.arange(-reach, reach + 2)
    d = np.abs(taps - centre) / stretch
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    weights = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    if antialias:  # Leaves out what lies beyond the edge, else edges repeat.
        weights = weights * ((taps >= 0) & (taps < old))
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((new, old))
    row = np.arange(new)[:, None]
    np.add.at(matrix, (row, np.clip(taps, 0, old - 1)), weights)
    return matrix


def _image_shape(source, image_size):
    """Returns `(H, W, C)` to build for, and the `(h, w)` of a patch."""
    formats = (keras.config.image_data_format(), source.layers[1].data_format)
    if "channels_first" in formats:
        raise ValueError(
            "Images and backbone should be 'channels_last'. Received: "
            f"keras.config.image_data_format()={formats[0]!r}, "
            f"backbone data_format={formats[1]!r}"
        )
    patch = source.patch_size
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    if image_size is None:
        return tuple(source.image_shape), patch
    step = math.lcm(*patch)
    if not isinstance(image_size, int) or image_size < 1 or image_size % step:
        hint = ""
        if isinstance(image_size, int | float):
            hint = f", for example {max(round(image_size / step), 1) * step}"
        raise ValueError(
            f"`image_size` should be an int and a multiple of {step}, the "
            f"patch size{hint}. Received: image_size={image_size!r}"
        )
    return (image_size, image_size, source.image_shape[-1]), patch


def _dinov2_tokens(source, config, grid, x):
    """DINOv2 from its parts, on one table that is trained and saved.

    keras-hub's own embedding layer keeps a second table, stores that one, and
    on saving may miss that the first was trained: a tuned model would load
    with its old positions. The embedding of DINOv3 has none.
    """
    import keras_hub
    from keras_hub.src.models.dinov3.dinov3_layers import DINOV3Embedding

    policy = {"dtype": config["dtype"]}
    embeddings = DINOV3Embedding(
        hidden_dim=source.hidden_dim,
        patch_size=source.patch_size,
        num_register_tokens=source.num_register_tokens,
        use_mask_token=False,
        data_format="channels_last",
        name="embeddings",
        **policy,
    )
    x = embeddings(x)
    positions = keras_hub.layers.PositionEmbedding(
        x.shape[1], name="position_embedding", **policy
    )
    x = keras.layers.Add(name="add_positions", **policy)([x, positions(x)])
    if source.dropout_rate:
        x = keras.layers.Dropout(source.dropout_rate, name="dropout")(x)
    changes = {"trainable": True, **policy}
    encoder, norm = (
        type(layer).from_config({**layer.get_config(), **changes, **more})
        for layer, more in (
            (
                source.encoder,
                {"name": "encoder", "num_layers": config["num_layers"]},
            ),
            (source.layernorm, {"name": "layernorm"}),
        )
    )
    x = norm(encoder(x)[0])
    _copy_dino_embeddings(embeddings, source.embeddings)
    positions.position_embeddings.assign(_dinov2_table(source, grid))
    _copy_blocks(encoder.layers, source.encoder.layers)
    norm.set_weights(source.layernorm.get_weights())
    return x


def _dinov2_table(source, grid):
    """The position table at `grid`, (1 + registers + patches, D)."""
    layer, patch = source.embeddings, source.patch_size
    table = _array(layer.interpolated_position_embeddings)
    table_grid = tuple(side // patch for side in layer.image_shape)
    if grid != table_grid:
        # The stored table resizes best, unless the other was trained since.
        stored = layer.position_embeddings
        fresh = layer._interpolate_position_embeddings(
            stored,
            patch_size=patch,
            source_shape=layer.position_embedding_shape,
            target_shape=layer.image_shape,
            antialias=layer.antialias_in_interpolation,
        )
        if np.allclose(_array(fresh), table, atol=1e-6):
            table = _array(stored)
            table_grid = tuple(
                side // patch for side in layer.position_embedding_shape
            )
    table = resize_position_table(
        table[0], table_grid, grid, layer.antialias_in_interpolation
    )
    # Register tokens have no position of their own.
    return np.insert(table, [1] * source.num_register_tokens, 0.0, axis=0)


def _dinov3_tokens(source, config, x):
    """The keras-hub backbone as one layer; its positions have no table."""
    backbone = type(source)(**{**config, "use_mask_token": False})
    _copy_dino_embeddings(backbone.embeddings, source.embeddings)
    _copy_blocks(backbone.encoder.layers, source.encoder.layers)
    backbone.layernorm.set_weights(source.layernorm.get_weights())
    return backbone({"pixel_values": x})


def _vit_tokens(source, config, grid, x):
    """ViT and DeiT: the keras-hub backbone as one layer, table resized."""
    with zero_start():
        backbone = type(source)(**config)
    (new, new_encoder), (old, old_encoder) = (
        model.layers[-2:] for model in (backbone, source)
    )
    table = old.position_embedding
    table = getattr(table, "embeddings", table)  # A layer in ViT.
    old_grid = tuple(
        side // patch
        for side, patch in zip(source.image_shape, source.patch_size)
    )
    for target, origin in zip(new.weights, old.weights):
        value = _array(origin)
        if origin is table:
            value = value.reshape(-1, source.hidden_dim)
            value = resize_position_table(value, old_grid, grid)
            value = value.reshape(target.shape)
        target.assign(value)
    _copy_blocks(new_encoder.encoder_layers, old_encoder.encoder_layers)
    new_encoder.layer_norm.set_weights(old_encoder.layer_norm.get_weights())
    return backbone(x)


def _copy_dino_embeddings(new, old):
    """Copies everything but the mask token, which no feature depends on."""
    new.patch_embeddings.set_weights(old.patch_embeddings.get_weights())
    new.cls_token.assign(_array(old.cls_token))
    if old.num_register_tokens:
        new.register_tokens.assign(_array(old.register_tokens))


def _copy_blocks(new, old):
    for target, origin in zip(new, old):
        target.set_weights(origin.get_weights())


def _array(variable):
    return keras.ops.convert_to_numpy(variable)
