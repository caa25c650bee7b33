"""Statistics against plain NumPy, and the two ways to apply them."""

import json
import tracemalloc

import numpy as np
import pytest

from pi0_jax.errors import InputError
from pi0_jax.preprocess import normalize

MODES = ("zscore", "quantile")


@pytest.fixture
def rows() -> np.ndarray:
    return (
        np.random.default_rng(0)
        .normal([1.0, -20.0, 0.1], [2.0, 0.5, 3.0], (1000, 3))
        .astype(np.float32)
    )


@pytest.fixture
def statistics(rows) -> normalize.VectorStatistics:
    return normalize.accumulate([rows])


def assert_numpys(found: normalize.VectorStatistics, rows: np.ndarray) -> None:
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.std, exact.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.q01, np.percentile(exact, 1, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.q99, np.percentile(exact, 99, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.minimum, exact.min(axis=0))
    np.testing.assert_array_equal(found.maximum, exact.max(axis=0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_statistics_are_numpys_over_all_blocks(rows, dtype):
    rows = rows.astype(dtype)
    assert_numpys(normalize.accumulate([rows[:1], rows[1:1], rows[1:700], rows[700:]]), rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 101, 12_345])
def test_percentiles_are_exact_whatever_the_values(dtype, count):
    """With ties, both signs, and tiny beside huge numbers, no histogram of the range would do."""
    rng = np.random.default_rng(count)
    x = rng.choice([-1, 1], (count, 4)) * 10.0 ** rng.integers(-30, 30, (count, 4))
    x[:, 1] = rng.integers(-1, 2, count)
    x[:, 2] = -np.abs(x[:, 2])
    x[:, 3] = np.where(rng.random(count) < 0.985, 0.0, x[:, 3])
    x = x.astype(dtype)
    found = normalize.accumulate([x[: count // 2], x[count // 2 :]])
    np.testing.assert_allclose(
        [found.q01, found.q99], np.quantile(x.astype(np.float64), [0.01, 0.99], axis=0), rtol=1e-12
    )


def test_counted_values_count_as_often_as_they_say(rows):
    counts = np.random.default_rng(1).integers(0, 5, rows.shape)
    found = normalize.accumulate(
        [normalize.Counted(rows[:300], counts[:300]), normalize.Counted(rows[300:], counts[300:])]
    )
    for dimension in range(3):
        repeated = np.repeat(rows[:, dimension], counts[:, dimension])[:, None]
        assert_numpys(
            normalize.VectorStatistics(*(values[dimension : dimension + 1] for values in found)),
            repeated,
        )


def test_statistics_of_nothing_are_an_error():
    with pytest.raises(InputError, match="statistics of no rows"):
        normalize.accumulate([np.zeros((0, 3))])


def test_statistics_of_nan_are_an_error(rows):
    rows[500, 1] = np.nan
    with pytest.raises(InputError, match="statistics of dimension 1: expected finite numbers"):
        normalize.accumulate([rows[:100], rows[100:]])


def test_memory_does_not_grow_with_the_data():
    """It reads 40 MB of rows, one megabyte at a time."""

    class Blocks:
        def __iter__(self):
            rng = np.random.default_rng(0)
            return (rng.normal(size=(1 << 17, 2)).astype(np.float32) for _ in range(40))

    tracemalloc.start()
    found = normalize.accumulate(Blocks())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6
    np.testing.assert_allclose(
        [found.q01, found.mean, found.std, found.q99],
        np.array([[-2.326, 0, 1, 2.326]] * 2).T,
        atol=5e-3,
    )


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
    np.testing.assert_allclose(
        normalize.normalize(rows, statistics, "quantile"), expected, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(normalize.normalize(q99, statistics, "quantile"), 1, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_denormalize_inverts(rows, statistics, mode):
    back = normalize.denormalize(normalize.normalize(rows, statistics, mode), statistics, mode)
    np.testing.assert_allclose(back, rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_leading_axes_are_free(rows, statistics, mode):
    chunks = rows[:24].reshape(2, 3, 4, 3)
    np.testing.assert_array_equal(
        normalize.normalize(chunks, statistics, mode).reshape(24, 3),
        normalize.normalize(rows[:24], statistics, mode),
    )


def test_a_large_mean_costs_no_digits():
    x = 1e6 + 1e-3 * np.random.default_rng(0).normal(size=(100_000, 1))
    spread = x - 1e6  # exact
    statistics = normalize.accumulate(np.split(x, 50))
    assert statistics.mean[0] - 1e6 == pytest.approx(spread.mean(), abs=1e-9)
    assert statistics.std[0] == pytest.approx(spread.std(), rel=1e-6)
    assert statistics.q01[0] - 1e6 == pytest.approx(np.quantile(spread, 0.01), rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0.0, 0.1, -7e4])
def test_a_constant_dimension_is_centred_and_never_divided_by(mode, value):
    """A reading that is off by 0.5 becomes 0.5, and not 500,000.

    Its dimension never moved in training.
    """
    x = np.stack([np.full(100, value, np.float32), np.arange(100, dtype=np.float32)], axis=1)
    statistics = normalize.accumulate([x])
    assert normalize.constant(statistics, "zscore").tolist() == [True, False]
    found = normalize.normalize(x + np.array([0.5, 0.0]), statistics, mode)
    np.testing.assert_allclose(found[:, 0], 0.5, rtol=1e-5)
    np.testing.assert_allclose(
        normalize.denormalize(found, statistics, mode)[:, 0], value + 0.5, rtol=1e-6
    )


def test_a_dimension_whose_quantiles_coincide_is_not_divided_by_their_distance():
    """A gripper is open (1) but for a few frames, so its 1st and 99th percentiles are both 1."""
    x = np.ones((1000, 1))
    x[:5] = 0
    statistics = normalize.accumulate([x])
    assert statistics.q01 == statistics.q99 == 1
    assert not normalize.constant(statistics, "zscore")
    np.testing.assert_allclose(normalize.normalize(x, statistics, "quantile"), x - 1, atol=1e-5)
    np.testing.assert_allclose(
        normalize.normalize(x[:1], statistics, "zscore"), (0 - 0.995) / x.std(), rtol=1e-4
    )


def test_what_float32_does_not_resolve_is_no_spread():
    """Around 20,000 rad, numbers in float32 are 0.002 apart.

    A joint that stands still there seems to jump by that.
    """
    x = np.array([[2e4], [2e4 + 0.002]] * 50, np.float32)
    statistics = normalize.accumulate([x])
    assert statistics.std > 1e-4
    assert normalize.constant(statistics, "zscore")
    assert not normalize.constant(normalize.accumulate([x - np.float32(2e4)]), "zscore")


def test_nearly_equal_quantiles_beside_a_large_spread_do_not_make_values_explode():
    """A gripper that flutters by 0.0001 around open and was closed in 9 frames of 1000."""
    x = 1 - 1e-4 * np.random.default_rng(0).random((1000, 1))
    x[::112] = 0
    statistics = normalize.accumulate([x])
    assert statistics.q99 - statistics.q01 > 5e-5
    assert statistics.std > 0.09
    assert normalize.constant(statistics, "quantile")
    centre = (statistics.q01 + statistics.q99) / 2
    np.testing.assert_allclose(
        normalize.normalize(x, statistics, "quantile"), x - centre, atol=2e-6
    )


def test_clipping_bounds_model_units_on_the_way_in_only(rows, statistics):
    plain = normalize.normalize(rows, statistics, "quantile")
    clipped = normalize.clipped(normalize.normalize(rows, statistics, "quantile"), 1.0)
    assert np.abs(plain).max() > 1.2
    np.testing.assert_array_equal(clipped, np.minimum(np.maximum(plain, -1), 1))
    assert clipped.dtype == np.float32
    np.testing.assert_allclose(
        normalize.denormalize(clipped, statistics, "quantile").max(axis=0),
        statistics.q99,
        rtol=1e-5,
    )
    beyond = normalize.denormalize(np.full(3, 2.0), statistics, "quantile")
    np.testing.assert_allclose(
        beyond, statistics.q99 + (statistics.q99 - statistics.q01) / 2, rtol=1e-5
    )


def test_an_unknown_mode_is_refused(rows, statistics):
    with pytest.raises(InputError, match="'minmax' is unknown; expected zscore or quantile"):
        normalize.normalize(rows, statistics, "minmax")


def test_json_keeps_every_bit(statistics):
    both = normalize.Statistics(
        state=statistics,
        actions=normalize.accumulate([np.random.default_rng(1).normal(size=(50, 2))]),
    )
    record = json.loads(json.dumps(normalize.to_json(both)))
    assert (
        record["state"].keys()
        == record["actions"].keys()
        == {"mean", "std", "q01", "q99", "min", "max"}
    )
    back = normalize.from_json(record, "statistics.json")
    for part, vector in both._asdict().items():
        for field, values in vector._asdict().items():
            np.testing.assert_array_equal(back._asdict()[part]._asdict()[field], values)


def test_statistics_without_quantiles_serve_zscore_only(rows, statistics):
    poor = statistics._replace(q01=None, q99=None, minimum=None, maximum=None)
    np.testing.assert_array_equal(
        normalize.normalize(rows, poor, "zscore"), normalize.normalize(rows, statistics, "zscore")
    )
    with pytest.raises(InputError, match="quantile .*expected .*q01 and q99, found none"):
        normalize.normalize(rows, poor, "quantile")
    back = normalize.from_json(
        json.loads(json.dumps(normalize.to_json(normalize.Statistics(poor, poor)))), "file"
    )
    assert (back.state.q01, back.state.q99, back.state.minimum, back.state.maximum) == (
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"mean": None}, "statistics lack state.mean"),
        ({"mean": "0.5"}, 'state.mean: expected a list of numbers, found "0.5"'),
        ({"max": [1.0, float("nan"), 2.0]}, r"state.max\[1\]: expected a finite number, found nan"),
        ({"std": [1.0]}, "state.std: expected 3 numbers as in state.mean, found 1"),
        ({"std": [1.0, -0.5, 1.0]}, r"state.std\[1\]: expected at least zero \(0\), found -0.5"),
        (
            {"q01": [0.0, 0.0, 9.0], "q99": [1.0, 1.0, 8.0]},
            r"state.q99\[2\]: expected at least q01 \(9\), found 8",
        ),
        ({"mean": [10**400, 0, 0]}, "state.mean: expected numbers that float64 holds, found .*"),
        ({"q01": None}, "state: expected q01 and q99, or neither; found one of them"),
    ],
)
def test_damaged_json_is_refused(statistics, damage, message):
    record = normalize.to_json(normalize.Statistics(statistics, statistics))
    with pytest.raises(InputError, match=f"^run/3: {message}$"):
        normalize.from_json(record | {"state": record["state"] | damage}, "run/3")


def test_what_json_lacks_is_named(statistics):
    record = normalize.to_json(normalize.Statistics(statistics, statistics))
    del record["actions"]["q99"]
    with pytest.raises(InputError, match=r"^run/3: statistics lack actions\.q99$"):
        normalize.from_json(record, "run/3")
    with pytest.raises(InputError, match=r"^run/3: statistics lack actions\.mean, actions\.std, "):
        normalize.from_json({"state": record["state"]}, "run/3")
