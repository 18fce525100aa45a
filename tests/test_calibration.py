"""Temperature and calibration error, in NumPy."""

import numpy as np
import pytest

from keras_smat import calibration_error
from keras_smat.calibration import fit_temperature


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_error_by_hand():
    p = np.array([[0.75, 0.25], [0.75, 0.25], [0.35, 0.65], [0.0, 1.0]])
    # (0.7, 0.8]: 1 of 2 right; (0.6, 0.7]: 0 of 1; (0.9, 1]: 1 of 1.
    expected = (2 * 0.25 + 0.65 + 0.0) / 4
    assert calibration_error(p, [0, 1, 0, 1]) == pytest.approx(expected)
    # One bin: 2 of 4 right, with a mean confidence of 0.7875.
    error = calibration_error(p, [0, 1, 0, 1], num_bins=1)
    assert error == pytest.approx(0.2875)


def test_edges_belong_below():
    # 0.8 shares a bin with 0.75, hence the errors cancel in part.
    p = np.array([[0.8, 0.2], [0.75, 0.25]])
    assert calibration_error(p, [0, 1]) == pytest.approx(0.275)
    assert calibration_error([[1.0, 0.0]], [0]) == 0.0


def test_predictions_that_are_true_as_often_as_they_say():
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.standard_normal((50_000, 4))
    p = softmax(logits)
    labels = (p.cumsum(1) < rng.random((len(p), 1))).sum(1)
    assert calibration_error(p, labels) < 0.01
    assert calibration_error(softmax(3.0 * logits), labels) > 0.1


@pytest.mark.parametrize(
    "p, labels, match",
    [
        (np.ones(3), [0, 0, 0], r"\(3,\)"),
        (np.ones((3, 2)), [0, 0], r"\(3, 2\) and \(2,\)"),
        (np.ones((0, 2)), [], "0 predictions"),
    ],
)
def test_errors(p, labels, match):
    with pytest.raises(ValueError, match=match):
        calibration_error(p, labels)


@pytest.mark.parametrize("truth", [0.2, 1.0, 7.0])
def test_a_known_temperature_is_found(truth):
    rng = np.random.default_rng(0)
    logits = 3.0 * truth * rng.standard_normal((20_000, 3))
    p = softmax(logits / truth)
    labels = (p.cumsum(1) < rng.random((len(p), 1))).sum(1)
    assert fit_temperature(logits, labels) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("separable", [False, True])
def test_it_minimises_cross_entropy_and_prior(separable):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 20)
    logits = rng.standard_normal((20, 4))
    logits[np.arange(20), labels] += 10.0 if separable else 1.0

    def cost(temperature):
        p = softmax(logits / temperature)[np.arange(20), labels]
        return -np.log(p).sum() + np.log(temperature) ** 2 / (2 * 0.5**2)

    found = fit_temperature(logits, labels)
    assert cost(found) <= min(cost(t) for t in found * np.geomspace(0.01, 100))
    assert cost(found) < min(cost(1.01 * found), cost(found / 1.01))
    if separable:  # 20 of 20 right is no reason to trust them without end.
        assert 0.5 < found < 1.0


def test_few_examples_move_it_little():
    rng = np.random.default_rng(2)
    logits = 8.0 * rng.standard_normal((1000, 3))
    p = softmax(logits / 4)
    labels = (p.cumsum(1) < rng.random((len(p), 1))).sum(1)
    few, some, many = (
        fit_temperature(logits[:n], labels[:n]) for n in (2, 20, 1000)
    )
    assert 1.0 < few < some < many < 4.2 and many > 3.5


def test_nothing_to_learn_from():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0
    assert fit_temperature(np.zeros((4, 1)), np.zeros(4, int)) == 1.0
    # Useless logits: as flat as can be.
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((400, 3))
    assert fit_temperature(logits, rng.integers(0, 3, 400)) > 3.0
