"""A step tells its metrics, and does nothing when the loss or the gradient is not finite.

When that happens too often, it does nothing at all any more.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import Pi0
from pi0_jax.train.chips import peak_flops
from pi0_jax.train.step import init_state, train_step
from tests import step_data
from tests.step_data import CONFIG, B, adam, make_batch

OPTIONS = step_data.OPTIONS._replace(skip_nonfinite=1)
MODEL, OPTIMIZER = Pi0(CONFIG, ComputeOptions(dtype=jnp.float32)), adam(1e-3)
step = jax.jit(partial(train_step, model=MODEL, optimizer=OPTIMIZER, options=OPTIONS, seed=0))


@pytest.fixture(scope="module")
def fresh():
    return init_state(jax.random.key(0), MODEL, OPTIMIZER)


def leaves(state) -> list[np.ndarray]:
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state))
    ]


def same(state, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(leaves(state), leaves(other), strict=True))


def test_losses_of_rows_and_datasets(fresh):
    _, values = step(fresh, make_batch(0))
    rows = np.asarray(values["row_loss"])
    assert float(values["loss"]) == pytest.approx(rows.mean(), rel=1e-6)
    datasets = np.asarray(values["dataset_loss"])
    assert datasets[[0, 2]] == pytest.approx([rows[[0, 3]].mean(), rows[[1, 2]].mean()], rel=1e-6)
    assert np.isnan(datasets[1])
    assert (
        float(values["gradient_norm"]) > 0
        and float(values["parameter_norm"]) > 0
        and not values["halted"]
    )


def test_one_batch_too_many_that_is_not_finite_halts_the_state(fresh):
    """One bad batch is allowed: batch 1 is passed over, and batch 3 is one too many.

    The state stays that before it, whatever comes.
    """
    states, said = [fresh], []
    for number, action in enumerate([0.5, np.nan, 0.5, 3e38, 0.5, np.inf]):
        state, values = step(states[-1], make_batch(number, action=action))
        states.append(state)
        said.append((int(state.step), int(values["skipped"]), bool(values["halted"])))
    assert said == [
        (1, 0, False),
        (2, 1, False),
        (3, 1, False),
        (3, 2, True),
        (3, 2, True),
        (3, 2, True),
    ]
    changed = [not same(before, after) for before, after in itertools.pairwise(states)]
    assert changed == [True, False, True, False, False, False]
    assert all(np.isfinite(leaf).all() for leaf in leaves(states[-1]))
    _, values = step(states[0], make_batch(1, action=np.nan))
    assert [row for row in range(B) if not np.isfinite(values["row_loss"][row])] == [1]
    assert np.isfinite(values["parameter_norm"])


def test_the_peak_rate_is_that_of_the_form_of_a_gpu():
    names = (
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 PCIe",
        "NVIDIA H200",
        "NVIDIA H200 NVL",
        "TPU v5 lite",
        "cpu",
    )
    assert [peak_flops(name) for name in names] == [989e12, 756e12, 989e12, 835e12, 197e12, None]
