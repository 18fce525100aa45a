"""Low-rank updates: merged, they are what unmerged layers compute."""

import keras
import numpy as np
import pytest
from keras import ops
from tools import SIZE
from tools import array
from tools import dense_backbone
from tools import distance
from tools import make_episodes

import keras_smat


@pytest.fixture(scope="module")
def x():
    return make_episodes(way=3)[0][0]


def factors(adapter, learner, x, seed=0):
    """Start and random factors, as training might leave them."""
    start, context = adapter.start(learner, x, learner.task_weights(x))
    rng = np.random.default_rng(seed)
    moved = [
        ops.convert_to_tensor(0.3 * rng.standard_normal(f.shape), "float32")
        for f in start
    ]
    return start, moved, context


def test_merged_is_unmerged_in_the_layers_of_keras(x):
    backbone = dense_backbone()
    learner = keras_smat.ProtoNet(backbone, max_way=5)
    adapter = keras_smat.LoRAFineTune(
        rank=3, alpha=12.0, targets=["hidden", "features"]
    )
    _, moved, context = factors(adapter, learner, x)
    merged = adapter.merge(learner, moved, context)
    actual = learner.embed(merged, x["query_images"])
    for i, name in enumerate(("hidden", "features")):
        layer = backbone.get_layer(name)
        layer.enable_lora(3, lora_alpha=12.0)
        layer.lora_kernel_a.assign(moved[2 * i])
        layer.lora_kernel_b.assign(moved[2 * i + 1])
    expected = backbone(x["query_images"])
    assert distance([actual], [expected]) < 1e-5
    assert distance([actual], [learner.embed(context, x["query_images"])]) > 0.1


def attention_backbone():
    """Two heads: kernels (width, heads, size)."""
    x = inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(x)
    x = keras.layers.Reshape((SIZE, SIZE * 3))(x)
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    x = attention(x, x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))


def test_attention_kernels_are_matrices(x):
    learner = keras_smat.ProtoNet(attention_backbone(), max_way=5)
    adapter = keras_smat.LoRAFineTune(rank=2, alpha=4.0)
    start, moved, context = factors(adapter, learner, x)
    width = SIZE * 3
    shapes = [(width, 2), (2, 8)]  # the outputs are 2 heads x 4
    assert [tuple(f.shape) for f in start] == 2 * shapes
    merged = adapter.merge(learner, moved, context)
    inputs = np.random.default_rng(1).standard_normal((5, width))
    changed = []
    for v, new, old in zip(learner.backbone.weights, merged, context):
        if distance([new], [old]) == 0:
            continue
        changed.append(v.path.split("/")[-2])
        a, b = (array(f) for f in moved[2 * len(changed) - 2 :][:2])
        unmerged = inputs @ array(old).reshape(width, 8)
        unmerged = unmerged + 4.0 / 2 * (inputs @ a) @ b
        actual = inputs @ array(new).reshape(width, 8)
        assert distance([actual], [unmerged]) < 1e-5
    assert changed == ["query", "value"]


def test_it_starts_at_the_weights_and_stays_low_in_rank(x):
    learner = keras_smat.ProtoNet(dense_backbone(), max_way=5)
    adapter = keras_smat.LoRAFineTune(1e-2, 3, rank=2, targets="hidden")
    assert adapter.targets == ["hidden"]
    start, _, context = factors(adapter, learner, x)
    merged = adapter.merge(learner, start, context)
    assert distance(merged, context) == 0
    assert np.abs(array(start[0])).max() > 0
    adapted = learner.task_weights(x, adapter)
    update = array(adapted[0]) - array(context[0])
    values = np.linalg.svd(update, compute_uv=False)
    assert values[1] > 1e-5 and values[2] < 1e-3 * values[1]
    other = adapter.replace(seed=1)
    assert distance(learner.task_weights(x, other), adapted) > 0


def test_grid_of_rates():
    assert keras_smat.LoRAFineTune.rate_unit == 10.0
