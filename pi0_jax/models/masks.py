"""Who attends to whom.

Tokens: P prefix tokens (images, then prompt), 1 state token, K draws of H actions. P=3 with its last token padding, H=2, K=2:

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

Three blocks, bidirectional inside, blind to later ones (paper, appendix B). With K draws of noise and time for one observation, the
state token and the prefix serve all of them; K = 1 is the published mask. Padding and absent cameras are never attended to.
"""

import jax
import jax.numpy as jnp
import numpy as np


def suffix_blocks(*, horizon: int, draws: int) -> np.ndarray:
    """bool[1 + K*H, 1 + K*H]: the suffix among itself."""
    draw = np.concatenate([[-1], np.repeat(np.arange(draws), horizon)])  # -1: the state
    same = draw[:, None] == draw[None, :]
    return same | (draw[None, :] == -1)  # everyone in the suffix sees the state


def prefix_mask(valid: jax.Array) -> jax.Array:
    """bool[B, P] -> bool[B, P, P]."""
    batch, tokens = valid.shape
    return jnp.broadcast_to(valid[:, None, :], (batch, tokens, tokens))


def suffix_mask(valid: jax.Array, *, horizon: int, draws: int) -> jax.Array:
    """bool[B, P] -> bool[B, 1 + K*H, P + 1 + K*H]: the suffix's queries over a cached prefix and the suffix itself."""
    blocks = suffix_blocks(horizon=horizon, draws=draws)
    batch, rows = valid.shape[0], blocks.shape[0]
    to_prefix = jnp.broadcast_to(valid[:, None, :], (batch, rows, valid.shape[1]))
    return jnp.concatenate([to_prefix, jnp.broadcast_to(blocks, (batch, rows, rows))], axis=-1)


def full_mask(valid: jax.Array, *, horizon: int, draws: int) -> jax.Array:
    """bool[B, P] -> bool[B, T, T] with T = P + 1 + K*H: the picture above."""
    batch, tokens = valid.shape
    blind = jnp.zeros((batch, tokens, 1 + draws * horizon), bool)
    top = jnp.concatenate([prefix_mask(valid), blind], axis=-1)
    return jnp.concatenate([top, suffix_mask(valid, horizon=horizon, draws=draws)], axis=1)


def prefix_positions(valid: jax.Array) -> jax.Array:
    """bool[B, P] -> int32[B, P]: padding and absent cameras take no position, so what follows does not depend on them."""
    return jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1


def suffix_positions(valid: jax.Array, *, horizon: int, draws: int) -> jax.Array:
    """bool[B, P] -> int32[B, 1 + K*H]: state first, then each draw's actions at the same positions."""
    offsets = np.concatenate([[0], np.tile(1 + np.arange(horizon), draws)]).astype(np.int32)
    return jnp.sum(valid.astype(jnp.int32), axis=1, keepdims=True) + offsets
