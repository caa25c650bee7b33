"""The attention masks say who attends to whom.

Axes: B batch, P prefix tokens (images, then prompt), S suffix tokens: Z of the state (1 in π0, 0 in
π0.5), then K draws of H actions, Z + K*H in all. Here P=3 with its last token padding, H=2, K=2:

                 prefix   state  draw 0  draw 1     (keys)
    prefix       1 1 0      0     0 0     0 0
                 1 1 0      0     0 0     0 0
                 1 1 0      0     0 0     0 0
    state        1 1 0      1     0 0     0 0
    draw 0       1 1 0      1     1 1     0 0
                 1 1 0      1     1 1     0 0
    draw 1       1 1 0      1     0 0     1 1
                 1 1 0      1     0 0     1 1
    (queries)

There are three blocks, bidirectional inside and blind to later ones (paper, appendix B). With K
draws of noise and time for one observation, the state token and the prefix serve all of them; K = 1
is the published mask. Nobody attends to padding or to absent cameras.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32


def suffix_blocks(*, horizon: int, draws: int, states: int = 1) -> Bool[np.ndarray, "S S"]:
    """Returns who attends to whom inside the suffix."""
    draw = np.repeat(np.arange(-states, draws), [1] * states + [horizon] * draws)  # -1: the state
    # Everyone in the suffix sees the state, and what is of its own draw.
    seen: np.ndarray = (draw[None, :] == -1) | (draw[:, None] == draw[None, :])
    return seen


def prefix_mask(valid: Bool[Array, "B P"]) -> Bool[Array, "B P P"]:
    """Returns the prefix's mask over itself: real tokens are seen by all."""
    batch, tokens = valid.shape
    return jnp.broadcast_to(valid[:, None, :], (batch, tokens, tokens))


def suffix_mask(
    valid: Bool[Array, "B P"], *, horizon: int, draws: int, states: int = 1
) -> Bool[Array, "B {states}+{draws}*{horizon} P+{states}+{draws}*{horizon}"]:
    """Returns the suffix's mask over a cached prefix and itself: the picture's lower rows.

    Args:
        valid: which tokens of the prefix are real.
        horizon: H.
        draws: K.
        states: Z.
    """
    blocks = suffix_blocks(horizon=horizon, draws=draws, states=states)
    batch, rows = valid.shape[0], blocks.shape[0]
    to_prefix = jnp.broadcast_to(valid[:, None, :], (batch, rows, valid.shape[1]))
    to_suffix = jnp.broadcast_to(blocks, (batch, rows, rows))
    return jnp.concatenate([to_prefix, to_suffix], axis=-1)


def full_mask(
    valid: Bool[Array, "B P"], *, horizon: int, draws: int, states: int = 1
) -> Bool[Array, "B P+{states}+{draws}*{horizon} P+{states}+{draws}*{horizon}"]:
    """Returns the whole picture; its arguments are those of `suffix_mask`."""
    batch, tokens = valid.shape
    blind = jnp.zeros((batch, tokens, states + draws * horizon), bool)
    top = jnp.concatenate([prefix_mask(valid), blind], axis=-1)  # [B, P, P + S]
    low = suffix_mask(valid, horizon=horizon, draws=draws, states=states)  # [B, S, P + S]
    return jnp.concatenate([top, low], axis=1)


def prefix_positions(valid: Bool[Array, "B P"]) -> Int32[Array, "B P"]:
    """Numbers the prefix's real tokens.

    Padding and absent cameras take no position, so what follows does not depend on them.
    """
    return jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1


def suffix_positions(
    valid: Bool[Array, "B P"], *, horizon: int, draws: int, states: int = 1
) -> Int32[Array, "B {states}+{draws}*{horizon}"]:
    """Numbers the suffix's tokens after the prefix's real ones.

    The state comes first, then the actions; those of every draw stand at the same positions.
    """
    actions = np.tile(states + np.arange(horizon), draws)
    offsets = np.concatenate([np.arange(states), actions]).astype(np.int32)
    return jnp.sum(valid.astype(jnp.int32), axis=1, keepdims=True) + offsets


def full_positions(
    valid: Bool[Array, "B P"], *, horizon: int, draws: int, states: int = 1
) -> Int32[Array, "B P+{states}+{draws}*{horizon}"]:
    """Numbers prefix and suffix; its arguments are those of `suffix_mask`."""
    suffix = suffix_positions(valid, horizon=horizon, draws=draws, states=states)
    return jnp.concatenate([prefix_positions(valid), suffix], axis=1)
