"""Training is stock Keras: verbs, arguments, precision, compilations."""

import keras
import numpy as np
import pytest
from tools import BACKEND
from tools import array
from tools import arrays
from tools import assert_same
from tools import cnn_backbone
from tools import dense_backbone
from tools import distance
from tools import make_episodes
from tools import make_smat
from tools import make_source
from tools import sgd_groups
from tools import varied_episodes

from keras_smat import SMAT
from keras_smat import ProtoNet
from keras_smat import data
from keras_smat import recipes


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def trained(episodes, **compile_arguments):
    """Weights after an epoch, from the same start each time; without noise,
    as TensorFlow draws other numbers where XLA compiles."""
    learner = quiet(every=None)
    groups = {
        "delta$": keras.optimizers.SGD(0.1),
        "hypernetwork": keras.optimizers.SGD(1.0),
        "mask": keras.optimizers.SGD(100.0),
    }
    learner.compile(
        recipes.group_optimizers(groups, learner), **compile_arguments
    )
    history = learner.fit(episodes, verbose=0).history
    return arrays(learner.trainable_variables), history


class Seen(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.logs = []

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


def test_fit_is_stock_keras():
    learner = sgd_groups(make_smat())
    episodes = make_episodes(2)
    settings = dict(validation_data=make_episodes(1, seed=9), verbose=0)
    listed, single, packed = Seen(), Seen(), Seen()
    history = learner.fit(episodes, epochs=2, callbacks=[listed], **settings)
    keys = {"loss", "accuracy", "sparsity", "val_loss", "val_accuracy"}
    assert set(history.history) == keys
    assert all(len(values) == 2 for values in history.history.values())
    sparsity = array(learner.experts.measured_sparsity()).mean()
    assert history.history["sparsity"][-1] == pytest.approx(sparsity)
    learner.fit(episodes, callbacks=single, **settings)
    bundle = keras.callbacks.CallbackList(
        [packed], model=learner, add_history=True, epochs=1
    )
    learner.fit(episodes, callbacks=bundle, **settings)
    for callback in (listed, single, packed):
        assert set(callback.logs[-1]) == keys
    validated = learner.evaluate(
        settings["validation_data"], verbose=0, return_dict=True
    )
    assert packed.logs[-1]["val_loss"] == pytest.approx(
        validated["loss"], rel=1e-5
    )


def test_the_given_callbacks_stay_as_they_are():
    learner = sgd_groups(make_smat())
    given = [Seen()]
    bundle = keras.callbacks.CallbackList(given[:], model=learner, epochs=1)
    for _ in range(2):
        learner.fit(make_episodes(1), callbacks=given, verbose=0)
        learner.fit(make_episodes(1), callbacks=bundle, verbose=0)
    assert len(given) == 1
    assert len(bundle.callbacks) == 1


def test_keras_callbacks_work():
    learner = sgd_groups(make_smat())
    stop = keras.callbacks.EarlyStopping("sparsity", mode="max", patience=0)
    stop.on_epoch_end = lambda *args, **kwargs: setattr(
        learner, "stop_training", True
    )
    history = learner.fit(make_episodes(1), epochs=5, callbacks=stop, verbose=0)
    assert len(history.epoch) == 1


def test_the_loss_falls():
    learner = make_smat(move=False, kd_weight=0.0)
    learner.compile(
        recipes.group_optimizers(
            {
                "delta$": keras.optimizers.Adam(1e-2),
                "hypernetwork": keras.optimizers.Adam(1e-3),
                "mask": keras.optimizers.SGD(1.0),
            },
            learner,
        )
    )
    episodes = make_episodes(8, way=5, shot=1)
    before = learner.evaluate(episodes, verbose=0)[0]
    learner.fit(episodes, epochs=4, verbose=0)
    assert learner.evaluate(episodes, verbose=0)[0] < 0.8 * before


@pytest.mark.parametrize(
    "arguments",
    [{"jit_compile": True}, {"jit_compile": False}, {"run_eagerly": True}],
    ids=str,
)
def test_compiled_or_not(arguments):
    if BACKEND == "torch" and arguments.get("jit_compile"):
        pytest.skip("Keras compiles with TorchDynamo, which needs a compiler")
    episodes = make_episodes(2)
    expected, history = trained(episodes)
    actual, other = trained(episodes, **arguments)
    assert distance(actual, expected) < 1e-5
    assert other["loss"] == pytest.approx(history["loss"], rel=1e-4)


def test_several_steps_per_execution():
    episodes = make_episodes(3)  # The last execution has one step.
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="steps_per_execution"):
            trained(episodes, steps_per_execution=2)
        return
    expected, history = trained(episodes)
    actual, other = trained(episodes, steps_per_execution=2)
    assert distance(actual, expected) < 1e-6
    assert other["loss"] == pytest.approx(history["loss"], rel=1e-5)
    assert other["accuracy"] == pytest.approx(history["accuracy"])


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_trains(name, policy):
    policy(name)
    learner = make_smat(target_sparsity=0.5)
    sgd_groups(learner, every=None)
    history = learner.fit(make_episodes(2), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert learner.experts.mask.logits.dtype == "float32"


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(name, policy, tmp_path):
    policy(name)
    learner = make_smat(cnn_backbone(), inner_steps=1, kd_pretrained=0.5)
    sgd_groups(learner, every=2, mask_rate=10.0)
    dtypes = {v.path: v.dtype for v in learner.variables}
    assert {d for d in dtypes.values() if "float" in d} == {"float32"}
    before = arrays(learner.trainable_variables)
    episodes = make_episodes(4)
    history = learner.fit(episodes, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    after = arrays(learner.trainable_variables)
    assert all(np.isfinite(a).all() for a in after)
    for v, a, b in zip(learner.trainable_variables, after, before):
        assert (a != b).any(), v.path
    assert array(learner.controller.multipliers).shape == (3,)
    assert int(array(learner.controller._num_tasks)) == 0
    scaled = isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (name == "mixed_float16")
    logits = learner.predict(episodes[0][0])
    assert logits.dtype == "float32"
    learner.save(tmp_path / "learner.keras")
    loaded = keras.saving.load_model(tmp_path / "learner.keras")
    assert_same([loaded.predict(episodes[0][0])], [logits])


def test_merged_weights_keep_the_float32_delta(policy):
    """A small delta must not vanish in half precision."""
    policy("mixed_bfloat16")
    learner = make_smat(target_sparsity=None)
    x = make_episodes()[0][0]
    for merged, own in zip(learner.adapt(x), learner.pretrained_weights):
        assert keras.backend.standardize_dtype(merged.dtype) == "float32"
        assert distance([merged], [own]) > 0


def test_call_merges_in_float32_as_adapt_does(policy):
    policy("mixed_bfloat16")
    learner = make_smat(target_sparsity=None)
    x = make_episodes()[0][0]
    expected = learner.query_logits(learner.adapt(x), x)
    # Bit for bit: in half precision, adding a small delta changes nothing.
    assert_same([array(learner(x))], [array(expected)])
    assert distance([learner.predict(x)], [expected]) < 1e-5


class Quiet(SMAT):
    """SMAT without score noise."""

    def draw_noise(self, training=True):
        return {"scores": None, "masks": None}


def quiet(every):
    keras.utils.set_random_seed(0)
    learner = Quiet(
        dense_backbone(), num_experts=2, max_way=5, target_sparsity=0.5, seed=1
    )
    rng = np.random.default_rng(0)
    for v, scale in (
        (learner.experts.delta, 0.1),
        (learner.experts.mask.logits, 1.0),
    ):
        v.assign(scale * rng.standard_normal(v.shape))
    optimizers = {
        pattern: keras.optimizers.SGD(rate, gradient_accumulation_steps=every)
        for pattern, rate in (
            ("delta$", 1.0), ("hypernetwork", 1e3), ("mask", 10.0)
        )
    }  # fmt: skip
    learner.compile(
        recipes.group_optimizers(optimizers, learner),
        multiplier_learning_rate=0.0,
        temperature_steps=10**6,
    )
    return learner


def test_accumulation_is_one_step_with_the_mean_gradient():
    episodes = make_episodes(4)
    learner, single = quiet(every=4), quiet(every=None)
    start = arrays(learner.trainable_variables)
    assert_same(arrays(single.trainable_variables), start)
    steps = []
    for i in range(4):
        assert_same(arrays(learner.trainable_variables), start)
        learner.train_on_batch(*episodes[i])
        single.train_on_batch(*episodes[i])
        after = arrays(single.trainable_variables)
        steps.append([a - b for a, b in zip(after, start)])
        for v, value in zip(single.trainable_variables, start):
            v.assign(value)
    moved = [a - b for a, b in zip(arrays(learner.trainable_variables), start)]
    mean = [np.mean(step, axis=0) for step in zip(*steps)]
    assert distance(moved, mean) < 1e-3


def test_state_moves_once_a_step():
    learner = make_smat(target_sparsity=0.9)
    sgd_groups(learner, every=3, mask_rate=1.0)
    multipliers, temperatures = [], []
    for x, y, weight in (make_episodes(7)[i] for i in range(7)):
        learner.train_on_batch(x, y, weight)
        multipliers.append(array(learner.controller.multipliers).max())
        temperatures.append(float(array(learner.temperature)))
    values = [multipliers[i] for i in (2, 5)]
    assert 0 < values[0] < values[1]
    assert multipliers == [0, 0, values[0], values[0], values[0]] + 2 * [
        values[1]
    ]
    # 5 to 0.5 over 10 tasks.
    np.testing.assert_allclose(
        temperatures, 5.0 - 0.45 * np.arange(1, 8), rtol=1e-5
    )
    assert int(array(learner.tasks_seen)) == 7
    learner.tasks_seen.assign(50)
    learner.train_on_batch(*make_episodes(1)[0])
    assert float(array(learner.temperature)) == pytest.approx(0.5)


class Traced(SMAT):
    """Notes every run of a step's Python code: a trace where it compiles."""

    def train_step(self, *args):
        self.note("train", args[-1][0])
        return super().train_step(*args)

    def test_step(self, *args):
        self.note("test", args[-1][0])
        return super().test_step(*args)

    def predict_step(self, *args):
        self.note("predict", args[-1][0])
        return super().predict_step(*args)

    def note(self, verb, x):
        if not hasattr(self, "traces"):
            self.traces = []
        sizes = (x[k].shape[0] for k in ("support_images", "query_images"))
        self.traces.append((verb, *sizes))


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "torch", reason="nothing is compiled")
def test_one_compilation_per_bucket_pair():
    learner = Traced(
        dense_backbone(), num_experts=2, max_way=5, target_sparsity=0.5,
        teacher_steps=0,
    )  # fmt: skip
    learner.compile("sgd", jit_compile=True)
    episodes = varied_episodes(12, query_buckets=(9, 15))
    learner.fit(episodes, validation_data=episodes, epochs=2, verbose=0)
    learner.evaluate(episodes, verbose=0)
    learner.predict(episodes, verbose=0)
    episodes.set_epoch(0)
    pairs = set()
    for epoch in range(2):
        for i in range(len(episodes)):
            x, y, _ = episodes.episode(epoch, i)
            pairs.add((len(x["support_labels"]), len(y)))
    assert len(pairs) == 4
    for verb in ("train", "test", "predict"):
        traced = [tuple(t[1:]) for t in learner.traces if t[0] == verb]
        assert set(traced) <= pairs
        assert len(traced) == len(set(traced)), (verb, traced)
        assert verb != "train" or set(traced) == pairs
    learner.traces = []
    for i in 2 * list(range(len(episodes))):
        learner.predict(episodes[i][0])
    assert len(learner.traces) == len(set(learner.traces))


def tf_dataset(known):
    tf = pytest.importorskip("tensorflow")
    x, y, weight = make_episodes(1)[0]

    def generate():
        yield x, y, weight

    spec = tf.nest.map_structure(
        lambda a: tf.TensorSpec(a.shape, a.dtype), (x, y, weight)
    )
    dataset = tf.data.Dataset.from_generator(generate, output_signature=spec)
    if known:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(1))
    return dataset


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own trap")
def test_data_of_unknown_length_is_refused_on_tensorflow():
    learner = sgd_groups(make_smat())
    unknown = tf_dataset(known=False)
    message = "must have a known length.*EpisodeDataset.*Received: .*unknown"
    with pytest.raises(ValueError, match=f"`x` {message}"):
        learner.fit(unknown, verbose=0)
    with pytest.raises(ValueError, match=f"`x` {message}"):
        learner.evaluate(unknown, verbose=0)
    with pytest.raises(ValueError, match=f"`validation_data` {message}"):
        learner.fit(make_episodes(1), validation_data=unknown, verbose=0)
    with pytest.raises(ValueError, match="Received: generator of unknown"):
        learner.fit((e for e in [make_episodes(1)[0]]), verbose=0)
    known = tf_dataset(known=True)
    history = learner.fit(known, validation_data=known, verbose=0).history
    assert np.isfinite(history["loss"] + history["val_loss"]).all()


def test_other_datasets_train_too():
    """Any `PyDataset` of episodes will do."""

    class Mine(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return make_episodes(2)[index]

    learner = ProtoNet(dense_backbone(), trainable=True, max_way=5)
    learner.compile(keras.optimizers.SGD(0.1))
    before = arrays(learner.trainable_variables)
    history = learner.fit(Mine(), epochs=2, verbose=0).history
    assert len(history["loss"]) == 2
    assert distance(arrays(learner.trainable_variables), before) > 0


def test_mixtures_train():
    parts = {
        name: data.EpisodeDataset(
            make_source(seed=seed), data.FixedEpisodes(3, 1, 2), 4
        )
        for seed, name in enumerate(("one", "other"))
    }
    learner = ProtoNet(dense_backbone(), trainable=True, max_way=5)
    learner.compile(keras.optimizers.SGD(0.1))
    history = learner.fit(data.mix(parts), verbose=0).history
    assert np.isfinite(history["loss"]).all()
