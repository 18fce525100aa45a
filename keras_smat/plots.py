"""Figures: arrays in, matplotlib Axes out.

Every function draws on the `ax` it is given or on a figure of its own
(`ax.figure`), which belongs to no window and no pyplot state. Colours are
those of Okabe and Ito, told apart by colour-blind readers; series differ in
marker or dash too.

```python
from keras_smat import plots

ax = plots.accuracy_bars([[0.61, 0.48]], [[0.01, 0.02]], ["ID", "OOD"], ["A"])
ax.figure.savefig("bars.svg")
```
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INK = "#262626"
GREY, BLUE, ORANGE = "#8c8c8c", "#0072b2", "#d55e00"
GREEN, PURPLE, SKY = "#009e73", "#cc79a7", "#56b4e9"
COLORS = (GREY, BLUE, ORANGE, GREEN, PURPLE, SKY)
_MARKERS = "osD^vP"
_SMALL, _SIZE = 8, 9


def accuracy_bars(accuracy, ci95, sets, learners, groups=None, ax=None):
    """Accuracies of several learners, one block of bars per set.

    Args:
        accuracy: float array of shape (learners, sets), in [0, 1].
        ci95: float array of the same shape, half widths of the intervals;
            NaN draws none.
        sets: list of str, the rows from top to bottom.
        learners: list of str, bars within a row.
        groups: list of str, one per set: a heading is written above the
            first set of every run of equal ones. Defaults to `None`.
        ax: matplotlib `Axes`. Defaults to `None`, a new figure.

    Returns:
        `Axes`.
    """
    percent, half = (100 * np.atleast_2d(v) for v in (accuracy, ci95))
    _check_shape("accuracy", percent, (len(learners), len(sets)))
    _check_shape("ci95", half, percent.shape)
    count = len(learners)
    rows, headings = _rows(sets, groups)
    ax = _axes(ax, 6.4, 0.5 + 0.26 * rows[-1] + (0.12 * count + 0.1))
    thickness = 0.8 / count
    for i, name in enumerate(learners):
        y = rows - 0.4 + (i + 0.5) * thickness
        ax.barh(
            y,
            percent[i],
            0.88 * thickness,
            xerr=np.nan_to_num(half[i]),
            color=COLORS[i % len(COLORS)],
            error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 1.5},
            label=name,
        )
    ax.set_yticks(rows, sets)
    for y, text in headings:
        ax.text(0, y, text, color=INK, size=_SMALL, weight="bold", va="center")
    ax.set_ylim(rows[-1] + 0.6, min(rows[0], *(y for y, _ in headings)) - 0.6)
    ax.set_xlim(0, 100)
    ax.set_xlabel("accuracy in %", color=INK, size=_SIZE)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    _legend(ax, count)
    return _grid(ax, "x")


def differences(difference, ci95, names, ax=None):
    """Paired differences with their intervals, and the line of no difference.

    Args:
        difference: float array of shape (n,), in [-1, 1].
        ci95: float array of shape (n,), half widths of the intervals.
        names: list of str, from top to bottom.
        ax: matplotlib `Axes`. Defaults to `None`, a new figure.

    Returns:
        `Axes`. Intervals that contain zero are drawn grey and hollow.
    """
    points, half = 100 * np.asarray(difference), 100 * np.asarray(ci95)
    _check_shape("difference", points, (len(names),))
    _check_shape("ci95", half, points.shape)
    ax = _axes(ax, 6.4, 0.7 + 0.3 * len(names))
    ax.axvline(0, color=INK, linewidth=1)
    for y, (point, width) in enumerate(zip(points, half)):
        clear = abs(point) > width
        color = (BLUE if point > 0 else ORANGE) if clear else GREY
        ax.errorbar(
            point, y, xerr=np.nan_to_num(width), fmt="o", color=color,
            capsize=3, markerfacecolor=color if clear else "none",
        )  # fmt: skip
    reach = np.max(np.abs(points) + np.nan_to_num(half), initial=1.0) * 1.08
    ax.set_xlim(-reach, reach)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("difference in points of accuracy", color=INK, size=_SIZE)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return _grid(ax, "x")


def id_against_ood(inside, outside, inside_ci95, outside_ci95, names, ax=None):
    """Accuracy out of domain over accuracy in domain, a point per method.

    Args:
        inside: float array of shape (n,), in [0, 1]: in domain.
        outside: float array of shape (n,): out of domain.
        inside_ci95: float array of shape (n,), half widths.
        outside_ci95: float array of shape (n,), half widths.
        names: list of str.
        ax: matplotlib `Axes`. Defaults to `None`, a new figure.

    Returns:
        `Axes`.
    """
    values = [inside, outside, inside_ci95, outside_ci95]
    values = [100 * np.asarray(v, "float64") for v in values]
    for name, value in zip(("inside", "outside"), values):
        _check_shape(name, value, (len(names),))
    ax = _axes(ax, 6.4, 3.8)
    for i, (name, x, y, dx, dy) in enumerate(zip(names, *values)):
        ax.errorbar(
            x, y, np.nan_to_num(dy), np.nan_to_num(dx), label=name,
            color=COLORS[i % len(COLORS)], fmt=_MARKERS[i % len(_MARKERS)],
            markersize=5, elinewidth=1, capsize=2,
        )  # fmt: skip
    ax.set_xlabel("in domain, accuracy in %", color=INK, size=_SIZE)
    ax.set_ylabel("out of domain, %", color=INK, size=_SIZE)
    _legend(ax, 3)
    return _grid(ax, "both")


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
    ax = _axes(ax, 6.4, 2.9)
    training = training or {}
    for i, name in enumerate(dict.fromkeys([*validation, *training])):
        style = {
            "color": COLORS[i % len(COLORS)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        if name in validation:
            label = f"{name}, validation"
            ax.plot(*validation[name], label=label, markersize=4, **style)
        if name in training:
            label = f"{name}, training"
            style = {**style, "linestyle": ":", "alpha": 0.8}
            ax.plot(*training[name], label=label, markersize=2, **style)
    ax.set_xlabel("steps (episodes)", color=INK, size=_SIZE)
    ax.set_ylabel(ylabel, color=INK, size=_SIZE)
    _legend(ax, 3)
    return _grid(ax, "y")


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
    _check_shape("sparsity", shares, (len(steps), *shares.shape[1:2]))
    ax = _axes(ax, 6.4, 2.6)
    for m, values in enumerate(shares.T):
        ax.plot(
            steps, values, color=BLUE, alpha=0.6, linewidth=1.3,
            label="one line per expert" if m == 0 else None,
        )  # fmt: skip
    if target is not None:
        label = f"target, {100 * target:g} %"
        ax.axhline(100 * target, color=ORANGE, linestyle="--", label=label)
    ax.set_ylim(0, 102)
    ax.set_xlabel("steps (episodes)", color=INK, size=_SIZE)
    ax.set_ylabel("zeros in %", color=INK, size=_SIZE)
    _legend(ax, 2)
    return _grid(ax, "y")


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
    _check_shape("weights", weights, (len(domains), experts))
    ax = _axes(ax, 6.4, 0.7 + 0.28 * len(domains))
    # Around the even share, so that a hypernetwork that does not tell
    # domains apart looks plain instead of noisy.
    high = max(2 / experts, float(weights.max()))
    ax.imshow(weights, cmap="cividis", vmin=0, vmax=high, aspect="auto")
    for (row, m), value in np.ndenumerate(weights):
        light = value > 0.55 * high
        ax.text(
            m, row, f"{value:.2f}", ha="center", va="center", size=_SMALL,
            color="#000000" if light else "#ffffff",
        )  # fmt: skip
    ax.set_yticks(range(len(domains)), domains)
    ax.set_xticks(range(experts), [f"{m + 1}" for m in range(experts)])
    ax.set_xlabel("expert", color=INK, size=_SIZE)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def episode_picture(
    support_images,
    support_labels,
    query_images,
    query_labels,
    predictions,
    max_per_class=5,
    ax=None,
):
    """One episode: a row per class, its support left, its queries right.

    A query that was classified rightly has a thin green frame, a wrong one a
    thick orange frame and the letter of the class it was taken for.

    Args:
        support_images: uint8 array of shape (S, H, W, C).
        support_labels: int array of shape (S,); -1 is padding.
        query_images: uint8 array of shape (Q, H, W, C).
        query_labels: int array of shape (Q,); -1 is padding.
        predictions: int array of shape (Q,).
        max_per_class: int, most support images and most queries in a row.
            Defaults to `5`.
        ax: matplotlib `Axes`. Defaults to `None`, a new figure.

    Returns:
        `Axes`.
    """
    support = _by_class(support_labels, max_per_class)
    queries = _by_class(query_labels, max_per_class)
    way = len(support)
    shots = max(map(len, support))
    columns = shots + max(map(len, queries))
    ax = _axes(ax, 6.4, 0.2 + 6.0 * way / (columns + 0.9))
    # In units of one image: the support begins at 0, the queries after a gap.
    offset = shots + 0.35
    for row in range(way):
        ax.text(
            -0.15, row + 0.5, _letter(row), ha="right", va="center", color=INK,
            size=_SIZE, weight="bold",
        )  # fmt: skip
        for column, i in enumerate(support[row]):
            _tile(ax, support_images[i], column, row)
        for column, i in enumerate(queries[row] if row < len(queries) else ()):
            _tile(ax, query_images[i], offset + column, row)
            _judge(ax, offset + column, row, int(predictions[i]))
    for x, text in ((0, "support"), (offset, "queries")):
        ax.text(x, -0.12, text, va="bottom", color=INK, size=_SIZE)
    ax.set_xlim(-0.45, offset + columns - shots + 0.05)
    ax.set_ylim(way + 0.05, -0.45)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def _tile(ax, image, x, y):
    image = np.squeeze(image)
    ax.imshow(
        image, extent=(x + 0.05, x + 0.95, y + 0.95, y + 0.05), vmin=0,
        vmax=255, cmap="gray", interpolation="none",
    )  # fmt: skip


def _judge(ax, x, y, prediction):
    right = prediction == y
    color = GREEN if right else ORANGE
    ax.add_patch(
        Rectangle(
            (x + 0.05, y + 0.05),
            0.9,
            0.9,
            fill=False,
            edgecolor=color,
            linewidth=1.2 if right else 3,
        )  # fmt: skip
    )
    if not right:
        ax.text(
            x + 0.9, y + 0.9, _letter(prediction), ha="right", va="bottom",
            color="#ffffff", size=_SMALL, weight="bold",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip


def _by_class(labels, most):
    labels = np.asarray(labels)
    return [np.flatnonzero(labels == c)[:most] for c in range(labels.max() + 1)]


def _letter(index):
    return chr(ord("A") + index) if index < 26 else str(index)


def _rows(sets, groups):
    """Vertical positions of the sets, and `(position, text)` of headings."""
    if groups is None:
        return np.arange(len(sets), dtype=float), [(0.0, "")]
    rows, headings, y, last = [], [], 0.0, None
    for group in groups:
        if group != last:
            headings.append((y, group))
            y, last = y + 1, group
        rows.append(y)
        y += 1
    return np.array(rows), headings


def _check_shape(name, array, shape):
    if array.shape != tuple(shape):
        raise ValueError(
            f"Expected `{name}` of shape {tuple(shape)}, one value per name. "
            f"Received: shape {array.shape}"
        )


def _axes(ax, width, height):
    if ax is None:
        ax = Figure(figsize=(width, height), layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ax.spines.values():
        spine.set_edgecolor(INK)
    ax.tick_params(colors=INK, labelsize=_SMALL)
    return ax


def _grid(ax, axis):
    ax.grid(axis=axis, color=INK, alpha=0.15, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def _legend(ax, columns):
    ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False,
        fontsize=_SIZE, labelcolor=INK, borderaxespad=0.2, handlelength=1.6,
    )  # fmt: skip
