"""Settings of an adapter, chosen per data set."""

import itertools

import numpy as np

from keras_smat.adapters.gradient import GradientAdapter
from keras_smat.adapters.held_out import HeldOutSelection
from keras_smat.checks import check_choice
from keras_smat.checks import check_integer
from keras_smat.checks import check_number
from keras_smat.data import Episodes
from keras_smat.evaluation import evaluate_few_shot

HPO = ("validation", "support", "pmf")
GRIDS = {
    "meta_dataset": (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    "other": (0.0, 1e-7, 5e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    "pmf": (0.0, 1e-4, 1e-3, 1e-2),
}
_EPISODES = {"validation": 20, "pmf": 6}
_READS = {
    "validation": "labelled validation episodes",
    "support": "held-out images of each support, no query",
    "pmf": "labelled TEST episodes: the accuracy is optimistic",
}


def select_adapter(
    learner,
    adapter,
    episodes=None,
    hpo="validation",
    learning_rates="meta_dataset",
    steps=None,
    num_episodes=None,
    folds=5,
):
    """Chooses the learning rate and the steps of a gradient adapter.

    Every combination is tried, from the smallest rate on; a later one has to
    be strictly better, so that ties go to the smaller rate, and a rate of 0
    means no adaptation. How it was chosen is kept as the `selection` of the
    result, and appears in the protocol of reports.

    Args:
        learner: `MetaLearner`.
        adapter: adapter that takes gradient steps, such as `FullFineTune`;
            its other settings are kept.
        episodes: `data.Episodes`. Defaults to `None`, for `"support"`.
        hpo: on what the choice is made. `"validation"`: accuracy on
            `episodes` of validation classes. `"support"`: within each task,
            on support images that are held out in turn
            (`HeldOutSelection`), for data sets without validation classes.
            `"pmf"`: accuracy on labelled *test* episodes, as PMF and the
            released code of SMAT do; it makes test accuracies optimistic.
            Defaults to `"validation"`.
        learning_rates: list of floats, or the name of a grid:
            `"meta_dataset"` (0, 1e-6, ..., 1e-1), `"other"` (with 1e-7 and
            5e-7, for sets outside of Meta-Dataset) or `"pmf"` (0, 1e-4, 1e-3,
            1e-2). A named grid is multiplied by 10 for `LoRAFineTune`, as
            in the released code. Defaults to `"meta_dataset"`.
        steps: list of ints. Defaults to `None`, the adapter's own.
        num_episodes: int, the first of `episodes` to use. Defaults to `None`:
            20, or 6 for `"pmf"`.
        folds: int, the most folds of `"support"`. Defaults to `5`.

    Returns:
        An adapter: `adapter` with other settings, or a `HeldOutSelection`.

    Raises:
        ValueError: if the adapter has no learning rate, or the episodes do
            not fit `hpo`.

    Example:

    ```python
    adapter = keras_smat.select_adapter(
        learner,
        keras_smat.FullFineTune(steps=2),
        validation_episodes,
        learning_rates=[0.0, 1e-3],
        num_episodes=2,
    )
    adapter.selection["accuracies"]
    ```

    Reference: SMAT section 4; Hu et al. (PMF), CVPR 2022, section 3.3.
    """
    check_choice("hpo", hpo, HPO)
    if not isinstance(adapter, GradientAdapter):
        raise ValueError(
            "Expected `adapter` as one with a learning rate, such as "
            f"`FullFineTune`. Received: adapter={adapter!r}"
        )
    if (episodes is None) != (hpo == "support"):
        raise ValueError(
            "Expected `episodes` for hpo='validation' and hpo='pmf', and none "
            f"for hpo='support'. Received: hpo={hpo!r}, episodes={episodes!r}"
        )
    if episodes is not None and not isinstance(episodes, Episodes):
        raise ValueError(
            "Expected `episodes` as one `data.Episodes`: call once per data "
            f"set. Received: episodes={episodes!r}"
        )
    rates = _rates(learning_rates, adapter)
    steps = _steps(steps, adapter)
    selection = {
        "hpo": hpo,
        "reads": _READS[hpo],
        "learning_rates": rates,
        "steps": steps,
    }
    settings = [
        {"learning_rate": rate, "steps": count}
        for rate, count in itertools.product(rates, steps)
        # Without a rate, one number of steps is as good as another.
        if rate > 0 or count == steps[0]
    ]
    candidates = [adapter.replace(**s, selection=None) for s in settings]
    if hpo == "support":
        candidates = [c if c.learning_rate else None for c in candidates]
        return HeldOutSelection(candidates, folds, selection)
    if num_episodes is None:
        num_episodes = _EPISODES[hpo]
    count = min(check_integer("num_episodes", num_episodes, 1), len(episodes))
    accuracies = [
        _accuracy(learner, candidate, episodes, count)
        for candidate in candidates
    ]
    selection["accuracies"] = [
        {**s, "accuracy": accuracy} for s, accuracy in zip(settings, accuracies)
    ]
    selection["num_episodes"] = count
    selection["episodes"] = episodes.protocol()
    best = candidates[int(np.argmax(accuracies))]  # the first of equals
    return best.replace(selection=selection)


def _accuracy(learner, adapter, episodes, count):
    report = evaluate_few_shot(
        learner,
        episodes,
        num_episodes=count,
        adapter=adapter if adapter.learning_rate else None,
        verbose=0,
    )
    return report.results["episodes"].accuracy


def _steps(steps, adapter):
    if steps is None:
        return [adapter.steps]
    if np.ndim(steps) != 1 or not len(steps):
        raise ValueError(
            f"Expected `steps` as a list of integers. Received: steps={steps!r}"
        )
    return sorted(check_integer("steps", count, 0) for count in steps)


def _rates(learning_rates, adapter):
    if isinstance(learning_rates, str):
        check_choice("learning_rates", learning_rates, tuple(GRIDS))
        grid = GRIDS[learning_rates]
        return [rate * adapter.rate_unit for rate in grid]
    if np.ndim(learning_rates) != 1 or not len(learning_rates):
        raise ValueError(
            "Expected `learning_rates` as a list of numbers or one of "
            f"{tuple(GRIDS)}. Received: learning_rates={learning_rates!r}"
        )
    return sorted(check_number("learning_rates", r) for r in learning_rates)
