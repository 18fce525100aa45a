"""Adam, the augmentation and the gradients against NumPy."""

import keras
import numpy as np
import numpy_twin as twin
import pytest
from keras import ops
from tools import BACKEND
from tools import array
from tools import arrays
from tools import dense_backbone
from tools import make_episodes
from tools import make_smat

import keras_smat
from keras_smat import _backend
from keras_smat.adapters import augmentation
from keras_smat.adapters.gradient import adam


def test_adam():
    rng = np.random.default_rng(0)
    weight, m, v = rng.normal(size=4), np.zeros(4), np.zeros(4)
    state = [ops.convert_to_tensor(a, "float32") for a in (weight, m, v)]
    for t in range(1, 6):
        g = rng.normal(size=4)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        weight = weight - 0.01 * step - 0.01 * 0.1 * weight
        state = adam(
            state[0], ops.convert_to_tensor(g, "float32"), *state[1:],
            0.01, 0.1, float(t),
        )  # fmt: skip
    np.testing.assert_allclose(array(state[0]), weight, rtol=1e-5)


def twin_augment(images, noise):
    """Image by image, pixel by pixel."""
    if not noise["on"]:
        return images
    mean = 255 * np.array([0.485, 0.456, 0.406])[: images.shape[-1]]
    std = 255 * np.array([0.229, 0.224, 0.225])[: images.shape[-1]]
    if images.shape[-1] == 1:
        mean = 255 * np.mean([0.485, 0.456, 0.406])
        std = 255 * np.mean([0.229, 0.224, 0.225])
    result = []
    for i, image in enumerate((images - mean) / std):
        if noise["flip"]:
            image = image[:, ::-1]
        image = image + noise["brightness"][i] - 0.5
        grey = image.mean(-1, keepdims=True)
        image = grey + 2 * noise["saturation"][i] * (image - grey)
        level = image.mean()
        image = level + (0.5 + noise["contrast"][i]) * (image - level)
        height, width = image.shape[:2]
        most = [int(n / 8 + 0.5) for n in (height, width)]
        down = int(noise["down"][i] * (2 * most[0] + 1)) - most[0]
        right = int(noise["right"][i] * (2 * most[1] + 1)) - most[1]
        moved = np.zeros_like(image)
        for h in range(height):
            for w in range(width):
                if 0 <= h - down < height and 0 <= w - right < width:
                    moved[h, w] = image[h - down, w - right]
        result.append(moved)
    return np.stack(result) * std + mean


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("on", [0, 1])
def test_augment(channels, flip, on):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 16, 12, channels)).astype("uint8")
    noise = augmentation.draw_noise(seed=3, step=0, num_images=6)
    noise.update(flip=np.float32(flip), on=np.float32(on))
    actual = array(augmentation.augment(images, noise))
    expected = twin_augment(images.astype("float64"), noise)
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_all_shifts_occur():
    most = int(16 / 8 + 0.5)
    edges = np.array([0.0, 0.999999], "float32")
    matrices = array(augmentation._shift(ops.convert_to_tensor(edges), 16))
    # Row h takes what was `shift` rows above.
    assert matrices[0, 0, most] == 1 and matrices[1, most, 0] == 1
    assert matrices.sum() == 2 * (16 - most)


def test_noise_is_seeded_and_does_not_depend_on_padding():
    few = augmentation.draw_noise(1, 2, 3)
    many = augmentation.draw_noise(1, 2, 8)
    for name, value in few.items():
        first = many[name][:3] if value.ndim else many[name]
        np.testing.assert_array_equal(first, value)
    assert few["brightness"].shape == (3,)
    for other in (
        augmentation.draw_noise(1, 3, 3),
        augmentation.draw_noise(2, 2, 3),
    ):
        assert (other["down"] != few["down"]).all()
    draws = [augmentation.draw_noise(0, step, 1) for step in range(2000)]
    assert np.mean([d["on"] for d in draws]) == pytest.approx(0.9, abs=0.03)
    assert np.mean([d["flip"] for d in draws]) == pytest.approx(0.5, abs=0.04)


@pytest.mark.skipif(
    BACKEND == "jax", reason="JAX chooses its precision when it starts"
)
@pytest.mark.parametrize(
    "adapter",
    [
        keras_smat.FullFineTune(),
        keras_smat.FullFineTune(augment=False),
        keras_smat.LoRAFineTune(targets=["hidden"], rank=2),
        keras_smat.FullSMATFineTune(),
    ],
    ids=lambda a: f"{type(a).__name__}, {a.augment}",
)
def test_gradients_by_finite_differences(adapter, float64, monkeypatch):
    monkeypatch.setattr(augmentation, "augment", lambda x, noise: 255.0 - x)
    learner = make_smat(dense_backbone(activation="tanh"), max_way=3)
    x = make_episodes(way=3)[0][0]
    images, labels = (
        ops.convert_to_tensor(x[k])
        for k in ("support_images", "support_labels")
    )
    images = ops.cast(images, "float64")
    weights = learner.task_weights(x)
    parameters, context = adapter.start(learner, x, weights)
    rng = np.random.default_rng(0)
    # LoRA's second factors start at zero, where the first have no gradient.
    parameters = [
        ops.convert_to_tensor(array(p) + 0.1 * rng.standard_normal(p.shape))
        for p in parameters
    ]

    def loss(parameters):
        return adapter.loss(learner, parameters, context, images, labels, {})

    value, pullback = _backend.vjp(loss, parameters)
    assert keras.backend.standardize_dtype(value.dtype) == "float64"
    gradients = arrays(pullback(ops.ones_like(value)))
    values = [np.array(array(p)) for p in parameters]
    for i, gradient in enumerate(gradients):
        direction = rng.standard_normal(values[i].shape)

        def moved(step):
            shifted = list(values)
            shifted[i] = values[i] + step * direction
            return float(array(loss(list(map(ops.convert_to_tensor, shifted)))))

        expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
        actual = float((gradient * direction).sum())
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-8), i
    assert sum(np.abs(g).sum() for g in gradients) > 1e-3


def test_a_step_by_hand():
    """One step on a linear backbone, its gradient by central differences."""
    size = make_episodes()[0][0]["support_images"][0].size
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(2, use_bias=False),
    ]
    learner = keras_smat.ProtoNet(keras.Sequential(layers), max_way=3)
    x = make_episodes(way=3)[0][0]
    labels = x["support_labels"]
    adapter = keras_smat.FullFineTune(1e-3, steps=1, seed=5)
    noise = augmentation.draw_noise(5, 0, len(labels))
    assert noise["on"]
    clean = x["support_images"].astype("float64").reshape(-1, size) / 255
    noisy = twin_augment(x["support_images"].astype("float64"), noise)
    noisy = noisy.reshape(-1, size) / 255

    def loss(kernel):
        prototypes, _ = twin.class_prototypes(clean @ kernel, labels, 3)
        logits = twin.cosine_logits(noisy @ kernel, prototypes)
        return twin.cross_entropy(logits, labels)

    kernel = array(learner.task_weights(x)[0]).astype("float64")
    gradient = twin.central_differences(loss, kernel)
    actual = array(learner.task_weights(x, adapter)[0])
    clear = np.abs(gradient) > 1e-4
    assert clear.mean() > 0.9
    # The first step of Adam has the size of the rate.
    expected = kernel - 1e-3 * np.sign(gradient)
    np.testing.assert_allclose(actual[clear], expected[clear], atol=1e-5)
