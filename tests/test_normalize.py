"""Statistics against plain NumPy, and the two ways to apply them."""

import json

import numpy as np
import pytest

from pi0_jax import normalize
from pi0_jax.errors import InputError

MODES = ("zscore", "quantile")


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal([1.0, -20.0, 0.1], [2.0, 0.5, 3.0], (1000, 3)).astype(np.float32)


@pytest.fixture
def statistics(rows) -> normalize.VectorStatistics:
    return normalize.accumulate([rows])


def test_statistics_are_numpys_over_all_blocks(rows):
    found = normalize.accumulate(iter([rows[:1], rows[1:700], rows[700:]]))
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, exact.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.q01, np.percentile(exact, 1, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.q99, np.percentile(exact, 99, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.minimum, exact.min(axis=0))
    np.testing.assert_array_equal(found.maximum, exact.max(axis=0))


def test_statistics_of_nothing_are_an_error():
    with pytest.raises(InputError, match="statistics of no rows"):
        normalize.accumulate([np.zeros((0, 3))])


def test_zscore_is_the_published_formula(rows, statistics):
    x = rows.astype(np.float64)
    expected = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    found = normalize.normalize(rows, statistics, "zscore")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_quantiles_go_to_minus_one_and_one(rows, statistics):
    x = rows.astype(np.float64)
    q01, q99 = np.quantile(x, 0.01, axis=0), np.quantile(x, 0.99, axis=0)
    expected = 2 * (x - q01) / (q99 - q01 + 1e-6) - 1
    np.testing.assert_allclose(normalize.normalize(rows, statistics, "quantile"), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(normalize.normalize(q99, statistics, "quantile"), 1, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_denormalize_inverts(rows, statistics, mode):
    back = normalize.denormalize(normalize.normalize(rows, statistics, mode), statistics, mode)
    np.testing.assert_allclose(back, rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_leading_axes_are_free(rows, statistics, mode):
    chunks = rows[:24].reshape(2, 3, 4, 3)
    np.testing.assert_array_equal(
        normalize.normalize(chunks, statistics, mode).reshape(24, 3), normalize.normalize(rows[:24], statistics, mode)
    )


def test_a_large_mean_costs_no_digits():
    spread = np.random.default_rng(0).normal(size=(10_000, 1))
    x = 1e6 + 1e-3 * spread
    statistics = normalize.accumulate([x])
    assert statistics.std[0] == pytest.approx(1e-3 * spread.std(), rel=1e-5)
    expected = (spread - spread.mean()) / spread.std()
    np.testing.assert_allclose(normalize.normalize(x, statistics, "zscore"), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0.0, 0.1, -7e4])
def test_a_constant_dimension_is_centred_and_never_divided_by(mode, value):
    """A reading that is off by 0.5 in a dimension that never moved in training becomes 0.5, not 500,000."""
    x = np.stack([np.full(100, value, np.float32), np.arange(100, dtype=np.float32)], axis=1)
    statistics = normalize.accumulate([x])
    assert normalize.constant(statistics, "zscore").tolist() == [True, False]
    found = normalize.normalize(x + np.array([0.5, 0.0]), statistics, mode)
    np.testing.assert_allclose(found[:, 0], 0.5, rtol=1e-5)
    np.testing.assert_allclose(normalize.denormalize(found, statistics, mode)[:, 0], value + 0.5, rtol=1e-6)


def test_a_dimension_whose_quantiles_coincide_is_not_divided_by_their_distance():
    """A gripper that is open (1) but for a few frames: 1st and 99th percentile are both 1."""
    x = np.ones((1000, 1))
    x[:5] = 0
    statistics = normalize.accumulate([x])
    assert statistics.q01 == statistics.q99 == 1
    assert not normalize.constant(statistics, "zscore")
    np.testing.assert_allclose(normalize.normalize(x, statistics, "quantile"), x - 1, atol=1e-5)
    np.testing.assert_allclose(normalize.normalize(x[:1], statistics, "zscore"), (0 - 0.995) / x.std(), rtol=1e-4)


def test_an_unknown_mode_is_refused(rows, statistics):
    with pytest.raises(InputError, match="normalisation 'minmax' is unknown; expected zscore or quantile"):
        normalize.normalize(rows, statistics, "minmax")


def test_json_keeps_every_bit(statistics):
    both = normalize.Statistics(state=statistics, actions=normalize.accumulate([np.random.default_rng(1).normal(size=(50, 2))]))
    record = json.loads(json.dumps(normalize.to_json(both)))
    assert record["state"].keys() == record["actions"].keys() == {"mean", "std", "q01", "q99", "min", "max"}
    back = normalize.from_json(record, "statistics.json")
    for part, vector in both._asdict().items():
        for field, values in vector._asdict().items():
            np.testing.assert_array_equal(back._asdict()[part]._asdict()[field], values)


def test_what_json_lacks_is_named(statistics):
    record = normalize.to_json(normalize.Statistics(statistics, statistics))
    del record["actions"]["q99"]
    with pytest.raises(InputError, match=r"^run/3: statistics lack actions\.q99$"):
        normalize.from_json(record, "run/3")
    with pytest.raises(InputError, match=r"^run/3: statistics lack actions\.mean, actions\.std, "):
        normalize.from_json({"state": record["state"]}, "run/3")
