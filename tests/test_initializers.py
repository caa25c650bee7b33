"""Parameters before training: their distributions, and that drawing them compiles little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0_jax import sharding
from pi0_jax.models.initializers import (
    LARGEST_SHARED,
    Param,
    draw_table,
    fan_in_normal,
    normal,
    xavier_uniform,
)
from pi0_jax.models.pi0 import VARIANTS, Pi0

SHARED, OWN = (3, 100, 300), (600, 600)  # cut from a shared draw, and drawn in its own shape


@pytest.mark.parametrize("shape", [SHARED, OWN])
@pytest.mark.parametrize(
    ("distribution", "std", "largest", "kurtosis"),
    [
        (normal(0.3), 0.3, np.inf, 3.0),
        # Cut off at two standard deviations of the uncut distribution, which are 2.27 of its own.
        (fan_in_normal(100, gain=2.0), 0.2, 0.2 * 2 / 0.8796, 2.36),
        (xavier_uniform(100, 300), (2 / 400) ** 0.5, (6 / 400) ** 0.5, 1.8),
    ],
)
def test_distributions(shape, distribution, std, largest, kurtosis):
    values = np.asarray(draw_table(jax.random.key(0), Param(shape, distribution)), np.float64)
    assert values.shape == shape and np.isfinite(values).all()
    assert np.std(values) == pytest.approx(std, rel=0.01)
    assert abs(np.mean(values)) < 0.01 * std
    assert np.max(np.abs(values)) <= largest * (1 + 1e-4)
    assert np.mean(values**4) / np.std(values) ** 4 == pytest.approx(kurtosis, rel=0.03)


def test_constants():
    table = {"scale": Param((2, 3), 1.0), "bias": Param((3,), 0.0)}
    drawn = draw_table(jax.random.key(0), table)
    np.testing.assert_array_equal(drawn["scale"], np.ones((2, 3)))
    np.testing.assert_array_equal(drawn["bias"], np.zeros(3))
    assert {leaf.dtype for leaf in drawn.values()} == {jnp.dtype("float32")}


def test_no_number_is_used_twice():
    """No number is used twice in one table, nor in two tables of a model."""
    table = {"a": Param(SHARED, normal(1.0)), "b": Param((50,), normal(1.0))}
    table |= {"c": Param((500,), normal(1.0)), "d": Param(OWN, normal(1.0))}
    drawn = draw_table(jax.random.key(0), table)
    numbers = np.concatenate([np.ravel(leaf)[-50:] for leaf in drawn.values()])
    assert len(np.unique(numbers)) == 200
    params = Pi0(VARIANTS["pico"]).init(jax.random.key(0), method=Pi0.declare)["params"]
    assert np.all(params["state_proj"]["kernel"] != params["action_in_proj"]["kernel"])


def test_a_mesh_draws_the_same_numbers():
    assert np.prod(OWN) > LARGEST_SHARED > np.prod(SHARED)
    mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    table = {"own": Param(OWN, normal(1.0)), "shared": Param((30, 80), normal(1.0))}
    on_mesh = jax.jit(lambda key: draw_table(key, table), out_shardings=split)(jax.random.key(3))
    for name, values in draw_table(jax.random.key(3), table).items():
        np.testing.assert_allclose(on_mesh[name], values, rtol=1e-6)
        assert on_mesh[name].sharding == split


def test_initialising_compiles_few_programs():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _seconds, **_: compiled.append(event)
    )
    model = Pi0(VARIANTS["pico"])
    model.init(jax.random.key(0), method=Pi0.declare)
    assert len([event for event in compiled if "backend_compile" in event]) < 60
    compiled.clear()
    model.init(jax.random.key(1), method=Pi0.declare)
    assert [event for event in compiled if "backend_compile" in event] == []
