"""`feature_backbone`: every kind of model, against independent references."""

import json
import math
import os
import pathlib
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest

from keras_smat import backbones
from keras_smat import converters
from keras_smat import vision_transformers
from keras_smat.backbones import feature_backbone

torch = pytest.importorskip("torch")

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
FAMILIES = ("vit", "deit", "dinov2", "dinov2_registers", "dinov3")
ROOT = pathlib.Path(__file__).resolve().parents[1]
NPZ = "weights/vit_small_14_focus_fp16.npz"


def tiny(family, size=32, **settings):
    """A random keras-hub backbone: patch 8, width 16, two blocks."""
    common = dict(num_layers=2, num_heads=2, hidden_dim=16, patch_size=8)
    common["image_shape"] = (size, size, 3)
    models = keras_hub.models
    if family == "vit":
        model = models.ViTBackbone(**{**common, "mlp_dim": 32, **settings})
    elif family == "deit":
        common["intermediate_dim"] = 32
        model = models.DeiTBackbone(**{**common, **settings})
    elif family == "dinov3":
        common["intermediate_dim"] = 32
        model = models.DINOV3Backbone(**{**common, **settings})
    else:
        common["position_embedding_shape"] = (size, size)
        common["intermediate_dim"] = 32
        if family == "dinov2_registers":
            common["num_register_tokens"] = 4
        model = models.DINOV2Backbone(**{**common, **settings})
    rng = np.random.default_rng(1)  # No zeros or ones that hide a mistake.
    for v in model.weights:
        v.assign(np_of(v) + 0.3 * rng.standard_normal(v.shape))
    if "dinov2" in family and model.position_embedding_shape[0] == size:
        e = model.embeddings  # Both tables agree, as in keras-hub.
        e.interpolated_position_embeddings.assign(np_of(e.position_embeddings))
    return model


def np_of(x):
    return keras.ops.convert_to_numpy(x)


def pixels(size=32, batch=2):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, size, size, 3)).astype("uint8")


def normalized(images):
    return ((images / 255.0 - MEAN) / STD).astype("float32")


def tokens_of(model, images):
    x = normalized(images)
    keys = model.input if isinstance(model.input, dict) else None
    return np_of(model({k: x for k in keys} if keys else x))


def prefix_of(family):
    return {"deit": 2, "dinov2_registers": 5, "dinov3": 5}.get(family, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_keras_hub_backbone(family):
    source, images = tiny(family), pixels()
    before = [np_of(w).copy() for w in source.weights]
    tokens, k = tokens_of(source, images), prefix_of(family)
    cls, mean = tokens[:, 0], tokens[:, k:].mean(axis=1)
    wanted = {None: cls, "cls+mean": np.concatenate([cls, mean], axis=-1)}
    if family == "vit":
        wanted.update({"cls": cls, "mean": mean})
    for pooling, features in wanted.items():
        model = feature_backbone(source, pooling=pooling)
        assert model.output_shape == (None, features.shape[-1])
        np.testing.assert_allclose(np_of(model(images)), features, atol=2e-5)
    np.testing.assert_array_equal(
        np_of(model(images)), np_of(model(images.astype("float32")))
    )
    # A copy: changing it leaves the given backbone alone.
    for w in model.weights:
        w.assign(np.zeros(w.shape))
    for w, old in zip(source.weights, before):
        np.testing.assert_array_equal(np_of(w), old)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variable_is_trainable_and_takes_part(family):
    source = tiny(family, num_layers=1)
    model = feature_backbone(source, pooling="cls+mean")
    paths = [w.path for w in model.weights]
    assert len(set(paths)) == len(paths) == len(model.trainable_weights)
    tables = [p for p in paths if "position" in p]
    assert len(tables) == (family != "dinov3")
    images = pixels(batch=1)
    base = np_of(model(images))
    for w in model.weights:
        if "encoder" in w.path or "layernorm" in w.path:
            continue
        old = np_of(w).copy()
        w.assign(old + np.random.default_rng(0).standard_normal(old.shape))
        assert np.abs(np_of(model(images)) - base).max() > 1e-4, w.path
        w.assign(old)


@pytest.mark.parametrize("family", FAMILIES)
def test_num_blocks_is_the_truncated_forward(family):
    source, images = tiny(family), pixels()
    # Silenced blocks pass their input on: an independent truncation.
    reference = tiny(family)
    reference.set_weights(source.get_weights())
    encoder = getattr(reference, "encoder", None) or reference.layers[-1]
    blocks = getattr(encoder, "encoder_layers", None) or encoder.layers
    names = ("attention_output", "fc2", "dense_2", "output_layer", "_proj")
    for block in blocks[1:]:
        for w in block.weights:
            if any(name in w.path for name in names):
                w.assign(np.zeros(w.shape))
    model = feature_backbone(source, num_blocks=1)
    assert len(model.weights) < len(feature_backbone(source).weights)
    np.testing.assert_allclose(
        np_of(model(images)), tokens_of(reference, images)[:, 0], atol=2e-5
    )


@pytest.mark.parametrize("antialias", (False, True))
@pytest.mark.parametrize("new", ((5, 5), (2, 3), (8, 6), (4, 6)))
def test_table_resize_is_that_of_pytorch(new, antialias):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((2 + 6 * 4, 3)).astype("float32")
    got = vision_transformers.resize_position_table(
        table, (6, 4), new, antialias
    )
    grid = torch.tensor(table[2:].reshape(1, 6, 4, 3), dtype=torch.float64)
    grid = grid.permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(
        grid, size=new, mode="bicubic", antialias=antialias
    )
    wanted = wanted.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    assert got.dtype == table.dtype
    np.testing.assert_array_equal(got[:2], table[:2])
    np.testing.assert_allclose(got[2:], wanted, atol=1e-6)
    same = vision_transformers.resize_position_table(table, (6, 4), (6, 4))
    np.testing.assert_array_equal(same, table)


def table_of(model):
    layer = next(
        (w for w in model.weights if "position_embedding" in w.path), None
    )
    return np_of(layer).reshape(-1, 16)


@pytest.mark.parametrize("family", FAMILIES[:4])
def test_image_size_resizes_the_one_table(family):
    source = tiny(family)
    k, extra = {"deit": (2, 0), "dinov2_registers": (1, 4)}.get(family, (1, 0))
    if "dinov2" in family:
        native = np_of(source.embeddings.position_embeddings)[0]
    else:
        native = table_of(source)
    same = table_of(feature_backbone(source, image_size=32))
    np.testing.assert_array_equal(
        np.delete(same, range(1, 1 + extra), 0), native
    )
    assert not same[1 : 1 + extra].any()

    model = feature_backbone(source, image_size=48)
    table = table_of(model)
    assert model.input_shape == (None, 48, 48, 3)
    assert table.shape == (k + extra + 36, 16)
    wanted = torch.nn.functional.interpolate(
        torch.tensor(native[k:].reshape(1, 4, 4, 16)).permute(0, 3, 1, 2),
        size=(6, 6),
        mode="bicubic",
    ).permute(0, 2, 3, 1)
    np.testing.assert_allclose(
        table[k + extra :], wanted.reshape(-1, 16).numpy(), atol=1e-5
    )
    assert np_of(model(pixels(48))).shape == (2, 16)


def test_dinov3_at_another_size():
    source = tiny("dinov3", 48)
    other = type(source)(**{**source.get_config(), "image_shape": (32, 32, 3)})
    other.set_weights(source.get_weights())
    images = pixels()
    np.testing.assert_allclose(
        np_of(feature_backbone(source, image_size=32)(images)),
        tokens_of(other, images)[:, 0],
        atol=2e-5,
    )


def test_dinov2_with_two_tables_starts_from_the_right_one():
    source = tiny("dinov2", 48, position_embedding_shape=(64, 64))
    e = source.embeddings
    stored = np_of(e.position_embeddings)
    e.load_own_variables(  # Interpolates anew, as loading a preset does.
        {
            str(i): np_of(v)
            for i, v in enumerate(
                e._trainable_variables + e._non_trainable_variables
            )
        }
    )
    active = np_of(e.interpolated_position_embeddings)
    np.testing.assert_array_equal(table_of(feature_backbone(source)), active[0])
    full = table_of(feature_backbone(source, image_size=64))
    np.testing.assert_array_equal(full, stored[0])
    e.interpolated_position_embeddings.assign(active + 1.0)  # Trained since.
    full = table_of(feature_backbone(source, image_size=64))
    wanted = vision_transformers.resize_position_table(
        active[0] + 1.0, (6, 6), (8, 8)
    )
    np.testing.assert_allclose(full, wanted, atol=1e-6)


def test_rectangular_vit_without_class_token():
    source = keras_hub.models.ViTBackbone(
        image_shape=(32, 16, 3),
        patch_size=(8, 4),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        use_class_token=False,
    )
    images = pixels()[:, :, :16]
    model = feature_backbone(source)  # The default pooling is the mean.
    np.testing.assert_allclose(
        model.predict_on_batch(images),
        tokens_of(source, images).mean(1),
        atol=2e-5,
    )
    assert table_of(feature_backbone(source, image_size=24)).shape == (18, 16)
    with pytest.raises(ValueError, match="without class token"):
        feature_backbone(source, pooling="cls")


def test_normalisation():
    images = pixels()
    model = feature_backbone(tiny("vit"))
    layer = model.get_layer("normalization")
    np.testing.assert_allclose(
        np_of(layer(images)), normalized(images), atol=1e-5
    )
    model = feature_backbone(tiny("vit"), mean=0.5, std=[0.5, 0.25, 1.0])
    np.testing.assert_allclose(
        np_of(model.get_layer("normalization")(images)),
        (images / 255.0 - 0.5) / [0.5, 0.25, 1.0],
        atol=1e-5,
    )


@pytest.mark.parametrize("family", ("vit", "dinov2"))
def test_mixed_precision_keeps_float32_normalisation(family):
    source = tiny(family)
    model = feature_backbone(source, dtype="mixed_bfloat16")
    assert {w.dtype for w in model.weights} == {"float32"}
    assert keras.backend.standardize_dtype(model.output.dtype) == "bfloat16"
    assert model.get_layer("normalization").compute_dtype == "float32"
    wanted = np_of(feature_backbone(source)(pixels()))
    got = np_of(keras.ops.cast(model(pixels()), "float32"))
    assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()


def test_clone_model_and_frozen_source():
    source = tiny("dinov2")
    source.trainable = False
    model = feature_backbone(source)
    assert len(model.trainable_weights) == len(model.weights)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert [w.path for w in clone.weights] == [w.path for w in model.weights]
    np.testing.assert_array_equal(
        np_of(clone(pixels())), np_of(model(pixels()))
    )


LOAD = """
import sys, json
import numpy as np
try:
    import torch
except ImportError:
    pass
import keras
images = np.load(sys.argv[1])
out = [
    keras.models.load_model(p).predict_on_batch(images)
    for p in sys.argv[3:]
]
assert not [m for m in sys.modules if m.startswith("keras_smat")]
np.savez(sys.argv[2], *out)
"""


@pytest.mark.slow
def test_saved_models_load_without_this_package(tmp_path):
    images, wanted, paths = pixels(), [], []
    np.save(tmp_path / "images.npy", images)
    for family in ("deit", "dinov2_registers", "dinov3"):
        model = feature_backbone(tiny(family, 48), 32, "cls+mean", 1)
        for w in model.weights:  # As after training: also the table moved.
            w.assign(w + (-0.1 if "position" in w.path else 0.05))
        paths.append(str(tmp_path / f"{family}.keras"))
        model.save(paths[-1])
        wanted.append(np_of(model(images)))
    out = tmp_path / "out.npz"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "images.npy", out, *paths],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # Compiles faster.
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as loaded:
        for name, features in zip(loaded.files, wanted):
            np.testing.assert_allclose(loaded[name], features, atol=2e-5)


def cnn(pool=True, size=16):
    layers = [keras.Input((size, size, 3)), keras.layers.Conv2D(5, 3)]
    layers.append(keras.layers.BatchNormalization())
    if pool:
        layers.append(keras.layers.GlobalMaxPooling2D())
    return keras.Sequential(layers)


@pytest.mark.parametrize("pool", (True, False))
def test_any_keras_image_model(pool):
    source, images = cnn(pool), pixels(16)
    model = feature_backbone(source)
    wanted = np_of(source(images.astype("float32")))
    wanted = wanted if pool else wanted.mean(axis=(1, 2))
    np.testing.assert_allclose(np_of(model(images)), wanted, atol=1e-3)
    for w in model.weights:
        w.assign(np.zeros(w.shape))
    assert np.abs(np_of(source.weights[0])).max() > 0
    asked = feature_backbone(source, mean=0.0, std=1.0)
    wanted = np_of(source((images / 255.0).astype("float32")))
    wanted = wanted if pool else wanted.mean(axis=(1, 2))
    np.testing.assert_allclose(np_of(asked(images)), wanted, atol=1e-4)
    assert asked.name == source.name
    assert feature_backbone(source, name="mine").name == "mine"
    again = feature_backbone(asked)  # Its own result is a Keras model too.
    np.testing.assert_allclose(np_of(again(images)), wanted, atol=1e-4)


def test_image_size_fixes_an_open_input():
    model = feature_backbone(cnn(size=None), image_size=24)
    assert model.input_shape == (None, 24, 24, 3)
    assert np_of(model(pixels(24))).shape == (2, 5)


# Hugging Face weights: a NumPy forward is the reference.


def hf_state(config, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (0.3 * rng.standard_normal(shape)).astype("float32")
        for name, shape in converters._expected_shapes(config).items()
    }


def hf_config(kind, width=16, **settings):
    common = {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 32,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_channels": 3,
        "qkv_bias": True,
    }
    if kind == "vit":
        more = {"intermediate_size": 32, "layer_norm_eps": 1e-3}
    else:
        more = {
            "mlp_ratio": 2,
            "layer_norm_eps": 1e-6,
            "layerscale_value": 1.0,
            "drop_path_rate": 0.0,
            "use_swiglu_ffn": False,
        }
    return {"model_type": kind, **common, **more, **settings}


def hf_forward(state, config, x):
    """`ViTModel` and `Dinov2Model` in float64, from their definitions."""
    p = {k: v.astype("float64") for k, v in state.items()}
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    patch, n = config["patch_size"], x.shape[0]
    vit = config["model_type"] == "vit"

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def gelu(x):
        erf = torch.erf(torch.from_numpy(x) / math.sqrt(2)).numpy()
        return 0.5 * x * (1 + erf)

    def attention(x, name):
        q, k, v = (
            linear(x, f"{name}.attention.{part}")
            .reshape(n, x.shape[1], heads, -1)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        x = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x.transpose(0, 2, 1, 3).reshape(n, -1, config["hidden_size"])
        return linear(x, f"{name}.output.dense")

    def mlp(x, layer):
        if vit:
            x = gelu(linear(x, f"{layer}.intermediate.dense"))
            return linear(x, f"{layer}.output.dense")
        if config["use_swiglu_ffn"]:
            gate, x = np.split(linear(x, f"{layer}.mlp.weights_in"), 2, -1)
            return linear(
                gate / (1 + np.exp(-gate)) * x, f"{layer}.mlp.weights_out"
            )
        return linear(gelu(linear(x, f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")

    grid = x.shape[1] // patch
    x = x.reshape(n, grid, patch, grid, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    kernel = "embeddings.patch_embeddings.projection"
    x = x.reshape(n, grid * grid, -1)
    x = x @ p[f"{kernel}.weight"].reshape(config["hidden_size"], -1).T
    x = x + p[f"{kernel}.bias"]
    cls = np.repeat(p["embeddings.cls_token"], n, axis=0)
    x = np.concatenate([cls, x], axis=1) + p["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in p:
        tokens = np.repeat(p["embeddings.register_tokens"], n, axis=0)
        x = np.concatenate([x[:, :1], tokens, x[:, 1:]], axis=1)
    names = ("layernorm_before", "layernorm_after")
    names = names if vit else ("norm1", "norm2")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        scale = [
            1.0 if vit else p[f"{layer}.layer_scale{j}.lambda1"] for j in (1, 2)
        ]
        y = attention(norm(x, f"{layer}.{names[0]}"), f"{layer}.attention")
        x = x + scale[0] * y
        x = x + scale[1] * mlp(norm(x, f"{layer}.{names[1]}"), layer)
    return norm(x, "layernorm")


def write_hf(path, state, config, prefix="", shards=1):
    save = pytest.importorskip("safetensors.numpy").save_file
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    names = [prefix + name for name in state]
    for i in range(shards):
        name = f"model-{i}.safetensors" if shards > 1 else "model.safetensors"
        part = {n: state[n[len(prefix) :]] for n in names[i::shards]}
        save(part, str(path / name))
    return path


@pytest.mark.parametrize(
    ("config", "prefix", "shards"),
    (
        (hf_config("vit"), "", 1),
        (hf_config("vit", layer_norm_eps=1e-12), "vit.", 2),
        (hf_config("dinov2"), "", 1),
        (hf_config("dinov2", use_swiglu_ffn=True), "dinov2.", 2),
        (hf_config("dinov2_with_registers", num_register_tokens=3), "", 1),
    ),
    ids=("vit", "vit_prefix", "dinov2", "dinov2_swiglu", "registers"),
)
def test_hugging_face_directory(tmp_path, config, prefix, shards):
    state = hf_state(config)
    extra = {"pooler.dense.weight": np.zeros((2, 2), "float32")}
    path = write_hf(tmp_path / "hf", {**state, **extra}, config, prefix, shards)
    images = pixels()
    tokens = hf_forward(state, config, normalized(images).astype("float64"))
    model = feature_backbone(path, pooling="cls+mean")
    prefix_tokens = 1 + config.get("num_register_tokens", 0)
    wanted = np.concatenate(
        [tokens[:, 0], tokens[:, prefix_tokens:].mean(axis=1)], axis=-1
    )
    error = np.abs(np_of(model(images)) - wanted).max()
    assert error < 1e-4 * np.abs(wanted).max()


def test_hugging_face_preprocessor_config(tmp_path):
    config = hf_config("vit")
    path = write_hf(tmp_path / "hf", hf_state(config), config)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    layer = feature_backbone(str(path)).get_layer("normalization")
    np.testing.assert_allclose(
        np_of(layer(pixels())), (pixels() / 255.0 - 0.5) / 0.25, atol=1e-5
    )
    settings = {"do_normalize": False}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    layer = feature_backbone(str(path)).get_layer("normalization")
    np.testing.assert_allclose(
        np_of(layer(pixels())), pixels() / 255.0, atol=1e-5
    )


def npz_config(**settings):
    return hf_config("dinov2", 64, num_attention_heads=1, **settings)


def test_npz_of_a_dinov2_state(tmp_path):
    config = npz_config(mlp_ratio=1.4)  # 89 inner channels.
    state = {k: v.astype("float16") for k, v in hf_state(config).items()}
    path = tmp_path / "weights.npz"
    np.savez(path, **state)
    model, images = feature_backbone(path), pixels()
    assert {w.dtype for w in model.weights} == {"float32"}
    wanted = hf_forward(state, config, normalized(images).astype("float64"))
    error = np.abs(model.predict_on_batch(images) - wanted[:, 0]).max()
    assert error < 1e-4 * np.abs(wanted).max()


def test_keras_hub_preset_directory(tmp_path):
    source = tiny("vit")
    source.save_to_preset(str(tmp_path))
    plain = feature_backbone(str(tmp_path))
    np.testing.assert_allclose(
        np_of(plain(pixels())), tokens_of(source, pixels())[:, 0], atol=2e-5
    )
    keras_hub.layers.ViTImageConverter(
        image_size=(32, 32), scale=[0.1, 0.2, 0.3], offset=[-1.0, 0.0, 2.0]
    ).save_to_preset(str(tmp_path))
    layer = feature_backbone(str(tmp_path)).get_layer("normalization")
    np.testing.assert_allclose(
        np_of(layer(pixels())),
        pixels() * [0.1, 0.2, 0.3] + [-1.0, 0.0, 2.0],
        atol=1e-4,
    )


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (dict(pooling="max"), "`pooling` should be None or one of"),
        (dict(mean=0.5), "given together.*Received: mean=0.5, std=None"),
        (dict(mean=[0.5, 0.5], std=1.0), "each of the 3 channels"),
        (dict(image_size=30), "multiple of 8.*example 32.*image_size=30"),
        (dict(image_size=1), "example 8"),
        (dict(image_size=(32, 32)), "multiple of 8.*image_size="),
        (dict(num_blocks=0), r"in 1..2.*num_blocks=0"),
        (dict(num_blocks=3), r"in 1..2.*num_blocks=3"),
        (dict(num_blocks=1.5), r"in 1..2.*num_blocks=1.5"),
    ),
)
def test_argument_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        feature_backbone(tiny("vit"), **arguments)


def test_image_model_errors():
    with pytest.raises(ValueError, match="need a transformer.*ViTBackbone"):
        feature_backbone(cnn(), num_blocks=1)
    with pytest.raises(ValueError, match="need a transformer"):
        feature_backbone(cnn(), dtype="float16")
    with pytest.raises(ValueError, match="None for outputs"):
        feature_backbone(cnn(), pooling="mean")
    with pytest.raises(ValueError, match="the model was built for"):
        feature_backbone(cnn(), image_size=32)
    two = keras.Input((4,)), keras.Input((4,))
    for bad in (
        keras.Sequential([keras.layers.Dense(2)]),
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]),
        keras.Model(two, keras.layers.Add()(two)),
    ):
        with pytest.raises(ValueError, match="built functional or Sequential"):
            feature_backbone(bad)
    with pytest.raises(ValueError, match="a preset name, a path or a Keras"):
        feature_backbone(3)


def test_preset_and_path_errors(tmp_path):
    with pytest.raises(ValueError, match="dinov2_small.*'dinov2_smal'") as e:
        feature_backbone("dinov2_smal")
    assert all(family in str(e.value) for family in backbones.FAMILIES)
    with pytest.raises(ValueError, match="an existing file"):
        feature_backbone(str(tmp_path / "none.npz"))
    with pytest.raises(ValueError, match="readable `config.json`"):
        feature_backbone(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="complete keras-hub preset"):
        feature_backbone(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"should hold `\*.safetensors`"):
        feature_backbone(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bit"}')
    with pytest.raises(ValueError, match="complete keras-hub preset"):
        feature_backbone(tmp_path)


def test_weights_of_another_backbone(tmp_path):
    config = npz_config()
    state = hf_state(config)
    path = tmp_path / "weights.npz"
    key = "encoder.layer.1.mlp.fc2.weight"

    def refuse(changed, message):
        np.savez(path, **changed)
        with pytest.raises(ValueError, match=message):
            feature_backbone(path)

    refuse({**state, key: np.zeros((64, 3))}, r"fc2.*\(64, 128\).*\(64, 3\)")
    missing = {k: v for k, v in state.items() if k != key}
    refuse(missing, "another backbone: .*fc2.*no such array")
    refuse({"w": np.zeros(3)}, "embeddings.cls_token.*no such array")
    wide = hf_config("dinov2", 48)
    refuse(hf_state(wide), "multiple of 64.*width=48")
    with pytest.raises(ValueError, match="layer_norm_eps=1e-06"):
        converters.convert_state(state, {**config, "layer_norm_eps": 1e-5})
    with pytest.raises(ValueError, match="hidden_act='gelu'"):
        converters.convert_state(state, {**config, "hidden_act": "relu"})
    with pytest.raises(ValueError, match="`model_type`"):
        converters.convert_state(state, {**config, "model_type": "bert"})
    del config["mlp_ratio"]
    with pytest.raises(ValueError, match="should set 'mlp_ratio'"):
        converters.convert_state(state, config)


def test_safetensors_is_optional(tmp_path, monkeypatch):
    config = hf_config("vit")
    path = write_hf(tmp_path / "hf", hf_state(config), config)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        feature_backbone(path)


def test_channels_first_is_refused():
    source = tiny("vit")
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="channels_last"):
            feature_backbone(source)
    finally:
        keras.config.set_image_data_format("channels_last")


def real_weights():
    folders = [os.environ.get("KERAS_SMAT_SHARED"), ROOT.parent / "shared"]
    for folder in [*folders, ROOT / "shared"]:
        if folder and (pathlib.Path(folder) / NPZ).is_file():
            return pathlib.Path(folder) / NPZ
    pytest.skip(f"no {NPZ} in KERAS_SMAT_SHARED or a `shared` folder")


def test_pretrained_vit_small():
    path = real_weights()
    model = feature_backbone(path, image_size=112, num_blocks=11)
    assert model.output_shape == (None, 384)
    assert len(model.weights) == len(model.trainable_weights) == 204
    images = pixels(112, batch=1)
    with np.load(path) as arrays:
        state = {k: arrays[k] for k in arrays.files}
    table = state["embeddings.position_embeddings"].astype("float32")[0]
    grid = torch.tensor(table[1:].reshape(1, 37, 37, 384)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bicubic")
    grid = grid.permute(0, 2, 3, 1).reshape(64, 384).numpy()
    state["embeddings.position_embeddings"] = np.concatenate([table[:1], grid])[
        None
    ]
    config = hf_config(
        "dinov2",
        384,
        num_attention_heads=6,
        num_hidden_layers=11,
        patch_size=14,
    )
    wanted = hf_forward(state, config, normalized(images).astype("float64"))
    error = np.abs(model.predict_on_batch(images) - wanted[:, 0]).max()
    assert error < 1e-4 * np.abs(wanted[:, 0]).max()
