"""Makes a batch and options for steps of the pico model.

There is one camera, and all is small enough to state by hand.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0_jax.models.pi0 import VARIANTS
from pi0_jax.observation import ActionBatch, FrameId, RawBatch, TrainBatch
from pi0_jax.preprocess import Layout
from pi0_jax.train.config import RunConfig, from_mapping
from pi0_jax.train.optimizer import Optimizer, make_optimizer
from pi0_jax.train.step import StepOptions

CONFIG = VARIANTS["pico"]
B, H, D, L = 4, CONFIG.horizon, CONFIG.action_dim, CONFIG.max_tokens
SLOT = "base_0_rgb"
OPTIONS = StepOptions(
    layout=Layout((SLOT,), CONFIG.vision.image_size, D, L, "zscore", 0.0), draws=1, augment=False, real_dims_only=False,
    mask_past_end=False, ema_decay=0.9, datasets=3,
)  # fmt: skip

# Plain descent, whose state is the last gradient. It is linear in the gradient: Adam divides by its
# size, and so scales rounding noise of small gradients up.
DESCENT = Optimizer(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    moments=lambda gradient, norm, state: gradient,
    step=lambda state, params: jax.tree.map(lambda p, g: p - 1e-2 * g, params, state),
)


def reach_config(**changes: Any) -> RunConfig:
    """Returns the reach run's config with some fields changed."""
    from configs.reach import get_config

    return from_mapping(get_config().to_dict() | changes)


def adam(rate: float) -> Optimizer:
    """Returns the reach run's optimizer at a constant rate."""
    constant = dict(learning_rate=rate, end_learning_rate=rate, warmup_steps=0)
    return make_optimizer(reach_config(**constant))


def make_batch(number: int, *, action: float = 0.5, rows: int = B) -> TrainBatch:
    """Rows of datasets 0, 2, 2, 0 (and so on); in row 1 the first action is `action`."""
    actions = np.random.default_rng(number).normal(size=(rows, H, D)).astype(np.float32)
    actions[1, 0, 0] = action
    return TrainBatch(
        observation=RawBatch(
            images={SLOT: np.full((rows, 64, 64, 3), 10 * number, np.uint8)},
            image_sizes={SLOT: np.full((rows, 2), 64, np.int32)},
            image_masks={SLOT: np.ones(rows, bool)},
            tokens=np.full((rows, L), 7, np.int32),
            token_mask=np.ones((rows, L), bool),
            state=np.zeros((rows, D), np.float32),
        ),
        targets=ActionBatch(
            actions=actions, valid=np.ones((rows, H), bool), dims=np.ones((rows, D), bool)
        ),
        frames=FrameId(
            np.resize(np.int32([0, 2, 2, 0]), rows),
            np.zeros(rows, np.int32),
            np.zeros(rows, np.int32),
        ),
        rows=np.arange(rows, dtype=np.int32),
    )
