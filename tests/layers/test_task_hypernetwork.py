import keras
import numpy as np
import numpy_twin as twin
import pytest
from keras import ops

from keras_smat import _backend
from keras_smat.layers import TaskHypernetwork

READOUTS = ("mean", "extra_token", "class_0")
KERNELS = ("qkv", "projection", "expand", "contract")
WAY, WIDTH, M = 5, 8, 3


def array(x):
    return ops.convert_to_numpy(x)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        array(actual), expected, rtol=tolerance, atol=tolerance
    )


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype("float32")


def filled(readout="mean", **arguments):
    """Weights far from their initial values; kernels with a spectral gap."""
    layer = TaskHypernetwork(M, readout, num_heads=2, **arguments)
    layer.build((WAY, WIDTH))
    for i, w in enumerate(layer.trainable_weights):
        value = normal(*w.shape, seed=i)
        if w.name.endswith("_kernel"):
            value += (
                30.0
                * np.outer(
                    normal(w.shape[0], seed=50 + i), normal(w.shape[1], seed=i)
                )
                / np.sqrt(np.prod(w.shape))
            )
        w.assign(value)
    return layer


def settled(*arguments, **keywords):
    """`filled`, with the power iteration converged."""
    layer = filled(*arguments, **keywords)
    for _ in range(20):
        layer(normal(WAY, WIDTH), training=True)
    return layer


def weights_of(layer):
    weights = {w.name: array(w) for w in layer.weights}
    for norm in (layer.norm_1, layer.norm_2):
        weights[f"{norm.name}/gamma"] = array(norm.gamma)
        weights[f"{norm.name}/beta"] = array(norm.beta)
    return weights


def states(layer):
    return [array(w).copy() for w in layer.non_trainable_variables]


@pytest.mark.parametrize("readout", READOUTS)
def test_equals_twin_with_kernels_of_unit_norm(readout):
    layer, x = settled(readout), normal(WAY, WIDTH, seed=9)
    expected = twin.hypernetwork(x, weights_of(layer), 2, readout)
    close(layer(x), expected, 1e-3)


def test_gradient_passes_through_the_spectral_norm():
    layer, x = settled(), normal(WAY, WIDTH, seed=9)
    weights = weights_of(layer)
    kernel = layer.qkv[0]

    def output(tensors):
        with keras.StatelessScope([(kernel, tensors[0])]):
            return ops.sum(layer(x))

    def reference(value):
        changed = {**weights, "qkv_kernel": value}
        return twin.hypernetwork(x, changed, 2, "mean").sum()

    value, pullback = _backend.vjp(output, [ops.convert_to_tensor(kernel)])
    gradient = array(pullback(ops.ones_like(value))[0])
    numeric = twin.central_differences(reference, weights["qkv_kernel"])
    scale = np.abs(numeric).max()
    assert scale > 1e-3
    np.testing.assert_allclose(gradient, numeric, atol=1e-3 * scale)


def test_training_calls_make_the_largest_singular_value_one():
    layer = settled()
    for name in KERNELS:
        kernel, _, vector = getattr(layer, name)
        sigma = layer._largest_singular_value(
            ops.convert_to_tensor(kernel), vector, False
        )
        singular = np.linalg.svd(array(kernel) / array(sigma))[1]
        assert abs(singular[0] - 1) < 1e-4
        assert abs(np.linalg.norm(array(vector)) - 1) < 1e-5


def test_an_untrained_norm_is_never_above_the_true_one():
    layer = filled()
    for name in KERNELS:
        kernel, _, vector = getattr(layer, name)
        vector.assign(10.0 * array(vector))
        sigma = layer._largest_singular_value(
            ops.convert_to_tensor(kernel), vector, False
        )
        assert array(sigma) <= np.linalg.norm(array(kernel), 2) * (1 + 1e-5)


def test_the_power_iteration_moves_in_training_alone():
    layer = filled()
    before = states(layer)
    layer(normal(WAY, WIDTH))
    layer(normal(WAY, WIDTH), training=False)
    for one, other in zip(before, states(layer), strict=True):
        assert (one == other).all()
    layer(normal(WAY, WIDTH), training=True)
    after = states(layer)
    assert len(after) == 4
    assert all((a != b).any() for a, b in zip(before, after))


def test_without_spectral_norm_there_is_no_state():
    layer = filled(spectral_norm=False)
    assert not layer.non_trainable_variables
    x = normal(WAY, WIDTH)
    close(layer(x, training=True), array(layer(x)), 0)


@pytest.mark.parametrize("readout", READOUTS)
def test_class_permutations(readout):
    layer, x = filled(readout), normal(WAY, WIDTH, seed=9)
    logits = array(layer(x))
    for order in ([0, 4, 2, 1, 3], [3, 1, 0, 4, 2]):
        permuted = array(layer(x[order]))
        if readout == "class_0" and order[0] != 0:
            assert np.abs(permuted - logits).max() > 1e-2
        else:
            close(permuted, logits, 1e-4)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("content", [0.0, 3.0])
def test_absent_classes_change_nothing(readout, content):
    layer, x = filled(readout), normal(WAY, WIDTH, seed=9)
    padding = np.full((3, WIDTH), content, "float32")
    present = np.array([1.0] * WAY + [0.0] * 3, "float32")
    padded = layer(np.concatenate([x, padding]), present)
    close(padded, array(layer(x)), 1e-4)


def test_absent_classes_get_no_gradient():
    layer = filled()
    present = np.array([1, 1, 0, 1, 0], "float32")
    value, pullback = _backend.vjp(
        lambda p: ops.sum(layer(p[0], present)),
        [ops.convert_to_tensor(normal(WAY, WIDTH))],
    )
    gradient = array(pullback(ops.ones_like(value))[0])
    assert ((gradient == 0).all(1) == (present == 0)).all()


def test_class_0_sees_the_other_classes():
    layer, x = filled("class_0"), normal(WAY, WIDTH, seed=9)
    changed = x.copy()
    changed[3] += normal(WIDTH)
    assert np.abs(array(layer(changed)) - array(layer(x))).max() > 1e-3


@pytest.mark.parametrize("readout", ["mean", "class_0"])
def test_no_extra_tokens(readout):
    layer = filled(readout, num_extra_tokens=0)
    assert tuple(layer(normal(WAY, WIDTH)).shape) == (M,)


def test_keys_and_tokens_are_trained():
    layer = filled()
    names = {w.name for w in layer.trainable_weights}
    assert {"keys", "extra_tokens", "qkv_kernel"} <= names
    assert "qkv_bias" not in names and len(names) == 9 + 2


def test_initial_spread_of_keys_and_tokens():
    layer = TaskHypernetwork(400, num_extra_tokens=400)
    layer.build((WAY, 32))
    assert abs(array(layer.keys).std() - 0.25) < 0.01
    assert abs(array(layer.extra_tokens).std() - 1e-3) < 5e-5


def test_float32_inside_a_half_precision_policy():
    policy = keras.config.dtype_policy()
    x = normal(WAY, WIDTH)
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        layer = TaskHypernetwork(M, num_heads=2, dtype="float32")
        logits = layer(x)
        assert layer.norm_1.compute_dtype == "float32"
    finally:
        keras.config.set_dtype_policy(policy)
    again = TaskHypernetwork(M, num_heads=2)
    again.build(x.shape)
    again.set_weights(layer.get_weights())
    close(logits, array(again(x)), 1e-6)


def test_mixed_precision_runs():
    layer = TaskHypernetwork(M, num_heads=2, dtype="mixed_bfloat16")
    logits = layer(normal(WAY, WIDTH), training=True)
    assert keras.backend.standardize_dtype(logits.dtype) == "bfloat16"
    assert np.isfinite(array(ops.cast(logits, "float32"))).all()


def test_config_round_trip():
    layer = TaskHypernetwork(M, "extra_token", 2, 2, 3, False)
    again = TaskHypernetwork.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.readout, again.mlp_ratio) == ("extra_token", 3)


def test_save_and_load(tmp_path):
    inputs = keras.Input(batch_shape=(WAY, WIDTH))
    layer = TaskHypernetwork(M, num_heads=2)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (M,)
    for i, w in enumerate(layer.weights):
        w.assign(normal(*w.shape, seed=i))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = normal(WAY, WIDTH, seed=9)
    close(again(x), array(model(x)), 0)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"num_experts": 0}, "num_experts=0"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"readout": "max"}, "readout='max'"),
        (
            {"readout": "extra_token", "num_extra_tokens": 0},
            "num_extra_tokens=0",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        TaskHypernetwork(**arguments)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="Received: num_heads=3"):
        TaskHypernetwork(M, num_heads=3).build((WAY, WIDTH))
