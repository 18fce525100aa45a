"""Hugging Face vision transformer weights as keras-hub backbones."""

import json
import os
import zipfile

import numpy as np

# ImageNet statistics of RGB in [0, 1], the default of all four families.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers")


def load_huggingface(path):
    """Reads a local Hugging Face directory as a keras-hub backbone.

    The directory holds `config.json` and one or several `*.safetensors`
    files of a `ViTModel` (such as DINO), a `Dinov2Model` or a
    `Dinov2WithRegistersModel`. Array names may carry a prefix (`vit.`,
    `dinov2.`); heads are ignored. Where `preprocessor_config.json` is
    present, its mean and standard deviation are used, else ImageNet's.

    Args:
        path: str or path object. The directory.

    Returns:
        Tuple `(backbone, (mean, std))`: a `keras_hub` backbone at the image
        size of the checkpoint, and the normalisation of RGB in [0, 1].

    Raises:
        ValueError: A file, a setting or an array is missing, is unsupported
            or has another shape.
        ImportError: The `safetensors` package is not installed.
    """
    config = read_json(path, "config.json")
    state = _read_safetensors(path)
    statistics = (IMAGENET_MEAN, IMAGENET_STD)
    if os.path.exists(os.path.join(path, "preprocessor_config.json")):
        settings = read_json(path, "preprocessor_config.json")
        if not settings.get("do_normalize", True):
            statistics = (0.0, 1.0)
        elif "image_mean" in settings and "image_std" in settings:
            statistics = (settings["image_mean"], settings["image_std"])
    return convert_state(state, config), statistics


def load_npz(path):
    """Reads an `.npz` of a Hugging Face `Dinov2Model` as a keras-hub backbone.

    The configuration follows from the shapes (64 channels per head, square
    position grid). Half precision becomes float32.

    Args:
        path: str or path object. The file, arrays named as in Hugging Face.

    Returns:
        Tuple `(backbone, (mean, std))`, as `load_huggingface`.

    Raises:
        ValueError: An array is missing or has another shape.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            state = {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise _unreadable(path) from error
    return convert_state(state, None), (IMAGENET_MEAN, IMAGENET_STD)


def convert_state(state, config=None):
    """Builds the keras-hub backbone of Hugging Face arrays.

    Args:
        state: dict of name to NumPy array, linear weights (out, in), patch
            kernel (D, C, patch, patch).
        config: dict, `config.json`. Defaults to `None`, which infers that of
            a `Dinov2Model` from the shapes.

    Returns:
        A `keras_hub.models.ViTBackbone` or `DINOV2Backbone`.

    Raises:
        ValueError: An array or setting is missing, unsupported or of another
            shape.

    Reference:
    - [DINO](https://arxiv.org/abs/2104.14294)
    - [DINOv2](https://arxiv.org/abs/2304.07193)
    """
    state = _without_prefix(state)
    config = _infer_config(state) if config is None else dict(config)
    config.setdefault("qkv_bias", True)
    config.setdefault("num_channels", 3)
    config["use_mask_token"] = False  # Pretraining alone needs it.
    _check_config(config)
    try:
        shapes = _expected_shapes(config)
    except KeyError as error:
        raise ValueError(
            f"`config.json` should set {error.args[0]!r}. "
            f"Received: {sorted(config)}"
        ) from error
    for name, shape in shapes.items():
        _check_array(state, name, shape)

    # keras-hub's own converters name the layers; this module only feeds them.
    overrides = {"data_format": "channels_last"}
    if config["model_type"] == "vit":
        from keras_hub.src.utils.transformers import convert_vit as converter

        overrides["layer_norm_epsilon"] = config["layer_norm_eps"]
    else:
        from keras_hub.src.utils.transformers import convert_dinov2 as converter
    settings = converter.convert_backbone_config(config)
    backbone = converter.backbone_cls(**{**settings, **overrides})
    converter.convert_weights(backbone, _ArrayLoader(state), config)
    return backbone


class _ArrayLoader:
    """What keras-hub's converters call, over a dict instead of files."""

    def __init__(self, state):
        self.state = state

    def port_weight(self, keras_variable, hf_weight_key, hook_fn=None):
        array = self.state[hf_weight_key.removeprefix("vit.")]
        array = np.asarray(array, "float32")
        if hook_fn is not None:
            array = hook_fn(array, list(keras_variable.shape))
        keras_variable.assign(array)


def read_json(path, name):
    """Reads the JSON file `name` of a model directory, else `ValueError`."""
    try:
        with open(os.path.join(path, name), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"A model directory should hold a readable `{name}` ({error}). "
            f"Received: {os.fspath(path)!r}"
        ) from error


def _read_safetensors(path):
    names = sorted(n for n in os.listdir(path) if n.endswith(".safetensors"))
    if not names:
        raise ValueError(
            "A Hugging Face directory should hold `*.safetensors` files. "
            f"Received: {os.fspath(path)!r} with {sorted(os.listdir(path))}"
        )
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            "Reading `*.safetensors` needs the safetensors package: "
            "`pip install safetensors`."
        ) from error
    state = {}
    for name in names:
        file = os.path.join(path, name)
        try:
            state.update(load_file(file))
        except SafetensorError as error:
            raise _unreadable(file) from error
    return state


def _unreadable(path):
    return ValueError(
        "Expected a file of arrays that can be read. "
        f"Received: {os.fspath(path)!r}, which is damaged or something else"
    )


def _without_prefix(state):
    anchor = "embeddings.cls_token"
    prefix = next((k[: -len(anchor)] for k in state if k.endswith(anchor)), "")
    return {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix)
    }


def _infer_config(state):
    cls_token = _check_array(state, "embeddings.cls_token", (1, 1, None))
    table = _check_array(
        state, "embeddings.position_embeddings", (1, None, cls_token.shape[-1])
    )
    patch = _check_array(
        state,
        "embeddings.patch_embeddings.projection.weight",
        (cls_token.shape[-1], 3, None, None),
    )
    inner = _check_array(state, "encoder.layer.0.mlp.fc1.bias", (None,))
    width, patch_size = patch.shape[0], patch.shape[-1]
    if width % 64:
        raise ValueError(
            "The width of an `.npz` should be a multiple of 64, the channels "
            f"of a head. Received: width={width}"
        )
    registers = state.get("embeddings.register_tokens", np.zeros((1, 0, 1)))
    blocks = {k.split(".")[2] for k in state if k.startswith("encoder.layer.")}
    return {
        "model_type": "dinov2_with_registers"
        if registers.shape[1]
        else "dinov2",
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // 64,
        # keras-hub multiplies back and rounds down.
        "mlp_ratio": (inner.shape[0] + 0.5) / width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "use_swiglu_ffn": False,
        "num_register_tokens": registers.shape[1],
        "patch_size": patch_size,
        "image_size": round((table.shape[1] - 1) ** 0.5) * patch_size,
    }


def _check_config(config):
    kind = config.get("model_type")
    required = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"`model_type` in `config.json` should be one of {MODEL_TYPES}. "
            f"Received: model_type={kind!r}"
        )
    if kind != "vit":  # keras-hub fixes it.
        required["layer_norm_eps"] = 1e-6
    for key, value in required.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"keras-hub's {kind} backbone is limited to {key}={value!r}. "
                f"Received: {key}={config[key]!r}"
            )


def _expected_shapes(config):
    """Names and shapes that the configuration asks for, in reading order."""
    width, patch = config["hidden_size"], config["patch_size"]
    positions = (config["image_size"] // patch) ** 2 + 1
    registers = config.get("num_register_tokens", 0)
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, positions, width),
        "embeddings.patch_embeddings.projection.weight": (
            *(width, config["num_channels"]),
            *(patch, patch),
        ),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    if registers:
        shapes["embeddings.register_tokens"] = (1, registers, width)
    block = _block_shapes(config, width)
    for i in range(config["num_hidden_layers"]):
        shapes.update({f"encoder.layer.{i}.{k}": v for k, v in block.items()})
    return {**shapes, **_pair("layernorm", width)}


def _block_shapes(config, width):
    attention = [f"attention.attention.{n}" for n in ("query", "key", "value")]
    linear = {n: (width, width) for n in (*attention, "attention.output.dense")}
    if config["model_type"] == "vit":
        inner = config["intermediate_size"]
        norms = ("layernorm_before", "layernorm_after")
        linear["intermediate.dense"] = (inner, width)
        linear["output.dense"] = (width, inner)
    else:
        inner = int(width * config["mlp_ratio"])
        norms = ("norm1", "norm2")
        if config["use_swiglu_ffn"]:
            inner = (int(inner * 2 / 3) + 7) // 8 * 8
            linear["mlp.weights_in"] = (2 * inner, width)
            linear["mlp.weights_out"] = (width, inner)
        else:
            linear["mlp.fc1"] = (inner, width)
            linear["mlp.fc2"] = (width, inner)
    shapes = {}
    for name in norms:
        shapes.update(_pair(name, width))
    for name, shape in linear.items():
        shapes.update(_pair(name, *shape))
    if config["model_type"] != "vit":
        shapes["layer_scale1.lambda1"] = (width,)
        shapes["layer_scale2.lambda1"] = (width,)
    return shapes


def _pair(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _check_array(state, name, shape):
    received = state[name].shape if name in state else "no such array"
    if (
        name not in state
        or len(received) != len(shape)
        or any(e is not None and e != r for e, r in zip(shape, received))
    ):
        raise ValueError(
            "The weights should be those of the configured backbone, these "
            f"are of another backbone: {name!r} should have shape {shape}. "
            f"Received: {received}"
        )
    return state[name]
