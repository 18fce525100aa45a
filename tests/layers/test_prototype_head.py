import keras
import numpy as np
import numpy_twin as twin
import pytest
from keras import ops

from keras_smat import functional as F
from keras_smat.layers import PrototypeHead

DISTANCES = ("cosine", "euclidean")


def array(x):
    return ops.convert_to_numpy(x)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        array(actual), expected, rtol=tolerance, atol=tolerance
    )


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype("float32")


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("learn_scale", [False, True])
def test_logits_equal_twin(distance, learn_scale):
    features, prototypes = normal(4, 6), normal(3, 6, seed=1)
    head = PrototypeHead(distance, 3.0, learn_scale)
    logits = getattr(twin, f"{distance}_logits")
    close(head(features, prototypes), logits(features, prototypes, 3.0))
    if learn_scale:
        head.logit_scale.assign(5.0)
        close(head(features, prototypes), logits(features, prototypes, 5.0))


def test_only_a_learned_scale_is_a_weight():
    assert PrototypeHead().weights == []
    head = PrototypeHead(learn_scale=True)
    assert [w.name for w in head.trainable_weights] == ["logit_scale"]
    assert array(head.logit_scale) == 10.0


@pytest.mark.parametrize("distance", DISTANCES)
def test_absent_classes(distance):
    features, prototypes = normal(4, 6), normal(3, 6, seed=1)
    present = np.array([1.0, 1.0, 0.0], "float32")
    head = PrototypeHead(distance)
    logits = array(head(features, prototypes, present))
    assert (logits[:, 2] == np.float32(F.ABSENT)).all()
    close(logits[:, :2], array(head(features, prototypes[:2])))


@pytest.mark.parametrize("distance", DISTANCES)
def test_logits_are_float32_for_half_precision_features(distance):
    head = PrototypeHead(distance, dtype="mixed_bfloat16")
    features = ops.cast(normal(4, 6), "bfloat16")
    logits = head(features, ops.cast(normal(3, 6, seed=1), "bfloat16"))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"


@pytest.mark.parametrize("distance", DISTANCES)
def test_no_half_precision_policy_rounds_the_arguments(distance):
    features, prototypes = normal(4, 6), normal(3, 6, seed=1)
    expected = array(PrototypeHead(distance)(features, prototypes))
    head = PrototypeHead(distance, dtype="mixed_bfloat16")
    assert (array(head(features, prototypes)) == expected).all()


def functional_backbone():
    x = keras.Input((5,))
    return keras.Model(x, keras.layers.Dense(6)(x))


def sequential_backbone():
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(6)])


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize("make", [functional_backbone, sequential_backbone])
def test_classifier_equals_softmax_of_logits(distance, learn_scale, make):
    backbone = make()
    head = PrototypeHead(distance, 2.0, learn_scale)
    if learn_scale:
        head.logit_scale.assign(1.5)
    x, prototypes = normal(4, 5), normal(3, 6, seed=1)
    model = head.classifier(backbone, ops.convert_to_tensor(prototypes))
    logits = head(backbone(x), prototypes)
    close(model(x), twin.softmax(array(logits)))
    custom = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if not type(layer).__module__.startswith("keras.")
    ]
    assert custom == []


def test_classifier_of_a_zero_prototype_stays_finite():
    backbone = functional_backbone()
    prototypes = normal(3, 6)
    prototypes[1] = 0.0
    head, x = PrototypeHead(), normal(4, 5)
    logits = head(backbone(x), prototypes)
    close(head.classifier(backbone, prototypes)(x), twin.softmax(array(logits)))


@pytest.mark.parametrize("distance", DISTANCES)
def test_classifier_leaves_the_backbone_alone(distance):
    backbone = functional_backbone()
    before = backbone.get_weights()
    PrototypeHead(distance).classifier(backbone, normal(3, 6))
    assert len(backbone.layers) == 2
    for one, other in zip(before, backbone.get_weights(), strict=True):
        assert (one == other).all()


def test_config_round_trip():
    head = PrototypeHead("euclidean", 0.5, True)
    again = PrototypeHead.from_config(head.get_config())
    assert again.get_config() == head.get_config()
    assert array(again.logit_scale) == 0.5


@pytest.mark.parametrize("learn_scale", [False, True])
def test_save_and_load(tmp_path, learn_scale):
    inputs = [keras.Input(batch_shape=(n, 6)) for n in (4, 3)]
    head = PrototypeHead("cosine", 3.0, learn_scale)
    model = keras.Model(inputs, head(*inputs))
    if learn_scale:
        head.logit_scale.assign(4.0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = [normal(4, 6), normal(3, 6, seed=1)]
    close(again(x), array(model(x)), 0)
    close(again(x), twin.cosine_logits(*x, 4.0 if learn_scale else 3.0))


def test_bad_arguments():
    with pytest.raises(ValueError, match="Received: distance='dot'"):
        PrototypeHead("dot")
