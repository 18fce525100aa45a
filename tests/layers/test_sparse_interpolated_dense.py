import itertools

import keras
import numpy as np
import numpy_twin as twin
import pytest
from keras import ops

from keras_smat import _backend
from keras_smat.experts import ExpertBank
from keras_smat.layers import SparseInterpolatedDense

GRANULARITIES = ("element", "input", "output", "tensor")
M, INPUTS, UNITS = 3, 5, 4


def array(x):
    return ops.convert_to_numpy(x)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        array(actual), expected, rtol=tolerance, atol=tolerance
    )


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype("float32")


def filled(**arguments):
    """A built layer with weights that are not zero."""
    layer = SparseInterpolatedDense(UNITS, M, **arguments)
    layer.build((None, INPUTS))
    for i, w in enumerate(layer.weights):
        w.assign(2.0 * normal(*w.shape, seed=i))
    return layer


def merging_weights(per_example, rows=2):
    shape = (rows, M) if per_example else (M,)
    return np.random.default_rng(7).uniform(size=shape).astype("float32")


def reference(layer, x, a, training=False):
    """Example by example: merge kernel and bias, then multiply."""
    masks = [array(mask) for mask in layer.masks(training=training)]
    delta = array(layer.kernel_delta)
    rows = []
    for i, row in enumerate(x):
        weights = a[i] if a.ndim == 2 else a
        y = row @ twin.interpolate(
            array(layer.kernel), delta, masks[0], weights
        )
        if layer.use_bias:
            y = y + twin.interpolate(
                array(layer.bias), array(layer.bias_delta), masks[1], weights
            )
        rows.append(y)
    return np.stack(rows)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("shape", [(2,), (2, 3)])
@pytest.mark.parametrize("use_bias", [False, True])
def test_equals_merged_weights(granularity, per_example, shape, use_bias):
    layer = filled(granularity=granularity, use_bias=use_bias, eval_beta=1.0)
    x, a = normal(*shape, INPUTS, seed=9), merging_weights(per_example)
    for training in (False, True):
        y = layer(x, a, training=training)
        assert tuple(y.shape) == (*shape, UNITS)
        close(y, reference(layer, x, a, training))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_follow_the_temperature(granularity):
    layer = filled(granularity=granularity, eval_beta=1.0)
    layer.masks.logits.assign(0 * array(layer.masks.logits) - 2.0)
    x, a = normal(2, INPUTS, seed=9), merging_weights(False)
    dense = x @ array(layer.kernel) + array(layer.bias)
    # At -2 the masks are off in training (threshold -1.6), not in tests.
    close(layer(x, a, training=True), dense)
    assert np.abs(array(layer(x, a)) - dense).max() > 1e-2


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("per_example", [False, True])
def test_zero_delta_is_a_dense_layer(granularity, per_example):
    layer = filled(granularity=granularity, activation="relu")
    layer.kernel_delta.assign(0 * array(layer.kernel_delta))
    layer.bias_delta.assign(0 * array(layer.bias_delta))
    dense = keras.layers.Dense(UNITS, activation="relu")
    dense.build((None, INPUTS))
    dense.set_weights([array(layer.kernel), array(layer.bias)])
    x = normal(2, INPUTS, seed=9)
    y = layer(x, merging_weights(per_example))
    assert array(y).tolist() == array(dense(x)).tolist()


def test_a_fresh_layer_is_its_frozen_kernel():
    layer = SparseInterpolatedDense(UNITS, M, bias_initializer="ones")
    x = normal(2, INPUTS)
    close(layer(x, merging_weights(False)), x @ array(layer.kernel) + 1)


def test_only_deltas_and_logits_train():
    layer = filled()
    names = {w.name for w in layer.trainable_weights}
    assert names == {"kernel_delta", "bias_delta", "logits"}
    frozen = {w.name for w in layer.non_trainable_weights}
    assert frozen == {"kernel", "bias"}


def test_logits_stay_float32_and_outputs_follow_the_policy():
    layer = SparseInterpolatedDense(UNITS, M, dtype="mixed_bfloat16")
    y = layer(normal(2, INPUTS), merging_weights(True))
    kinds = [layer.masks.logits.dtype, layer.kernel.dtype, y.dtype]
    assert [keras.backend.standardize_dtype(k) for k in kinds] == [
        "float32",
        "float32",
        "bfloat16",
    ]
    assert layer.masks.dtype_policy.name == "mixed_bfloat16"


def test_config_round_trip():
    layer = SparseInterpolatedDense(
        UNITS, M, "gelu", False, "input", "he_normal", "ones", 0.5, 0.7, 3
    )
    again = SparseInterpolatedDense.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.granularity == "input" and again.units == UNITS


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_save_and_load(tmp_path, granularity):
    x, a = keras.Input((2, INPUTS)), keras.Input((M,))
    layer = SparseInterpolatedDense(UNITS, M, "tanh", granularity=granularity)
    model = keras.Model([x, a], layer(x, a))
    assert model.output_shape == (None, 2, UNITS)
    for i, w in enumerate(layer.weights):
        w.assign(normal(*w.shape, seed=i))
    inputs = [normal(2, 2, INPUTS), merging_weights(True)]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    close(again(inputs), array(model(inputs)), 0)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"units": 0}, "units=0"),
        ({"units": 2.0}, "units=2.0"),
        ({"num_experts": -1}, "num_experts=-1"),
        ({"granularity": "on"}, "granularity='on'"),
        ({"granularity": "row"}, "granularity='row'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        SparseInterpolatedDense(**{"units": 3, **arguments})


# The tie: merging in weight space is the same as the layer.


def twins(granularity):
    """A merged Dense backbone and its layers, both on the bank's numbers."""
    backbone = keras.Sequential(
        [
            keras.Input((INPUTS,)),
            keras.layers.Dense(6, activation="tanh"),
            keras.layers.Dense(UNITS),
        ]
    )
    for i, w in enumerate(backbone.weights):
        w.assign(normal(*w.shape, seed=20 + i))
    bank = ExpertBank(backbone, M, granularity)
    layers = []
    for dense in backbone.layers:
        layer = SparseInterpolatedDense(
            dense.units, M, dense.activation, granularity=granularity
        )
        layer.build((None, dense.kernel.shape[0]))
        layer.kernel.assign(dense.kernel)
        layer.bias.assign(dense.bias)
        layers.append(layer)

    def by_merging(x, delta, logits, a):
        with keras.StatelessScope(
            [(bank.delta, delta), (bank.mask.logits, logits)]
        ):
            weights = bank.merge(a, training=True)
        with keras.StatelessScope(list(zip(backbone.weights, weights))):
            return backbone(x)

    def by_layers(x, delta, logits, a):
        deltas = [w for s in layers for w in (s.kernel_delta, s.bias_delta)]
        sizes = [int(np.prod(w.shape)) for w in deltas]
        cuts = list(itertools.accumulate(sizes))[:-1]
        pieces = ops.split(delta[0], cuts)
        mapping = [
            (w, ops.reshape(piece, w.shape)) for w, piece in zip(deltas, pieces)
        ]
        entries = layers[0].masks.num_entries
        mapping += [
            (layers[0].masks.logits, logits[:, :entries]),
            (layers[1].masks.logits, logits[:, entries:]),
        ]
        with keras.StatelessScope(mapping):
            return layers[1](layers[0](x, a, training=True), a, training=True)

    return bank, by_merging, by_layers


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_merged_backbone_equals_layers(granularity):
    bank, by_merging, by_layers = twins(granularity)
    x = ops.convert_to_tensor(normal(3, INPUTS, seed=30))
    point = [
        normal(*bank.delta.shape, seed=31),
        1.5 * normal(*bank.mask.logits.shape, seed=32),
        merging_weights(False),
    ]
    point = [ops.convert_to_tensor(p) for p in point]
    cotangent = ops.convert_to_tensor(normal(3, UNITS, seed=33))
    results = []
    for function in (by_merging, by_layers):

        def values_and_gradients(point, function=function):
            y, pullback = _backend.vjp(lambda p: function(x, *p), point)
            return [y, *pullback(cotangent)]

        results.append(_backend.jit(values_and_gradients)(point))
    for one, other in zip(*results, strict=True):
        assert np.abs(array(one)).max() > 1e-2
        close(one, array(other))
    clipped = np.abs(array(point[1])) > 1.6
    assert clipped.any() and (array(results[0][2])[clipped] == 0).all()


@pytest.mark.parametrize("granularity", ["element", "input", "output"])
def test_per_example_rows_equal_one_merged_backbone_each(granularity):
    bank, by_merging, by_layers = twins(granularity)
    x = ops.convert_to_tensor(normal(2, INPUTS, seed=30))
    delta = ops.convert_to_tensor(normal(*bank.delta.shape, seed=31))
    logits = ops.convert_to_tensor(normal(*bank.mask.logits.shape, seed=32))
    a = merging_weights(True)
    together = by_layers(x, delta, logits, ops.convert_to_tensor(a))
    for i in range(2):
        alone = by_merging(
            x[i : i + 1], delta, logits, ops.convert_to_tensor(a[i])
        )
        close(together[i], array(alone)[0])
