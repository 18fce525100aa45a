"""Colours, sizes and what all figures share."""

from matplotlib.figure import Figure

INK = "#262626"
GREY, BLUE, ORANGE = "#8c8c8c", "#0072b2", "#d55e00"
GREEN, PURPLE, SKY = "#009e73", "#cc79a7", "#56b4e9"
COLORS = (GREY, BLUE, ORANGE, GREEN, PURPLE, SKY)
MARKERS = "osD^vP"
SMALL, SIZE = 8, 9


def series(i):
    """Colour and marker of the i-th of up to 36 methods, all different."""
    shift, color = divmod(i, len(COLORS))
    return {
        "color": COLORS[color],
        "marker": MARKERS[(color + shift) % len(MARKERS)],
    }


def label(ax, x=None, y=None):
    """Writes what the axes show."""
    for axis, text in ((ax.xaxis, x), (ax.yaxis, y)):
        if text:
            axis.set_label_text(text, color=INK, size=SIZE)


def check_shape(name, array, shape):
    if array.shape != tuple(shape):
        raise ValueError(
            f"Expected `{name}` of shape {tuple(shape)}, one value per name. "
            f"Received: shape {array.shape}"
        )


def axes(ax, width, height):
    if ax is None:
        ax = Figure(figsize=(width, height), layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ax.spines.values():
        spine.set_edgecolor(INK)
    ax.tick_params(colors=INK, labelsize=SMALL)
    return ax


def grid(ax, axis):
    ax.grid(axis=axis, color=INK, alpha=0.15, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def legend_columns(names, width):
    """How many names of methods fit side by side into `width` inches."""
    each = 0.5 + 0.075 * max(map(len, names))  # Marker and text.
    return min(len(names), 4, max(1, int(width / each)))


def legend(ax, columns):
    ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False,
        fontsize=SIZE, labelcolor=INK, borderaxespad=0.2, handlelength=1.6,
    )  # fmt: skip
