"""Figures hold the numbers they are given."""

import io
import warnings

import numpy as np
import pytest

from keras_smat import plots
from keras_smat.plots import style

NAMES = ["Frozen", "PMF"]
ACCURACY = np.array([[0.5, 0.25, 0.75], [0.6, 0.3, 0.7]])
CI95 = np.array([[0.1, 0.05, np.nan], [0.02, 0.03, 0.01]])


def bars(ax):
    return [[p.get_width() for p in c.patches] for c in ax.containers[1::2]]


def drawn(ax):
    """Draws the figure; a warning on the way is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.savefig(io.BytesIO(), format="svg")
    return ax


def test_no_pyplot_state():
    from matplotlib import pyplot

    plots.differences([0.1], [0.2], ["a"])
    assert pyplot.get_fignums() == []


def test_accuracy_bars():
    groups = ["averages", "sets", "sets"]
    ax = plots.accuracy_bars(ACCURACY, CI95, list("abc"), NAMES, groups)
    drawn(ax)
    np.testing.assert_allclose(bars(ax), 100 * ACCURACY)
    ends = ax.containers[0].lines[2][0].get_segments()  # of the intervals
    np.testing.assert_allclose(
        [s[:, 0] for s in ends][:2], [[40, 60], [20, 30]]
    )
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels == list("abc")
    assert [t.get_text() for t in ax.texts] == ["averages", "sets"]
    # The first set is on top, and nothing lies on a heading.
    bottom, top = ax.get_ylim()
    assert bottom > top
    ticks = list(ax.get_yticks())
    assert ticks == sorted(ticks)
    assert not set(ticks) & {t.get_position()[1] for t in ax.texts}
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == NAMES


def test_draws_on_the_given_axes():
    figure = plots.differences([0.1], [0.2], ["a"]).figure
    ax = figure.add_subplot(projection=None)
    assert plots.accuracy_bars(ACCURACY, CI95, list("abc"), NAMES, ax=ax) is ax


def test_differences_mark_intervals_that_contain_zero():
    ax = plots.differences([0.02, -0.03, 0.001], [0.01, 0.02, 0.01], "abc")
    drawn(ax)
    points = [c.lines[0] for c in ax.containers]
    x = [p.get_xdata()[0] for p in points]
    np.testing.assert_allclose(x, [2, -3, 0.1])
    filled = [p.get_markerfacecolor() != "none" for p in points]
    assert filled == [True, True, False]
    assert len({p.get_color() for p in points}) == 3
    low, high = ax.get_xlim()
    assert low == -high and high > 5


def test_id_against_ood():
    ax = plots.id_against_ood(
        [0.5, 0.6], [0.4, 0.3], [0.1, 0.1], CI95[0, :2], "ab"
    )
    drawn(ax)
    points = [c.lines[0] for c in ax.containers]
    found = [(p.get_xdata()[0], p.get_ydata()[0]) for p in points]
    np.testing.assert_allclose(found, [(50, 40), (60, 30)])
    vertical = ax.containers[0].lines[2][1].get_segments()[0]
    np.testing.assert_allclose(vertical[:, 1], [30, 50])
    with pytest.raises(ValueError, match=r"`outside` of shape \(2,\)"):
        plots.id_against_ood([0.5, 0.6], [0.4], [0, 0], [0, 0], "ab")


def test_thirty_six_methods_look_different():
    looks = {tuple(style.series(i).values()) for i in range(36)}
    assert len(looks) == 36


def test_learning_curves_share_a_colour_per_learner():
    steps = np.arange(3)
    ax = plots.learning_curves(
        {"A": (steps, steps), "B": (steps, 2 * steps)},
        {"B": (steps, 3 * steps)},
    )
    drawn(ax)
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["A, validation", "B, validation", "B, training"]
    np.testing.assert_array_equal(lines["B, training"].get_ydata(), 3 * steps)
    colors = [line.get_color() for line in ax.lines]
    assert colors[1] == colors[2] != colors[0]


def test_sparsity_over_time():
    shares = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    ax = drawn(plots.sparsity_over_time([10, 20], shares, target=0.9))
    *experts, target = ax.lines
    np.testing.assert_allclose([e.get_ydata() for e in experts], 100 * shares.T)
    assert set(target.get_ydata()) == {90}
    assert len(ax.get_legend().get_texts()) == 2


def test_merging_weights():
    weights = np.array([[0.25, 0.75], [0.5, 0.5]])
    ax = drawn(plots.merging_weights(weights, ["a", "b"]))
    np.testing.assert_array_equal(ax.images[0].get_array(), weights)
    assert [t.get_text() for t in ax.texts] == ["0.25", "0.75", "0.50", "0.50"]


@pytest.mark.parametrize("channels", [1, 3])
def test_episode_picture(channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 8, 8, channels), "uint8")
    ax = plots.episode_picture(
        images[:5],
        np.array([0, 0, 1, 1, -1]),
        images[:4],
        np.array([1, 0, 0, -1]),
        np.array([1, 0, 1, 0]),
        max_per_class=2,
    )
    drawn(ax)
    # Four support images and three queries; padding is not shown.
    assert len(ax.images) == 7
    first = ax.images[0].get_array()
    np.testing.assert_array_equal(first, np.squeeze(images[0]))
    frames = [p.get_edgecolor() for p in ax.patches]
    assert len(frames) == 3 and len(set(frames)) == 2
    texts = [t.get_text() for t in ax.texts]
    # Two rows, and the class that the wrong query was taken for.
    assert sorted(texts) == ["A", "B", "B", "queries", "support"]


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"`accuracy` of shape \(2, 2\)"):
        plots.accuracy_bars(ACCURACY, CI95, ["a", "b"], NAMES)
    with pytest.raises(ValueError, match=r"`ci95`.*Received: shape \(1, 3\)"):
        plots.accuracy_bars(ACCURACY, CI95[:1], list("abc"), NAMES)
    with pytest.raises(ValueError, match=r"`weights` of shape \(1, 2\)"):
        plots.merging_weights(np.ones((2, 2)), ["a"])
    with pytest.raises(ValueError, match=r"`sparsity` of shape \(3, 2\)"):
        plots.sparsity_over_time([1, 2, 3], np.ones((2, 2)))
