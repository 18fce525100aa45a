"""The three backends train alike: same loss, gradients and weights.

Run as a script, this file trains on the backend of its environment and writes
what it got to a file; the test compares the files.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

BACKENDS = ("torch", "jax", "tensorflow")
PRECISIONS = ("float32", "float64")
STEPS = 12
PAPER = dict(
    inner_steps=1,
    inner_lr=1e-2,
    kd_pretrained=0.5,
    readout="class_0",
    eval_beta=1.0,
    weight_penalty_by_score=True,
    delta_l2=1e-4,
)
CONFIGURATIONS = {
    "recommended": {},
    "paper": PAPER,
    "noisy_masks": dict(mask_noise="hard_concrete", granularity="input"),
}


def run(backend, precision, folder):
    """Trains in a fresh process; returns the arrays it wrote."""
    import numpy as np

    path = folder / f"{backend}_{precision}.npz"
    environment = dict(
        os.environ,
        KERAS_BACKEND=backend,
        JAX_ENABLE_X64="1" if precision == "float64" else "0",
    )
    result = subprocess.run(
        [sys.executable, __file__, precision, str(path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return {p: run("torch", p, folder) for p in PRECISIONS}


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND") != "torch"
    or importlib.util.find_spec("torch") is None,
    reason="runs once, in the tests of the PyTorch backend",
)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_train_alike(backend, precision, reference, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    from tools import distance

    expected, actual = reference[precision], run(backend, precision, tmp_path)
    assert expected.keys() == actual.keys()
    wrong = {}
    for key in expected:
        assert actual[key].dtype == precision, key
        late = key.split("/")[1] == "end"
        limit = 1e-3 if late and precision == "float32" else 1e-5
        error = distance([actual[key]], [expected[key]])
        if not error < limit:
            wrong[key] = error
    assert not wrong


def train(name, arguments, precision):
    """Arrays of one configuration: first loss, gradients, weights, end."""
    import keras
    import numpy as np
    from keras import ops
    from tools import array
    from tools import make_episodes
    from tools import sgd_groups

    from keras_smat import SMAT
    from keras_smat import _backend

    class FedNoise(SMAT):
        """SMAT on noise made with NumPy, a row for each task."""

        def draw_noise(self, training=True):
            noise = {"scores": None, "masks": None}
            if training:
                noise["scores"] = self.row("scores", self.noise_shape[:1])
                if self.mask_noise == "hard_concrete":
                    noise["masks"] = self.row("masks", self.noise_shape)
            return noise

        def row(self, kind, shape):
            rng = np.random.default_rng(11)
            table = rng.uniform(0.02, 0.98, (STEPS, *shape)).astype(precision)
            return ops.take(
                ops.convert_to_tensor(table), self.tasks_seen.value, axis=0
            )

        @property
        def noise_shape(self):
            return self.experts.noise_shape

    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1.0)(x)
    x = keras.layers.Conv2D(4, 3, strides=2, name="conv")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.Dense(12, activation="gelu", name="hidden")(x)
    backbone = keras.Model(inputs, keras.layers.Dense(8, name="features")(x))
    learner = FedNoise(
        backbone, num_experts=3, max_way=4, target_sparsity=0.5, **arguments
    )
    rng = np.random.default_rng(0)
    scales = {"logits": 1.5, "delta": 0.05, "conv/kernel": 0.2}
    for v in learner.weights:
        if v.path.endswith(("temperature", "tasks_seen")):
            continue
        if "controller" in v.path:
            continue
        value = rng.standard_normal(v.shape)
        scale = next((s for k, s in scales.items() if k in v.path), 0.3)
        v.assign((value * scale).astype(precision))
    sgd_groups(learner, every=4 if name == "paper" else None)
    episodes = make_episodes(STEPS, support_buckets=[8], query_buckets=[10])
    variables = learner.trainable_variables

    def loss_of(values):
        scope = keras.StatelessScope(state_mapping=list(zip(variables, values)))
        with scope:
            return learner.compute_episode_loss(*episodes[0])[0]

    @_backend.jit
    def loss_and_gradients(values):
        loss, pullback = _backend.vjp(loss_of, values)
        return loss, pullback(ops.ones_like(loss))

    out = {}
    # In float32, Adam's first steps follow the signs of rounding errors.
    if name == "recommended" and precision == "float64":
        out = adapted(learner, episodes[0][0], precision)
    values = [ops.convert_to_tensor(v.value) for v in variables]
    loss, gradients = loss_and_gradients(values)
    out[f"{name}/first/loss"] = loss
    for v, gradient in zip(variables, gradients):
        out[f"{name}/first/gradient of {v.name}"] = gradient

    def record(when):
        for v in learner.weights:
            if v.path.endswith(("tasks_seen", "seed_generator_state")):
                continue
            out[f"{name}/{when}/{v.path}"] = np.array(array(v))

    losses = []
    for step, (x, y, sample_weight) in enumerate(list(episodes)[:STEPS]):
        logs = learner.train_on_batch(x, y, sample_weight, return_dict=True)
        losses.append(logs["loss"])
        if step == 0:
            record("first")
    record("end")
    out[f"{name}/end/losses"] = np.array(losses, precision)
    out[f"{name}/end/logits"] = learner.predict(episodes[0][0])
    return {k: np.array(array(v)) for k, v in out.items()}


def adapted(learner, x, precision):
    """What every adapter adds to the weights of a task."""
    import numpy as np
    from tools import array

    import keras_smat

    settings = dict(learning_rate=1e-3, steps=4)
    adapters = {
        "search": keras_smat.ExpertSearch(acceptance=0.8),
        "full": keras_smat.FullFineTune(**settings),
        "lora": keras_smat.LoRAFineTune(targets=["hidden"], **settings),
        "norm": keras_smat.LayerNormTune(**settings),
        "full_smat": keras_smat.FullSMATFineTune(**settings),
    }
    before = learner.task_weights(x)
    out = {}
    for kind, adapter in adapters.items():
        after = learner.task_weights(x, adapter)
        changes = [(array(a) - array(b)).ravel() for a, b in zip(after, before)]
        out[f"adapted/first/{kind}"] = np.concatenate(changes).astype(precision)
    return out


if __name__ == "__main__":
    _, precision, path = sys.argv
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch  # noqa: F401
    import keras
    import numpy as np
    from tools import exact_float64

    keras.config.set_floatx(precision)
    exact_float64()
    results = {}
    for configuration, settings in CONFIGURATIONS.items():
        results.update(train(configuration, settings, precision))
    np.savez(path, **results)
