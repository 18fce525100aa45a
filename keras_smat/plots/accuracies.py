"""Figures that compare methods."""

import math

import numpy as np

from keras_smat.plots import style

WIDTH = 6.4  # Inches.


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
    style.check_shape("accuracy", percent, (len(learners), len(sets)))
    style.check_shape("ci95", half, percent.shape)
    count = len(learners)
    rows, headings = _rows(sets, groups)
    pitch = max(0.26, 0.08 * count)  # Inches per row.
    columns = style.legend_columns(learners, WIDTH)
    height = 0.6 + 0.2 * math.ceil(count / columns)
    ax = style.axes(ax, WIDTH, height + pitch * (rows[-1] + 1.2))
    thickness = 0.8 / count
    for i, name in enumerate(learners):
        y = rows - 0.4 + (i + 0.5) * thickness
        ax.barh(
            y, percent[i], 0.88 * thickness, xerr=np.nan_to_num(half[i]),
            color=style.series(i)["color"], label=name,
            error_kw={"ecolor": style.INK, "elinewidth": 1, "capsize": 1.5},
        )  # fmt: skip
    ax.set_yticks(rows, sets)
    for y, text in headings:
        ax.text(
            0, y, text, color=style.INK, size=style.SMALL, weight="bold",
            va="center",
        )  # fmt: skip
    ax.set_ylim(rows[-1] + 0.6, min(rows[0], *(y for y, _ in headings)) - 0.6)
    ax.set_xlim(0, 100)
    style.label(ax, "accuracy in %")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    style.legend(ax, columns)
    return style.grid(ax, "x")


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
    style.check_shape("difference", points, (len(names),))
    style.check_shape("ci95", half, points.shape)
    ax = style.axes(ax, WIDTH, 0.7 + 0.3 * len(names))
    ax.axvline(0, color=style.INK, linewidth=1)
    for y, (point, width) in enumerate(zip(points, half)):
        clear = round(abs(point) - width, 1) > 0
        color = style.BLUE if point > 0 else style.ORANGE
        color = color if clear else style.GREY
        ax.errorbar(
            point, y, xerr=np.nan_to_num(width), fmt="o", color=color,
            capsize=3, markerfacecolor=color if clear else "none",
        )  # fmt: skip
    reach = np.max(np.abs(points) + np.nan_to_num(half), initial=1.0) * 1.08
    ax.set_xlim(-reach, reach)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), names)
    style.label(ax, "difference in points of accuracy")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return style.grid(ax, "x")


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
        style.check_shape(name, value, (len(names),))
    columns = style.legend_columns(names, WIDTH)
    height = 3.2 + 0.2 * math.ceil(len(names) / columns)
    ax = style.axes(ax, WIDTH, height)
    for i, (name, x, y, dx, dy) in enumerate(zip(names, *values)):
        ax.errorbar(
            x, y, np.nan_to_num(dy), np.nan_to_num(dx), label=name,
            markersize=5, linestyle="none", elinewidth=1, capsize=2,
            **style.series(i),
        )  # fmt: skip
    style.label(ax, "in domain, accuracy in %", "out of domain, %")
    style.legend(ax, columns)
    return style.grid(ax, "both")


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
