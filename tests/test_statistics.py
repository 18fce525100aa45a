"""Statistics against closed forms, printed tables and simulations."""

import math

import keras
import numpy as np
import pytest

from keras_smat import statistics as st

pure = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="NumPy alone: one backend is enough",
)


@pytest.mark.parametrize("t", [0.0, 1e-8, 0.3, 1.0, 2.5, 12.0, 400.0])
def test_t_tail_against_closed_forms(t):
    one = 1 - 2 / math.pi * math.atan(t)
    two = 1 - t / math.sqrt(2 + t * t)
    angle = math.atan(t / math.sqrt(3))
    three = 1 - 2 / math.pi * (angle + math.sin(angle) * math.cos(angle))
    for dof, expected in ((1, one), (2, two), (3, three)):
        assert st.t_tail(t, dof) == pytest.approx(expected, abs=1e-12)
        assert st.t_tail(-t, dof) == st.t_tail(t, dof)
    normal = math.erfc(t / math.sqrt(2))
    assert st.t_tail(t, 1e6) == pytest.approx(normal, abs=1e-6)


@pytest.mark.parametrize(
    "dof, printed",
    [(1, 12.7062), (4, 2.7764), (10, 2.2281), (30, 2.0423), (120, 1.9799)],
)
def test_t_quantile_against_the_printed_table(dof, printed):
    assert st.t_quantile(0.95, dof) == pytest.approx(printed, abs=5e-5)
    assert st.t_tail(st.t_quantile(0.9, dof), dof) == pytest.approx(0.1)


def test_paired_t_test_by_hand():
    # Mean 2, variance 1, n = 4: t = 2 / (1 / 2) = 4 with 3 degrees.
    sample = 2 + np.array([-1, -1, 1, 1]) * math.sqrt(3 / 4)
    test = st.paired_t_test([sample])
    assert test.difference == pytest.approx(2)
    assert test.ci95 == pytest.approx(3.18245 / 2, rel=1e-5)
    assert test.p_value == pytest.approx(0.02801, abs=1e-5)


def test_two_samples_by_hand():
    # Variances of the means 1/4 and 1/4: error sqrt(1/2) / 2, 6 degrees.
    spread = np.array([-1, -1, 1, 1]) * math.sqrt(3 / 4)
    test = st.paired_t_test([2 + spread, spread])
    assert test.difference == pytest.approx(1)
    assert test.ci95 == pytest.approx(2.446912 * math.sqrt(1 / 2) / 2, rel=1e-5)
    # The order of samples and of pairs plays no part.
    assert st.paired_t_test([spread[::-1], 2 + spread]) == test


def test_degenerate_samples():
    assert st.paired_t_test([[0.1]]).difference == 0.1
    assert math.isnan(st.paired_t_test([[0.1], [0.2, 0.3]]).p_value)
    same = st.paired_t_test([[0.2, 0.2, 0.2]])
    assert (same.ci95, same.p_value) == (0.0, 0.0)
    assert st.paired_t_test([[0.0, 0.0]]).p_value == 1.0
    for bad in ([], [[]], [[[0.1]]]):
        with pytest.raises(ValueError, match="shape"):
            st.paired_t_test(bad)


@pure
def test_intervals_and_p_values_mean_what_they_say():
    rng = np.random.default_rng(0)
    runs, covered, rejected = 1500, 0, 0
    for _ in range(runs):
        samples = [rng.normal(0.3, 1, 5), rng.normal(-0.1, 3, 8)]
        test = st.paired_t_test(samples)
        covered += abs(test.difference - 0.1) < test.ci95
        null = st.paired_t_test([s - m for s, m in zip(samples, (0.3, -0.1))])
        rejected += null.p_value < 0.05
    # Four standard errors of a share of 5 % in 1500 runs: 2.25 %.
    assert 0.9275 < covered / runs < 0.9725
    assert 0.0275 < rejected / runs < 0.0725


def test_holm_by_hand():
    adjusted = st.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(st.holm([0.6, 0.7]), [1.0, 1.0])
    adjusted = st.holm([0.01, math.nan, 0.03])
    np.testing.assert_allclose(adjusted, [0.02, math.nan, 0.03])
    assert st.holm([]).shape == (0,)


@pure
def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(1)
    false = sum(
        (st.holm(rng.uniform(size=10)) < 0.05).any() for _ in range(4000)
    )
    assert 0.033 < false / 4000 < 0.067


def test_ranks_as_printed_on_the_leaderboard():
    """Two rows of the public Meta-Dataset leaderboard (ImageNet alone)."""
    traffic = [60.78, 51.8, 82.65, 66.79, 47.8, 47.12, 58.11, 33.67, 50.93]
    traffic += [48.83, 44.59]
    traffic_ci = [1.29, 1.04, 0.76, 1.31, 1.14, 1.1, 1.05, 1.05, 1.51]
    traffic_ci += [1.09, 1.19]
    coco = [48.11, 48.03, 59.9, 34.86, 34.99, 41, 41.7, 29.15, 35.3]
    coco += [43.74, 30.38]
    coco_ci = [1.14, 0.99, 1.02, 0.97, 1, 1.1, 1.08, 1.01, 1.23, 1.12, 0.99]
    ranks = st.leaderboard_ranks(
        np.transpose([traffic, coco]), np.transpose([traffic_ci, coco_ci])
    )
    np.testing.assert_array_equal(
        ranks[:, 0], [3, 5.5, 1, 2, 7.5, 9, 4, 11, 5.5, 7.5, 10]
    )
    np.testing.assert_array_equal(
        ranks[:, 1], [2.5, 2.5, 1, 8, 8, 5.5, 5.5, 10.5, 8, 4, 10.5]
    )


def test_ranks_add_up():
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(size=(7, 20))
    ranks = st.leaderboard_ranks(accuracy, 0.1 * rng.uniform(size=(7, 20)))
    np.testing.assert_allclose(ranks.sum(axis=0), 28)
    exact = st.leaderboard_ranks(accuracy, np.zeros((7, 20)))
    np.testing.assert_array_equal(
        exact, 1 + np.argsort(np.argsort(-accuracy, axis=0), axis=0)
    )
    unknown = st.leaderboard_ranks(accuracy, np.full((7, 20), np.nan))
    assert (unknown == 4).all()
    with pytest.raises(ValueError, match="one shape"):
        st.leaderboard_ranks(accuracy, accuracy[:2])
