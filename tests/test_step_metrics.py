"""What a step says of itself, and what it does when the loss or gradient is not finite: nothing, and then nothing at all."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pi0_jax.models.pi0 import VARIANTS, Pi0
from pi0_jax.observation import ActionBatch, FrameId, RawBatch, TrainBatch
from pi0_jax.preprocess import Layout
from pi0_jax.train.step import StepOptions, init_state, train_step

CONFIG = VARIANTS["pico"]
B, H, D, L = 4, CONFIG.horizon, CONFIG.action_dim, CONFIG.max_tokens
SLOT = "base_0_rgb"
OPTIONS = StepOptions(
    seed=0, layout=Layout((SLOT,), CONFIG.vision.image_size, D, L, "zscore", 0.0), draws=1, augment=False, real_dims_only=False,
    mask_past_end=False, ema_decay=0.9, datasets=3, skip_nonfinite=1,
)  # fmt: skip
MODEL, OPTIMIZER = Pi0(CONFIG, dtype=jnp.float32), optax.adam(1e-3)
step = jax.jit(partial(train_step, model=MODEL, optimizer=OPTIMIZER, options=OPTIONS))


def make_batch(number: int, *, action: float = 0.5) -> TrainBatch:
    """Rows of datasets 0, 2, 2, 0; in row 1 the first action is `action`."""
    actions = np.random.default_rng(number).normal(size=(B, H, D)).astype(np.float32)
    actions[1, 0, 0] = action
    return TrainBatch(
        observation=RawBatch(
            images={SLOT: np.full((B, 64, 64, 3), 10 * number, np.uint8)},
            image_sizes={SLOT: np.full((B, 2), 64, np.int32)},
            image_masks={SLOT: np.ones(B, bool)},
            tokens=np.full((B, L), 7, np.int32),
            token_mask=np.ones((B, L), bool),
            state=np.zeros((B, D), np.float32),
        ),
        targets=ActionBatch(actions=actions, valid=np.ones((B, H), bool), dims=np.ones((B, D), bool)),
        frames=FrameId(np.int32([0, 2, 2, 0]), np.zeros(B, np.int32), np.zeros(B, np.int32)),
        rows=np.arange(B, dtype=np.int32),
    )


@pytest.fixture(scope="module")
def fresh():
    return init_state(jax.random.key(0), MODEL, OPTIMIZER)


def leaves(state) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state))]


def same(state, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(leaves(state), leaves(other), strict=True))


def test_losses_of_rows_and_datasets(fresh):
    _, values = step(fresh, make_batch(0))
    rows = np.asarray(values["row_loss"])
    assert float(values["loss"]) == pytest.approx(rows.mean(), rel=1e-6)
    datasets = np.asarray(values["dataset_loss"])
    assert datasets[[0, 2]] == pytest.approx([rows[[0, 3]].mean(), rows[[1, 2]].mean()], rel=1e-6)
    assert np.isnan(datasets[1])
    assert float(values["gradient_norm"]) > 0 and float(values["parameter_norm"]) > 0 and not values["halted"]


def test_one_batch_too_many_that_is_not_finite_halts_the_state(fresh):
    """One is allowed: batch 1 is passed over. Batch 3 is one too many: the state stays that before it, whatever comes."""
    states, said = [fresh], []
    for number, action in enumerate([0.5, np.nan, 0.5, 3e38, 0.5, np.inf]):
        state, values = step(states[-1], make_batch(number, action=action))
        states.append(state)
        said.append((int(state.step), int(values["skipped"]), bool(values["halted"])))
    assert said == [(1, 0, False), (2, 1, False), (3, 1, False), (3, 2, True), (3, 2, True), (3, 2, True)]
    changed = [not same(before, after) for before, after in itertools.pairwise(states)]
    assert changed == [True, False, True, False, False, False]
    assert all(np.isfinite(leaf).all() for leaf in leaves(states[-1]))
    _, values = step(states[0], make_batch(1, action=np.nan))
    assert [row for row in range(B) if not np.isfinite(values["row_loss"][row])] == [1]
    assert np.isfinite(values["parameter_norm"])
