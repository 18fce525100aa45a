import keras
import numpy as np
import numpy_twin as twin
import pytest

from keras_smat import _backend
from keras_smat import functional as F
from keras_smat.layers import HardConcreteMask
from keras_smat.layers.hard_concrete_mask import ClipLogits

SHAPES = [(6, 4), (4,), (3, 2, 4), ()]
# granularity: mask shapes of SHAPES with one output axis.
MASK_SHAPES = {
    "element": [(6, 4), (4,), (3, 2, 4), ()],
    "input": [(6, 1), (1,), (3, 2, 1), ()],
    "output": [(1, 4), (4,), (1, 1, 4), ()],
    "tensor": [(1, 1), (1,), (1, 1, 1), ()],
    "on": [(1, 1), (1,), (1, 1, 1), ()],
}


def array(x):
    return keras.ops.convert_to_numpy(x)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        array(actual), expected, rtol=tolerance, atol=tolerance
    )


def spread(layer, scale=2.0):
    """Logits wide enough for zeros and ones."""
    rng = np.random.default_rng(0)
    logits = scale * rng.standard_normal(layer.logits.shape)
    logits[:, :1], logits[:, 1:2] = -4.0, 4.0
    layer.logits.assign(logits)
    return array(layer.logits)


@pytest.mark.parametrize("granularity", MASK_SHAPES)
def test_mask_shapes(granularity):
    for shape, expected in zip(SHAPES[:3], MASK_SHAPES[granularity]):
        mask = HardConcreteMask(shape, 5, granularity)
        assert tuple(mask().shape) == (5, *expected)
        entries = 0 if granularity == "on" else np.prod(expected)
        assert tuple(mask.logits.shape) == (5, entries)


@pytest.mark.parametrize("granularity", ["element", "tensor", "on"])
def test_scalar_parameters(granularity):
    mask = HardConcreteMask((), 2, granularity)
    assert tuple(mask().shape) == (2,)
    assert mask.num_parameters == 1


@pytest.mark.parametrize(
    "granularity,output_axes,expected",
    [
        ("input", 2, (6, 1, 1)),
        ("output", 2, (1, 3, 4)),
        ("input", 1, (6, 3, 1)),
        ("output", 1, (1, 1, 4)),
    ],
)
def test_output_axes_choose_the_features(granularity, output_axes, expected):
    mask = HardConcreteMask((6, 3, 4), 2, granularity, output_axes)
    assert tuple(mask().shape) == (2, *expected)


@pytest.mark.parametrize("granularity", ["element", "input", "tensor"])
@pytest.mark.parametrize("training,beta", [(True, 0.5), (False, 1.0)])
def test_list_of_shapes_equals_twin(granularity, training, beta):
    layer = HardConcreteMask(SHAPES, 2, granularity, beta=0.5, eval_beta=1.0)
    logits = spread(layer)
    masks = layer(training=training)
    flat = twin.hard_concrete(logits, beta)
    assert (flat == 0).any() and (flat == 1).any()
    at = 0
    for mask, shape in zip(masks, MASK_SHAPES[granularity], strict=True):
        size = int(np.prod(shape))
        close(mask, flat[:, at : at + size].reshape(2, *shape))
        at += size
    assert at == layer.num_entries


def test_noise_is_laid_out_as_the_logits():
    layer = HardConcreteMask([(2, 3), (3,)], 2)
    noise = np.random.default_rng(1).uniform(0.05, 0.95, (2, 9))
    noise = noise.astype("float32")
    masks = layer(training=True, noise=noise)
    expected = twin.hard_concrete(array(layer.logits), 2 / 3, noise)
    close(masks[0], expected[:, :6].reshape(2, 2, 3))
    close(masks[1], expected[:, 6:])


MIXED = ["element", "on", "output", "tensor"]


@pytest.mark.parametrize("granularity", [*MASK_SHAPES, MIXED])
def test_entry_sizes_sum_to_the_maskable_parameters(granularity):
    layer = HardConcreteMask(SHAPES, 2, granularity)
    per_shape = layer._granularity
    maskable = sum(
        np.prod(shape, dtype=int)
        for shape, name in zip(SHAPES, per_shape)
        if name != "on"
    )
    assert layer.num_parameters == 6 * 4 + 4 + 3 * 2 * 4 + 1
    assert layer.num_maskable == maskable
    sizes = np.broadcast_to(array(layer.entry_sizes()), (layer.num_entries,))
    assert sizes.sum() == maskable


@pytest.mark.parametrize("granularity", [*MASK_SHAPES, MIXED])
@pytest.mark.parametrize("training", [False, True])
def test_sparsity_counts_parameters(granularity, training):
    layer = HardConcreteMask(SHAPES, 3, granularity, eval_beta=1.0)
    spread(layer)
    masks = [array(mask) for mask in layer(training=training)]
    full = [
        np.broadcast_to(mask, (3, *shape)).reshape(3, -1)
        for mask, shape in zip(masks, SHAPES)
    ]
    share = (np.concatenate(full, 1) == 0).mean(1)
    close(layer.measured_sparsity(training), share, 1e-6)
    assert share.any() == (granularity != "on")


@pytest.mark.parametrize("granularity", [*MASK_SHAPES, MIXED])
def test_expected_nonzero_equals_twin(granularity):
    layer = HardConcreteMask(SHAPES, 3, granularity)
    flat = twin.nonzero_probability(spread(layer))
    total, at = np.zeros(3), 0
    for shape, name in zip(SHAPES, layer._granularity):
        mask_shape = dict(zip(SHAPES, MASK_SHAPES[name]))[shape]
        size = np.prod(mask_shape, dtype=int)
        parameters = np.prod(shape, dtype=int)
        if name == "on":
            total += parameters
            continue
        total += flat[:, at : at + size].mean(1) * parameters
        at += size
    close(layer.expected_nonzero(), total / layer.num_parameters)


def test_expected_nonzero_does_not_depend_on_the_test_temperature():
    one, other = (
        HardConcreteMask((5,), 2, seed=1, eval_beta=b) for b in (0.5, 1.0)
    )
    close(one.expected_nonzero(), array(other.expected_nonzero()), 0)


def test_split_cuts_the_last_axis_only():
    layer = HardConcreteMask([(2, 3), (4,), (3,)], 2, ["input", "on", "tensor"])
    merged = np.array([1.0, 2.0, 3.0], "float32")
    first, second, third = layer.split(merged)
    assert array(first).tolist() == [[1.0], [2.0]]
    assert second == 1.0
    assert array(third).tolist() == [3.0]
    stacked = layer.split(np.stack([merged, 2 * merged]))
    assert tuple(stacked[0].shape) == (2, 2, 1)
    assert array(stacked[2]).tolist() == [[3.0], [6.0]]


def test_always_on_masks_are_ones():
    layer = HardConcreteMask(SHAPES, 3, "on")
    assert all((array(mask) == 1).all() for mask in layer())
    close(layer.expected_nonzero(), np.ones(3), 0)
    close(layer.measured_sparsity(), np.zeros(3), 0)


def test_logits_start_as_asked():
    layer = HardConcreteMask((100, 100), 2, init_stddev=0.25, seed=3)
    logits = array(layer.logits)
    assert abs(logits.mean()) < 0.01 and abs(logits.std() - 0.25) < 0.01
    again = HardConcreteMask((100, 100), 2, init_stddev=0.25, seed=3)
    assert (array(again.logits) == logits).all()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float16"])
def test_logits_stay_float32(policy):
    layer = HardConcreteMask((3, 2), 2, dtype=policy)
    dtypes = [layer.logits.dtype, layer().dtype]
    assert {keras.backend.standardize_dtype(d) for d in dtypes} == {"float32"}


def test_gradient_reaches_unclipped_logits_alone():
    layer = HardConcreteMask((40,), 2)
    logits = spread(layer)

    def total(tensors):
        with keras.StatelessScope([(layer.logits, tensors[0])]):
            return keras.ops.sum(layer(training=True))

    value, pullback = _backend.vjp(total, [keras.ops.convert_to_tensor(logits)])
    gradient = array(pullback(keras.ops.ones_like(value))[0])
    numeric = twin.central_differences(
        lambda x: twin.hard_concrete(x).sum(), logits
    )
    np.testing.assert_allclose(gradient, numeric, atol=1e-5)
    assert (gradient == 0).any() and (gradient != 0).any()


def test_config_round_trip():
    for shapes, granularity in [((3, 2), "input"), (SHAPES, MIXED)]:
        layer = HardConcreteMask(
            shapes, 3, granularity, beta=0.5, eval_beta=0.7, init_stddev=0.1
        )
        again = HardConcreteMask.from_config(layer.get_config())
        assert again.get_config() == layer.get_config()
        again.logits.assign(layer.logits)
        one, other = layer(), again()
        for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other)):
            close(a, array(b), 0)


@keras.saving.register_keras_serializable("keras_smat_tests")
class Masked(keras.layers.Layer):
    """Multiplies by the sum of the masks of all experts."""

    def __init__(self, mask, **kwargs):
        super().__init__(**kwargs)
        self.mask = mask

    def build(self, input_shape):
        self.built = True

    def call(self, x, training=False):
        return x * keras.ops.sum(self.mask(training=training), axis=0)

    def get_config(self):
        mask = keras.saving.serialize_keras_object(self.mask)
        return {**super().get_config(), "mask": mask}

    @classmethod
    def from_config(cls, config):
        mask = keras.saving.deserialize_keras_object(config.pop("mask"))
        return cls(mask, **config)


def test_save_and_load(tmp_path):
    layer = Masked(HardConcreteMask((4,), 3, eval_beta=1.0))
    model = keras.Sequential([keras.Input((4,)), layer])
    spread(layer.mask)
    x = np.random.default_rng(2).standard_normal((2, 4)).astype("float32")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    close(again(x), array(model(x)), 0)
    close(
        model(x), x * twin.hard_concrete(array(layer.mask.logits), 1.0).sum(0)
    )


def test_training_keeps_logits_in_their_range():
    layer = Masked(HardConcreteMask((4,), 2))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(optimizer=keras.optimizers.SGD(1e4), loss="mse")
    x = np.ones((2, 4), "float32")
    model.fit(x, 0 * x, verbose=0)
    np.testing.assert_allclose(
        array(layer.mask.logits), -F.LOGIT_LIMIT, rtol=1e-6
    )


def test_clip_logits():
    clip = ClipLogits()
    logits = np.array([-9.0, -4.0, 0.0, 4.0, 9.0], "float32")
    close(clip(logits), np.clip(logits, np.log(0.01), np.log(100)), 1e-6)
    again = keras.constraints.deserialize(keras.constraints.serialize(clip))
    assert isinstance(again, ClipLogits)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"num_experts": 0}, "num_experts=0"),
        ({"num_experts": 1.5}, "num_experts=1.5"),
        ({"num_experts": True}, "num_experts=True"),
        ({"granularity": "row"}, "granularity='row'"),
        ({"granularity": ["element"]}, "1 entries"),
        ({"output_axes": [1, 1, 1]}, "3 entries"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        HardConcreteMask([(3, 2), (2,)], **arguments)
