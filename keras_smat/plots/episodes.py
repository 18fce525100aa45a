"""Pictures of episodes."""

import numpy as np
from matplotlib.patches import Rectangle

from keras_smat.plots import style


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
    ax = style.axes(ax, 6.4, 0.2 + 6.0 * way / (columns + 0.9))
    # In units of one image: the support begins at 0, the queries after a gap.
    offset = shots + 0.35
    for row in range(way):
        ax.text(
            -0.15, row + 0.5, _letter(row), ha="right", va="center",
            color=style.INK, size=style.SIZE, weight="bold",
        )  # fmt: skip
        for column, i in enumerate(support[row]):
            _tile(ax, support_images[i], column, row)
        for column, i in enumerate(queries[row] if row < len(queries) else ()):
            _tile(ax, query_images[i], offset + column, row)
            _judge(ax, offset + column, row, int(predictions[i]))
    for x, text in ((0, "support"), (offset, "queries")):
        ax.text(x, -0.12, text, va="bottom", color=style.INK, size=style.SIZE)
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
    color = style.GREEN if right else style.ORANGE
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
            color="#ffffff", size=style.SMALL, weight="bold",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip


def _by_class(labels, most):
    labels = np.asarray(labels)
    return [np.flatnonzero(labels == c)[:most] for c in range(labels.max() + 1)]


def _letter(index):
    return chr(ord("A") + index) if index < 26 else str(index)
