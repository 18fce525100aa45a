"""Few-shot accuracy of a learner."""

import hashlib
import json
import platform
import sys

import keras
import numpy as np
from keras import ops

from keras_smat import data
from keras_smat._version import __version__
from keras_smat.checks import check_integer
from keras_smat.learners import MetaLearner
from keras_smat.learners import training_data
from keras_smat.learners.task_models import check_adapter
from keras_smat.report import FewShotReport
from keras_smat.report import FewShotResult


def evaluate_few_shot(
    learner,
    episodes,
    in_domain=None,
    num_episodes=600,
    adapter=None,
    verbose="auto",
):
    """Measures few-shot accuracy on one or several sets of episodes.

    The accuracy of an episode is the share of its queries whose largest logit
    is that of their class; padding never counts, and a query whose logits are
    not finite is wrong. The accuracy of a set is the mean over its episodes,
    its 95 % confidence interval 1.96 standard errors. Episodes with the same
    seed are the same for every learner, so that the `per_episode` accuracies
    of two learners can be compared pair by pair.

    Args:
        learner: `MetaLearner`; it need not be compiled.
        episodes: `data.Episodes` (an `EpisodeDataset` or a mixture), or a
            dict from names to them.
        in_domain: list of names, the sets of domains that were trained on;
            the others count as out of domain. Defaults to `None`: those whose
            `role` is `"ID"`; unknown if no set has a role.
        num_episodes: int, episodes of each set, from its first on. Defaults
            to `600`.
        adapter: callable `(learner, x, weights) -> weights` that refines the
            weights of a task; `x` holds the support alone. Or a dict from
            names of sets to such callables or `None`, where settings were
            chosen per data set. Defaults to `None`.
        verbose: `"auto"`, 0, 1 or 2: progress bars, one per set. `"auto"`
            becomes 1. Defaults to `"auto"`.

    Returns:
        `FewShotReport`.

    Raises:
        ValueError: before any episode runs, if a set is too short, has more
            classes or another image size than the learner takes, an adapter
            does not fit the learner, or an argument is not understood.

    Example:

    ```python
    import keras
    import numpy as np

    import keras_smat

    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten()]
    learner = keras_smat.ProtoNet(keras.Sequential(layers))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 3), "uint8")
    source = keras_smat.data.ArraySource(images, np.repeat(range(6), 10))
    sampler = keras_smat.data.FixedEpisodes(n_way=5, n_shot=1, n_query=5)
    noise = keras_smat.data.EpisodeDataset(source, sampler, num_episodes=20)
    report = keras_smat.evaluate_few_shot(
        learner, {"noise": noise}, num_episodes=20, verbose=0
    )
    report.results["noise"].accuracy  # about 0.2, chance of five classes
    print(report)
    ```

    Reference: Triantafillou et al., "Meta-Dataset", ICLR 2020, section 4
    (accuracy over 600 test episodes with 95 % confidence intervals).
    """
    if not isinstance(episodes, dict):
        episodes = {"episodes": episodes}
    if in_domain is None:
        in_domain = _in_domain(episodes)
    check_arguments(learner, episodes, in_domain, num_episodes, adapter)
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(
            "Expected `verbose` as 'auto', 0, 1 or 2. "
            f"Received: verbose={verbose!r}"
        )
    protocol = describe(learner, episodes, num_episodes, adapter)
    results = {}
    for name, dataset in episodes.items():
        bar = keras.utils.Progbar(
            num_episodes, verbose=1 if verbose == "auto" else int(verbose)
        )
        accuracies = np.empty(num_episodes)
        refine = adapter_of(adapter, name)
        for i in range(num_episodes):
            logits, labels = predict_episode(learner, dataset[i], refine)
            accuracies[i] = np.mean(right(logits, labels))
            if verbose:
                bar.add(1, values=[(name, accuracies[i])])
        results[name] = FewShotResult(accuracies)
    return FewShotReport(results, protocol, in_domain)


def predict_episode(learner, episode, adapter=None):
    """Logits (Q, W) and labels (Q,) of an episode's queries, no padding."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(episode)
    if adapter is None:
        logits = learner.predict_on_batch(x)
    else:
        weights = learner.task_weights(x, adapter)
        logits = learner.compiled_call(
            "query_logits", learner.query_logits, weights, x
        )
    logits, labels = ops.convert_to_numpy(logits), np.asarray(y)
    if sample_weight is None:
        return logits, labels
    real = np.asarray(sample_weight) > 0
    return logits[real], labels[real]


def right(logits, labels):
    """Which queries are classified rightly: bool array (Q,).

    Those of weights that diverged are not, whatever class `argmax` finds in
    rows of NaN.
    """
    finite = np.isfinite(logits).all(axis=-1)
    return finite & (logits.argmax(axis=-1) == labels)


def check_arguments(learner, episodes, in_domain, num_episodes, adapter):
    if not isinstance(learner, MetaLearner):
        raise ValueError(
            "Expected `learner` as a `keras_smat.MetaLearner`. "
            f"Received: learner={learner!r}"
        )
    check_integer("num_episodes", num_episodes, 1)
    if not episodes:
        raise ValueError(
            "Expected at least one set of episodes. Received: episodes={}"
        )
    for name, dataset in episodes.items():
        if not isinstance(name, str) or not isinstance(dataset, data.Episodes):
            raise ValueError(
                "Expected `episodes` as a `data.Episodes` or a dict from "
                f"names to them. Received: {name!r}: {dataset!r}"
            )
        if num_episodes > len(dataset):
            raise ValueError(
                f"Expected every set to have at least `num_episodes` "
                f"episodes. Received: set {name!r} with {len(dataset)}, "
                f"num_episodes={num_episodes}"
            )
        training_data.check(learner, dataset, name)
    _check_adapter(learner, episodes, adapter)
    listed = in_domain is None or isinstance(in_domain, list | tuple | set)
    if not listed or not set(in_domain or ()) <= set(episodes):
        raise ValueError(
            "Expected `in_domain` as a list of names of the sets "
            f"{list(episodes)}. Received: in_domain={in_domain!r}"
        )


def _check_adapter(learner, episodes, adapter):
    if isinstance(adapter, dict) and set(adapter) != set(episodes):
        raise ValueError(
            f"Expected an adapter or `None` for each of {list(episodes)}. "
            f"Received: adapter={adapter!r}"
        )
    for name in episodes:
        check_adapter(learner, adapter_of(adapter, name))


def adapter_of(adapter, name):
    """The adapter of one set."""
    return adapter[name] if isinstance(adapter, dict) else adapter


def _in_domain(episodes):
    """Names of the sets whose role is "ID"; `None` if none has a role."""
    roles = {n: getattr(s, "role", None) for n, s in episodes.items()}
    if any(roles.values()):
        return [name for name, role in roles.items() if role == "ID"]
    return None


def describe(learner, episodes, num_episodes, adapter):
    """What determines the figures, as plain JSON values."""
    backend = keras.backend.backend()
    sets = {
        name: {"epoch": dataset.epoch, **dataset.protocol()}
        for name, dataset in episodes.items()
    }
    used = plain({"num_episodes": num_episodes, "sets": sets})
    canonical = json.dumps(used, sort_keys=True).encode()
    return plain(
        {
            "learner": type(learner).__name__,
            "adapter": adapter_protocol(adapter),
            "backbone": learner.backbone.name,
            "image_size": learner.image_size,
            "precision": learner.dtype_policy.name,
            "versions": {
                "keras_smat": __version__,
                "keras": keras.__version__,
                # Keras has imported it, whatever it is.
                backend: sys.modules[backend].__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "backend": backend,
            **used,
            "episodes_sha256": hashlib.sha256(canonical).hexdigest()[:16],
        }
    )


def adapter_protocol(adapter):
    if adapter is None:
        return None
    if isinstance(adapter, dict):
        sets = {name: adapter_protocol(each) for name, each in adapter.items()}
        names = dict.fromkeys(each["name"] for each in sets.values() if each)
        return {"name": " / ".join(names), "sets": sets}
    protocol = {"name": getattr(adapter, "__name__", type(adapter).__name__)}
    if hasattr(adapter, "get_config"):
        protocol["config"] = adapter.get_config()
    return protocol


def plain(value):
    """The value as strict JSON would give it back."""

    def convert(item):
        if isinstance(item, np.generic | np.ndarray):
            return item.tolist()
        return getattr(item, "__qualname__", type(item).__qualname__)

    return json.loads(json.dumps(value, default=convert, allow_nan=False))
