"""A layer's largest arrays are made a piece at a time, where whole ones would go through memory.

The logits of all heads take 96 MB at full size (4 samples of 867 tokens, float32), and an MLP's
hidden array 107 MB (bfloat16). A TPU would write each to its HBM and read it again. Of a piece XLA
keeps everything in the chip's own memory, 128 MB on a v5e. The backward pass computes each piece
again, which it does anyway where layers are rematerialised in full: there only the logits are one
product more, 0.4% of a step's.

Axes are those of gemma.py, and P pieces.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Of F, in a piece. Of 4 samples it has 7 MB in each of the five arrays that a backward pass holds.
MLP_COLUMNS = 1024


def by_head(
    attend: Callable[[Array, Array, Array, Array], Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Computes `attend(q, k, v, mask)` one head of each group after the other."""
    batch, tokens, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    # The gradients of all heads are added in float32.
    k32, v32 = k.astype(jnp.float32), v.astype(jnp.float32)

    def one(q: Float[Array, "B T K H"]) -> Float[Array, "B T K H"]:
        return attend(q, k32.astype(k.dtype), v32.astype(v.dtype), mask)

    groups = q.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim)
    mixed = jax.lax.map(jax.checkpoint(one), jnp.moveaxis(groups, 3, 0))  # [G, B, T, K, H]
    return jnp.moveaxis(mixed, 0, 3).reshape(q.shape)


def by_columns(
    mlp: Callable[[Mapping[str, Array], Array], Array],
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
) -> Float[Array, "B T D"]:
    """Computes `mlp(params, x)` as a sum over pieces of the hidden width.

    A width that MLP_COLUMNS does not divide is one piece. The sum is in float32, and is returned so.
    """
    width, hidden = params["gating_einsum"].shape[1:]
    columns = hidden if hidden % MLP_COLUMNS else MLP_COLUMNS
    gating = params["gating_einsum"].reshape(2, width, -1, columns)
    pieces = {
        "gating_einsum": jnp.moveaxis(gating, 2, 0),  # [P, 2, D, F/P]
        "linear": params["linear"].reshape(-1, columns, width),  # [P, F/P, D]
    }
    x32 = x.astype(jnp.float32)  # so that the pieces' gradients are added in float32, too

    def add(
        total: Float[Array, "B T D"], piece: Mapping[str, Array]
    ) -> tuple[Float[Array, "B T D"], None]:
        return total + mlp(piece, x32.astype(x.dtype)).astype(jnp.float32), None

    total, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros_like(x32), pieces)
    return total
