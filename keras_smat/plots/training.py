"""Figures of a training run and of what it learned."""

import numpy as np

from keras_smat.plots import style


def learning_curves(validation, training=None, ylabel="accuracy in %", ax=None):
    """Validation and training figures over the steps, a colour per learner.

    Args:
        validation: dict from the learner's name to a pair of float arrays
            `(steps, values)` of one length, drawn solid.
        training: dict of the same kind, drawn dotted. Defaults to `None`.
        ylabel: str. Defaults to `"accuracy in %"`.
        ax: matplotlib `Axes`. Defaults to `None`, a new figure.

    Returns:
        `Axes`.
    """
    ax = style.axes(ax, 6.4, 2.9)
    training = training or {}
    for i, name in enumerate(dict.fromkeys([*validation, *training])):
        look = style.series(i)
        if name in validation:
            label = f"{name}, validation"
            ax.plot(*validation[name], label=label, markersize=4, **look)
        if name in training:
            label = f"{name}, training"
            look |= {"linestyle": ":", "alpha": 0.8}
            ax.plot(*training[name], label=label, markersize=2, **look)
    style.label(ax, "steps (episodes)", ylabel)
    style.legend(ax, 3)
    return style.grid(ax, "y")


def sparsity_over_time(steps, sparsity, target=None, ax=None):
    """Share of zeros of every expert over the steps of training.

    Args:
        steps: float array of shape (T,).
        sparsity: float array of shape (T, M), in [0, 1].
        target: float in [0, 1], drawn as a line. Defaults to `None`.
        ax: matplotlib `Axes`. Defaults to `None`, a new figure.

    Returns:
        `Axes`.
    """
    shares = 100 * np.asarray(sparsity)
    style.check_shape("sparsity", shares, (len(steps), *shares.shape[1:2]))
    ax = style.axes(ax, 6.4, 2.6)
    for m, values in enumerate(shares.T):
        ax.plot(
            steps, values, color=style.BLUE, alpha=0.6, linewidth=1.3,
            label="one line per expert" if m == 0 else None,
        )  # fmt: skip
    if target is not None:
        ax.axhline(
            100 * target, color=style.ORANGE, linestyle="--",
            label=f"target, {100 * target:g} %",
        )  # fmt: skip
    ax.set_ylim(0, 102)
    style.label(ax, "steps (episodes)", "zeros in %")
    style.legend(ax, 2)
    return style.grid(ax, "y")


def merging_weights(weights, domains, ax=None):
    """Heat map of the mean merging weight of every expert in every domain.

    Args:
        weights: float array of shape (domains, M); a row sums to 1.
        domains: list of str.
        ax: matplotlib `Axes`. Defaults to `None`, a new figure.

    Returns:
        `Axes`.
    """
    weights = np.atleast_2d(weights)
    experts = weights.shape[1]
    style.check_shape("weights", weights, (len(domains), experts))
    ax = style.axes(ax, 6.4, 0.7 + 0.28 * len(domains))
    # Around the even share, so that a hypernetwork that does not tell
    # domains apart looks plain instead of noisy.
    high = max(2 / experts, float(weights.max()))
    ax.imshow(weights, cmap="cividis", vmin=0, vmax=high, aspect="auto")
    for (row, m), value in np.ndenumerate(weights):
        light = value > 0.55 * high
        ax.text(
            m, row, f"{value:.2f}", ha="center", va="center", size=style.SMALL,
            color="#000000" if light else "#ffffff",
        )  # fmt: skip
    ax.set_yticks(range(len(domains)), domains)
    ax.set_xticks(range(experts), [f"{m + 1}" for m in range(experts)])
    style.label(ax, "expert")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax
