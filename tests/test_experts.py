"""ExpertBank against NumPy, on every kind of backbone."""

import functools
import math

import keras
import keras_hub
import numpy as np
import numpy_twin as twin
import pytest
from keras import ops

from keras_smat import _backend
from keras_smat.experts import ExpertBank

GRANULARITIES = ("element", "input", "output", "tensor")
BACKBONES = ("vit", "deit", "dinov2", "dinov3", "cnn")
# Every backbone with scalar masks, one transformer with every structure.
CASES = [(family, "element") for family in BACKBONES] + [
    ("vit", granularity) for granularity in GRANULARITIES[1:]
]


def cnn():
    """Convolutions, batch normalisation (moving statistics) and dropout."""
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(5, name="dense")(x)
    return keras.Model(inputs, x)


def make(family):
    """A backbone with weights that are not zero; no test changes them."""
    if family == "cnn":  # Its layers are frozen and thawed.
        return build(family)
    return cached(family)


@functools.cache
def cached(family):
    return build(family)


def build(family):
    settings = dict(
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        patch_size=4,
        image_shape=(8, 8, 3),
    )
    if family == "cnn":
        model = cnn()
    elif family == "vit":
        model = keras_hub.models.ViTBackbone(mlp_dim=12, **settings)
    elif family == "deit":
        model = keras_hub.models.DeiTBackbone(intermediate_dim=12, **settings)
    elif family == "dinov2":
        model = keras_hub.models.DINOV2Backbone(
            intermediate_dim=12, position_embedding_shape=(8, 8), **settings
        )
    else:
        model = keras_hub.models.DINOV3Backbone(intermediate_dim=12, **settings)
    for i, w in enumerate(model.weights):
        w.assign(normal(*w.shape, seed=i))
    return model


def array(x):
    return ops.convert_to_numpy(x)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        array(actual), expected, rtol=tolerance, atol=tolerance
    )


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype("float32")


def fill(bank, scale=1.5):
    """A delta that is not zero, and masks with zeros and ones."""
    bank.delta.assign(normal(*bank.delta.shape, seed=90))
    logits = bank.mask.logits
    logits.assign(scale * normal(*logits.shape, seed=91))
    return bank


def mixing(num_experts):
    rng = np.random.default_rng(92)
    return rng.uniform(0.1, 1.0, num_experts).astype("float32")


def expected_weights(bank, a, training=False):
    """theta + delta * sum_m a_m z_m, weight by weight."""
    masks = _backend.jit(lambda: bank.masks(training))()
    masks = {path: array(z) for path, z in masks.items()}
    deltas, at = array(bank.delta), 0
    result = []
    for w in bank.backbone.weights:
        value = array(w).astype("float64")
        if w.path in masks:
            size = math.prod(w.shape)
            delta = deltas[:, at : at + size].reshape(-1, *w.shape)
            delta = np.broadcast_to(delta, (len(a), *w.shape))
            value = value + sum(
                a[m] * delta[m] * masks[w.path][m] for m in range(len(a))
            )
            at += size
        result.append(value)
    assert at == bank.num_parameters
    return result


def merge(bank, a, training=False):
    """`merge`, compiled where the backend compiles."""
    compiled = _backend.jit(lambda a: bank.merge(a, training=training))
    return compiled(ops.convert_to_tensor(a))


def check_merge(bank, a, training=False):
    merged = merge(bank, a, training)
    expected = expected_weights(bank, a, training)
    for one, other in zip(merged, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("family,granularity", CASES)
def test_zero_delta_gives_the_backbone_bit_for_bit(family, granularity):
    backbone = make(family)
    for num_experts in (1, 3) if family == "cnn" else (3,):
        bank = ExpertBank(backbone, num_experts, granularity)
        merged = merge(bank, mixing(num_experts), training=True)
        for one, w in zip(merged, backbone.weights, strict=True):
            assert array(one).tobytes() == array(w).tobytes()
            assert one.dtype == ops.convert_to_tensor(w.value).dtype


@pytest.mark.parametrize("family,granularity", CASES)
@pytest.mark.parametrize("shared_delta", [True, False])
def test_merged_weights_equal_numpy(family, granularity, shared_delta):
    bank = ExpertBank(make(family), 3, granularity, shared_delta, eval_beta=1.0)
    fill(bank)
    assert bank.delta.shape[0] == (1 if shared_delta else 3)
    check_merge(bank, mixing(3))
    check_merge(bank, mixing(3), training=True)


@pytest.mark.parametrize("shared_delta", [True, False])
def test_one_expert(shared_delta):
    bank = fill(ExpertBank(make("cnn"), 1, shared_delta=shared_delta))
    check_merge(bank, mixing(1))


@pytest.mark.parametrize("shared_delta", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_statistics_belong_to_the_masks_in_use(shared_delta, noisy):
    bank = fill(
        ExpertBank(
            make("cnn"), 3, "output", shared_delta, always_on="dense/kernel"
        )
    )
    noise = None
    if noisy:
        rng = np.random.default_rng(5)
        noise = rng.uniform(0.05, 0.95, bank.noise_shape).astype("float32")
    a = mixing(3)
    weights, nonzero, zeros = bank.merge_with_statistics(a, True, noise)
    masks = array(bank.mask.flat(True, noise))
    close(
        masks,
        twin.hard_concrete(
            array(bank.mask.logits), 2 / 3, 0.5 if noise is None else noise
        ),
    )
    sizes = np.broadcast_to(array(bank.mask.entry_sizes()), masks.shape)
    close(zeros, ((masks == 0) * sizes).sum(1) / bank.num_parameters)
    close(nonzero, 1.0 - array(bank.expected_sparsity()))
    if not noisy:
        close(zeros, array(bank.measured_sparsity(training=True)))
        close(zeros, array(bank.measured_sparsity()))
    for one, other in zip(weights, bank.merge(a, True, noise), strict=True):
        close(one, array(other), 0)


def test_equal_own_deltas_are_a_shared_delta():
    backbone = make("cnn")
    one = fill(ExpertBank(backbone, 2))
    own = ExpertBank(backbone, 2, shared_delta=False)
    own.delta.assign(np.repeat(array(one.delta), 2, axis=0))
    own.mask.logits.assign(one.mask.logits)
    a = mixing(2)
    for left, right in zip(one.merge(a), own.merge(a), strict=True):
        close(left, array(right))


# Which weights get experts


@pytest.mark.parametrize("family", BACKBONES)
def test_every_trained_weight_gets_an_expert(family):
    backbone = make(family)
    bank = ExpertBank(backbone, 2)
    assert bank.expert_paths == [w.path for w in backbone.trainable_weights]
    assert len(set(bank.expert_paths)) == len(bank.expert_paths)
    assert bank.num_parameters == sum(
        math.prod(w.shape) for w in backbone.trainable_weights
    )
    assert bank.noise_shape == (2, bank.num_parameters)


def test_moving_statistics_get_none():
    bank = fill(ExpertBank(make("cnn"), 2))
    left_out = [w.path for w in bank.backbone.non_trainable_weights]
    assert len(left_out) == 2
    assert all("moving" in path for path in left_out)
    assert not set(left_out) & set(bank.expert_paths)
    merged = bank.merge(mixing(2))
    for w, value in zip(bank.backbone.weights, merged, strict=True):
        assert (array(w) == array(value)).all() == ("moving" in w.path)


def test_frozen_layers_get_none():
    backbone = make("cnn")
    backbone.get_layer("conv").trainable = False
    bank = ExpertBank(backbone, 2)
    assert bank.expert_paths == [
        "norm/gamma",
        "norm/beta",
        "dense/kernel",
        "dense/bias",
    ]


@pytest.mark.parametrize(
    "patterns,paths",
    [
        (
            {"include": ["dense"]},
            ["dense/kernel", "dense/bias"],
        ),
        (
            {"include": "kernel"},
            ["conv/kernel", "dense/kernel"],
        ),
        (
            {"include": ["^conv/", "bias$"]},
            ["conv/kernel", "conv/bias", "dense/bias"],
        ),
        (
            {"exclude": ["norm", "bias"]},
            ["conv/kernel", "dense/kernel"],
        ),
        (
            {"include": ["dense"], "exclude": ["bias"]},
            ["dense/kernel"],
        ),
    ],
)
def test_patterns_choose_weights(patterns, paths):
    bank = fill(ExpertBank(make("cnn"), 2, **patterns))
    assert bank.expert_paths == paths
    assert list(bank.masks()) == paths
    check_merge(bank, mixing(2))


@pytest.mark.parametrize("name", ["include", "exclude", "always_on"])
def test_a_pattern_that_matches_nothing_is_an_error(name):
    with pytest.raises(ValueError, match=f"`{name}` .* Received: 'attn'"):
        ExpertBank(make("cnn"), 2, **{name: ["dense", "attn"]})


def test_a_bank_without_experts_is_an_error():
    with pytest.raises(ValueError, match="No weight of the backbone"):
        ExpertBank(make("cnn"), 2, include=["dense"], exclude=["dense"])
    backbone = make("cnn")
    backbone.trainable = False
    with pytest.raises(ValueError, match="0 trainable weights"):
        ExpertBank(backbone, 2)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"num_experts": 0}, "num_experts=0"),
        ({"num_experts": 2.5}, "num_experts=2.5"),
        ({"granularity": "row"}, "granularity='row'"),
        ({"granularity": "row", "sparse": False}, "granularity='row'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        ExpertBank(make("cnn"), **arguments)


# Masks and sparsity


@pytest.mark.parametrize("shared_delta", [True, False])
def test_dense_experts(shared_delta):
    bank = ExpertBank(make("cnn"), 3, shared_delta=shared_delta, sparse=False)
    bank.delta.assign(normal(*bank.delta.shape))
    a = mixing(3)
    delta = array(bank.delta)
    delta = (a.sum() * delta if shared_delta else a[:, None] * delta).sum(0)
    at = 0
    for w, value in zip(bank.backbone.weights, bank.merge(a), strict=True):
        if "moving" not in w.path:
            size = math.prod(w.shape)
            update = delta[at : at + size].reshape(w.shape)
            close(value, array(w) + update)
            at += size
    _, nonzero, zeros = bank.merge_with_statistics(a, True)
    close(nonzero, np.ones(3), 0)
    close(zeros, np.zeros(3), 0)
    close(bank.expected_sparsity(), np.zeros(3), 0)
    close(bank.measured_sparsity(), np.zeros(3), 0)
    assert all((array(z) == 1).all() for z in bank.masks().values())


@pytest.mark.parametrize("granularity", ["element", "output"])
@pytest.mark.parametrize("always_on", [None, ["bias$", "gamma"]])
def test_sparsity_counts_all_parameters(granularity, always_on):
    bank = ExpertBank(
        make("vit"), 3, granularity, always_on=always_on, eval_beta=1.0
    )
    fill(bank)
    backbone = {w.path: w for w in bank.backbone.weights}
    for training in (False, True):
        zeros = np.zeros(3)
        for path, mask in bank.masks(training).items():
            mask = np.broadcast_to(array(mask), (3, *backbone[path].shape))
            zeros += (mask == 0).reshape(3, -1).sum(1)
            if always_on and path.endswith(("bias", "gamma")):
                assert (mask == 1).all()
        assert zeros.min() > 0
        close(bank.measured_sparsity(training), zeros / bank.num_parameters)


def test_expected_sparsity_counts_parameters_without_mask():
    backbone = make("cnn")
    bank = ExpertBank(backbone, 2, always_on=["conv/kernel"])
    bank.mask.logits.assign(0 * array(bank.mask.logits) - 4.605)
    on = math.prod(backbone.get_layer("conv").kernel.shape)
    rest = bank.num_parameters - on
    expected = 1 - (on + 0.0471 * rest) / bank.num_parameters
    close(bank.expected_sparsity(), np.full(2, expected), 1e-4)
    close(bank.measured_sparsity(), np.full(2, rest / bank.num_parameters))


@pytest.mark.parametrize(
    "granularity,kind,expected",
    [
        ("input", "query", (8, 1, 1)),
        ("output", "query", (1, 2, 4)),
        ("input", "attention_output", (2, 4, 1)),
        ("output", "attention_output", (1, 1, 8)),
        ("input", "patch_embedding", (4, 4, 3, 1)),
        ("output", "patch_embedding", (1, 1, 1, 8)),
        ("input", "dense_1", (8, 1)),
        ("output", "dense_1", (1, 12)),
        ("tensor", "query", (1, 1, 1)),
    ],
)
def test_structured_masks_follow_the_features(granularity, kind, expected):
    masks = ExpertBank(make("vit"), 2, granularity).masks()
    (path,) = [p for p in masks if p.endswith(f"/{kind}/kernel")]
    assert tuple(masks[path].shape) == (2, *expected)
    for path, mask in masks.items():
        if not path.endswith("kernel"):
            assert 1 not in mask.shape or "token" in path


@pytest.mark.parametrize("use_bias", [True, False])
def test_attention_kernels_without_bias_have_the_same_structure(use_bias):
    inputs = keras.Input((3, 8))
    attention = keras.layers.MultiHeadAttention(
        2, 4, use_bias=use_bias, name="mha"
    )
    backbone = keras.Model(inputs, attention(inputs, inputs))
    masks = ExpertBank(backbone, 2, "output").masks()
    shapes = {
        path.split("/")[-2]: tuple(mask.shape[1:])
        for path, mask in masks.items()
        if path.endswith("kernel")
    }
    assert shapes == {
        "query": (1, 2, 4),
        "key": (1, 2, 4),
        "value": (1, 2, 4),
        "attention_output": (1, 1, 8),
    }


# The bank and its backbone


@pytest.mark.parametrize("family", BACKBONES)
def test_the_bank_neither_owns_nor_changes_the_backbone(family):
    backbone = make(family)
    before = [array(w).copy() for w in backbone.weights]
    flags = [w.trainable for w in backbone.weights]
    bank = fill(ExpertBank(backbone, 2))
    bank.merge(mixing(2), training=True)
    bank.trainable = False
    assert [w.name for w in bank.weights] == ["delta", "logits"]
    assert bank.backbone is backbone
    for one, w in zip(before, backbone.weights, strict=True):
        assert (one == array(w)).all()
    assert flags == [w.trainable for w in backbone.weights]


def test_merging_reads_the_backbone_of_the_enclosing_scope():
    backbone = make("cnn")
    bank = ExpertBank(backbone, 2)
    other = [ops.ones(w.shape) for w in backbone.weights]
    with keras.StatelessScope(list(zip(backbone.weights, other))):
        merged = bank.merge(mixing(2))
    assert all((array(w) == 1).all() for w in merged)


def test_merged_weights_run_the_backbone():
    backbone = make("cnn")
    bank = fill(ExpertBank(backbone, 2))
    x, a = normal(2, 8, 8, 3), mixing(2)
    with keras.StatelessScope(list(zip(backbone.weights, bank.merge(a)))):
        features = backbone(x)
    clone = keras.models.clone_model(backbone)
    clone.set_weights([w.astype("float32") for w in expected_weights(bank, a)])
    close(features, array(clone(x)), 1e-4)


def test_half_precision_keeps_the_bank_in_float32():
    bank = fill(ExpertBank(make("cnn"), 2, dtype="mixed_bfloat16"))
    for w in bank.weights:
        assert keras.backend.standardize_dtype(w.dtype) == "float32"
    check_merge(bank, mixing(2))


def test_config_round_trip():
    bank = ExpertBank(
        make("cnn"),
        3,
        "input",
        False,
        include=["conv", "dense"],
        exclude=["conv/bias"],
        always_on=["dense/bias"],
        beta=0.5,
        eval_beta=0.7,
        init_stddev=0.1,
        seed=4,
    )
    again = ExpertBank.from_config(bank.get_config())
    assert again.get_config() == bank.get_config()
    assert again.expert_paths == bank.expert_paths
    again.backbone.set_weights(bank.backbone.get_weights())
    fill(bank)
    again.set_weights(bank.get_weights())
    for one, other in zip(bank.merge(mixing(3)), again.merge(mixing(3))):
        close(one, array(other), 0)
