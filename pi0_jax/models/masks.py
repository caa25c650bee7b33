"""Who attends to whom.

Tokens: P prefix tokens (images, then prompt), 1 state token, K draws of H actions. Here P=3 with
its last token padding, H=2, K=2:

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

import jax
import jax.numpy as jnp
import numpy as np


def suffix_blocks(*, horizon: int, draws: int) -> np.ndarray:
    """Returns who attends to whom inside the suffix, bool[1 + K*H, 1 + K*H]."""
    draw = np.concatenate([[-1], np.repeat(np.arange(draws), horizon)])  # -1: the state
    same = draw[:, None] == draw[None, :]
    return same | (draw[None, :] == -1)  # everyone in the suffix sees the state


def prefix_mask(valid: jax.Array) -> jax.Array:
    """Returns the prefix's mask over itself: bool[B, P] -> bool[B, P, P]."""
    batch, tokens = valid.shape
    return jnp.broadcast_to(valid[:, None, :], (batch, tokens, tokens))


def suffix_mask(valid: jax.Array, *, horizon: int, draws: int) -> jax.Array:
    """Returns the suffix's mask over a cached prefix and itself: the picture's lower rows.

    Args:
        valid: bool[B, P], which tokens of the prefix are real.
        horizon: H.
        draws: K.

    Returns:
        bool[B, 1 + K*H, P + 1 + K*H].
    """
    blocks = suffix_blocks(horizon=horizon, draws=draws)
    batch, rows = valid.shape[0], blocks.shape[0]
    to_prefix = jnp.broadcast_to(valid[:, None, :], (batch, rows, valid.shape[1]))
    to_suffix = jnp.broadcast_to(blocks, (batch, rows, rows))
    return jnp.concatenate([to_prefix, to_suffix], axis=-1)


def full_mask(valid: jax.Array, *, horizon: int, draws: int) -> jax.Array:
    """Returns the whole picture: bool[B, P] -> bool[B, T, T] with T = P + 1 + K*H."""
    batch, tokens = valid.shape
    blind = jnp.zeros((batch, tokens, 1 + draws * horizon), bool)
    top = jnp.concatenate([prefix_mask(valid), blind], axis=-1)  # [B, P, T]
    return jnp.concatenate([top, suffix_mask(valid, horizon=horizon, draws=draws)], axis=1)


def prefix_positions(valid: jax.Array) -> jax.Array:
    """Numbers the prefix's real tokens: bool[B, P] -> int32[B, P].

    Padding and absent cameras take no position, so what follows does not depend on them.
    """
    return jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1


def suffix_positions(valid: jax.Array, *, horizon: int, draws: int) -> jax.Array:
    """Numbers the suffix's tokens after the prefix's real ones: bool[B, P] -> int32[B, 1 + K*H].

    The state comes first, then the actions; those of every draw stand at the same positions.
    """
    offsets = np.concatenate([[0], np.tile(1 + np.arange(horizon), draws)]).astype(np.int32)
    return jnp.sum(valid.astype(jnp.int32), axis=1, keepdims=True) + offsets


def full_positions(valid: jax.Array, *, horizon: int, draws: int) -> jax.Array:
    """Numbers prefix and suffix: bool[B, P] -> int32[B, P + 1 + K*H]."""
    suffix = suffix_positions(valid, horizon=horizon, draws=draws)
    return jnp.concatenate([prefix_positions(valid), suffix], axis=1)
