"""A batch that is run in parts gives the numbers of the batch, and every device keeps its rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pi0_jax import sharding
from pi0_jax.errors import InputError
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import Pi0
from pi0_jax.train.state import jit_init, jit_train_step, run_mesh
from pi0_jax.train.step import in_parts
from tests.step_data import CONFIG, DESCENT, OPTIONS, make_batch, reach_config

ROWS = 8


def step(accumulate: int, *, devices: int, fsdp: int, remat: str):
    mesh = sharding.make_mesh(data=-1, fsdp=fsdp, tensor=1, devices=jax.devices()[:devices])
    options = ComputeOptions(
        dtype=jnp.float32,
        remat=remat,
        constrain=sharding.constrain_on(mesh),
        gather=sharding.gather_on(mesh),
    )
    model = Pi0(CONFIG, options)
    state = jit_init(model, DESCENT, mesh)(jax.random.key(0))
    run = jit_train_step(
        model, DESCENT, OPTIONS._replace(augment=True, draws=2, accumulate=accumulate), state
    )
    return run(state, sharding.place_batch(make_batch(1, rows=ROWS), mesh), np.uint32(0))


@pytest.fixture(scope="module")
def whole():
    return step(1, devices=1, fsdp=1, remat="none")


@pytest.mark.parametrize(
    ("accumulate", "mesh"),
    [(4, dict(devices=1, fsdp=1, remat="none")), (2, dict(devices=4, fsdp=2, remat="full"))],
)
def test_parts_sum_to_the_batch(whole, accumulate, mesh):
    """The losses of rows, the gradient's norm, and all leaves of gradient and parameters agree.

    The parameters are those after one step of plain descent. A key bias has no gradient in exact
    arithmetic, only that of rounding.
    """
    state, metrics = step(accumulate, **mesh)
    expected_state, expected = whole
    for name in ("loss", "gradient_norm", "row_loss", "dataset_loss"):
        np.testing.assert_allclose(
            metrics[name], expected[name], rtol=1e-6 if accumulate == 4 else 1e-5, err_msg=name
        )
    assert len(set(np.asarray(expected["row_loss"]).tolist())) == ROWS
    gradient, expected_gradient = state.opt_state, expected_state.opt_state
    # A parameter that began at zero is nothing but its gradient's step.
    from_zero = jax.tree.map(
        lambda p, g: bool(np.max(np.abs(p)) < 2e-2 * np.max(np.abs(g))),
        expected_state.params,
        expected_gradient,
    )
    tolerances = jax.tree.map(lambda zero: 3e-6 if zero else 1e-6, from_zero)
    assert far_leaves(gradient, expected_gradient, jax.tree.map(lambda _: 3e-6, from_zero)) == []
    assert far_leaves(state.params, expected_state.params, tolerances) == []


def far_leaves(ours, theirs, tolerances) -> list[str]:
    """Returns the paths of leaves that differ by more than a share of their largest number."""
    leaves = zip(
        jax.tree_util.tree_leaves_with_path(ours),
        jax.tree.leaves(theirs),
        jax.tree.leaves(tolerances),
        strict=True,
    )
    far = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), b, tolerance in leaves
        if np.max(np.abs(np.asarray(a) - np.asarray(b))) > tolerance * np.max(np.abs(b))
    ]
    return [path for path in far if not path.endswith("key/bias")]


def test_every_device_cuts_its_own_rows():
    """The compiled cut has no collective: nothing travels."""
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=1, devices=jax.devices()[:4])
    rows = sharding.place_batch(np.arange(8, dtype=np.int32), mesh)
    cut = jax.jit(partial(in_parts, count=2, constrain=sharding.constrain_on(mesh)))
    parts = cut(rows)
    np.testing.assert_array_equal(parts, [[0, 2, 4, 6], [1, 3, 5, 7]])
    assert parts.sharding.spec == PartitionSpec(None, ("data", "fsdp"))
    text = cut.lower(rows).compile().as_text()
    assert not any(name in text for name in ("all-", "collective", "reduce-scatter"))


def test_parts_that_do_not_divide_the_batch_are_refused():
    mesh = dict(data=4, fsdp=2, tensor=1)
    run = partial(reach_config, batch_size=16, mesh=mesh)
    assert dict(run_mesh(run(accumulate=2), jax.devices()).shape) == mesh
    with pytest.raises(InputError, match=r"^config\.batch_size 16 .* data x fsdp = 3 x 8$"):
        run_mesh(run(accumulate=3), jax.devices())
    with pytest.raises(InputError, match=r"^config\.accumulate is 0; expected a positive number$"):
        run(accumulate=0)
