"""The training step is the same on one device and on meshes.

Draws and masks do as configured, and randomness is keyed by (seed, step, row).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0_jax import sharding
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import VARIANTS, Pi0
from pi0_jax.observation import ActionBatch, FrameId, RawBatch, TrainBatch
from pi0_jax.preprocess import Layout
from pi0_jax.train.state import jit_init, jit_train_step, step_options
from pi0_jax.train.step import StepOptions, row_keys, step_key
from tests.step_data import DESCENT, adam, reach_config

CONFIG = VARIANTS["pico"]
B, H, D, L = 8, CONFIG.horizon, CONFIG.action_dim, CONFIG.max_tokens
SLOTS = ("base_0_rgb", "left_wrist_0_rgb")
OPTIONS = StepOptions(
    layout=Layout(SLOTS, CONFIG.vision.image_size, D, L, "zscore", 0.0), draws=2, augment=False, real_dims_only=False,
    mask_past_end=False, ema_decay=0.9,
)  # fmt: skip


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    rng = np.random.default_rng(0)
    return TrainBatch(
        observation=RawBatch(
            images={slot: rng.integers(0, 256, (B, 64, 64, 3), np.uint8) for slot in SLOTS},
            image_sizes={slot: np.tile(np.int32([48, 64]), (B, 1)) for slot in SLOTS},
            image_masks={slot: np.arange(B) % 2 == i for i, slot in enumerate(SLOTS)},
            tokens=rng.integers(3, 500, (B, L), np.int32),
            token_mask=np.arange(L) < np.arange(3, 3 + B)[:, None],
            state=rng.normal(size=(B, D)).astype(np.float32),
        ),
        targets=ActionBatch(
            actions=rng.normal(size=(B, H, D)).astype(np.float32),
            valid=np.arange(H) < (1 + np.arange(B) % H)[:, None],
            dims=np.arange(D) < 4 + np.zeros((B, 1)),
        ),
        frames=FrameId(*np.zeros((3, B), np.int32)),
        rows=np.arange(B, dtype=np.int32),
    )


ADAM = adam(1e-3)


def run(
    batch: TrainBatch,
    *,
    devices=1,
    fsdp=1,
    tensor=1,
    steps=3,
    options: StepOptions = OPTIONS,
    optimizer=ADAM,
):
    mesh = sharding.make_mesh(data=-1, fsdp=fsdp, tensor=tensor, devices=jax.devices()[:devices])
    model = Pi0(CONFIG, ComputeOptions(dtype=jnp.float32, constrain=sharding.constrain_on(mesh)))
    state = jit_init(model, optimizer, mesh)(jax.random.key(0))
    step = jit_train_step(model, optimizer, options, state)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, sharding.place_batch(batch, mesh), np.uint32(0))
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def one_device(batch):
    return run(batch)


@pytest.fixture(scope="module")
def descended(batch):
    return run(batch, optimizer=DESCENT)


@pytest.mark.parametrize("mesh", [dict(), dict(fsdp=8), dict(fsdp=2, tensor=2)], ids=str)
def test_meshes_of_eight_devices_agree_with_one(batch, descended, mesh):
    losses, state = run(batch, devices=8, optimizer=DESCENT, **mesh)
    np.testing.assert_allclose(losses, descended[0], rtol=1e-5)
    moved = jax.tree.map(lambda now, average: np.any(now != average), state.params, state.ema)
    assert any(jax.tree.leaves(moved))  # else they would agree for nothing
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(state.params),
        jax.tree.leaves(descended[1].params),
        strict=True,
    ):
        assert np.max(np.abs(np.asarray(a) - np.asarray(b))) <= 1e-5 * np.max(np.abs(b)) + 1e-7, (
            path
        )


def test_parameters_are_spread_over_the_mesh(batch):
    _, state = run(batch, devices=8, fsdp=8, steps=1)
    table = state.params["PaliGemma"]["llm"]["embedder"]["input_embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {
        (512, CONFIG.gemma.experts[0].width // 8)
    }
    moments = state.opt_state[1][0].mu["PaliGemma"]["llm"]["embedder"]["input_embedding"]
    assert moments.sharding == table.sharding


def test_the_loss_falls_and_ema_follows(batch):
    losses, state = run(batch, steps=40)
    assert losses[-1] < 0.8 * losses[0]
    difference = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, state.ema)
    assert 0 < max(jax.tree.leaves(difference)) < 0.05


def test_randomness_is_keyed_by_seed_step_and_row():
    def keys(seed, step, rows):
        """Returns the bytes of both keys of each row."""
        pairs = row_keys(step_key(seed, jnp.int32(step)), jnp.array(rows))
        return [key.tobytes() for key in np.asarray(jax.random.key_data(pairs)).reshape(-1, 2)]

    assert keys(0, 5, [0, 1, 2, 3])[4:] == keys(0, 5, [2, 3])  # another process holds rows 2 and 3
    everything = keys(0, 5, range(4)) + keys(0, 6, range(4)) + keys(1, 5, range(4))
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("field", ["real_dims_only", "mask_past_end"])
def test_switches_choose_what_counts(batch, one_device, field):
    """What counts moves the loss, and what does not count does not move it."""
    options = OPTIONS._replace(**{field: True})

    def loss(mask, padding: float, options: StepOptions) -> float:
        actions = np.where(mask, batch.targets.actions, padding).astype(np.float32)
        other = batch._replace(targets=batch.targets._replace(actions=actions))
        return run(other, steps=1, options=options)[0][0]

    if field == "real_dims_only":
        dims = batch.targets.dims[:, None, :]  # padding is zero, as in the data
        assert loss(dims, 0.0, options) != pytest.approx(loss(dims, 0.0, OPTIONS))
        return
    # Actions past the end enter the model through x_t, so the loss itself changes. Its gradient by
    # their targets is gone instead.
    valid = batch.targets.valid[:, :, None]
    assert loss(True, 0.0, options) != pytest.approx(one_device[0][0])
    assert loss(valid, 3.0, options) < loss(valid, 3.0, OPTIONS)


def test_the_density_of_times_is_the_configs(batch, one_device):
    losses = {
        density: run(batch, steps=1, options=OPTIONS._replace(time_density=density))[0][0]
        for density in ("pi0", "uniform", "logit_normal")
    }
    assert losses["pi0"] == one_device[0][0] and len(set(losses.values())) == 3
    assert (
        step_options(reach_config(time_density="uniform"), OPTIONS.layout).time_density == "uniform"
    )


def test_augmentation_changes_the_loss_and_repeats(batch, one_device):
    augmented = OPTIONS._replace(augment=True)
    first, second = (run(batch, steps=1, options=augmented)[0] for _ in range(2))
    assert first == second != one_device[0][:1]
