"""What both transformers share: dense maps, and running a stack of layers whose parameters carry the layer on axis 0."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

Remat = Literal["none", "dots", "full"]
Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
# (parameters, their path in the model, dtype of their matrix products) -> the parameters as they are used
Gather = Callable[[Any, tuple[str, ...], Any], Any]


def unconstrained(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The default `constrain`: activations are placed wherever the compiler likes."""
    del axes
    return x


def ungathered(params: Any, path: tuple[str, ...], dtype: Any) -> Any:
    """The default `gather`: every device holds the parameters whole."""
    del path, dtype
    return params


def dense(x: jax.Array, w: jax.Array, contract: int = 1) -> jax.Array:
    """x[..., in] and w[in, out] -> [..., out] in x's dtype; in is `contract` axes, out the rest.

    One matrix product over flattened axes. The einsum says the same, but its weight gradient contracts batch and tokens as two axes,
    for which XLA's CPU backend has no fast path (4 times slower).
    """
    inputs, outputs = math.prod(w.shape[:contract]), w.shape[contract:]
    y = x.reshape(-1, inputs) @ w.astype(x.dtype).reshape(inputs, -1)
    return y.reshape(*x.shape[: x.ndim - contract], *outputs)


def rematerialise(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """none: keep every activation, and every weight that was gathered; dots: keep matrix products without a batch axis; full: keep only
    the layer's input."""
    if remat == "none":
        return layer
    policy = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}[remat]
    return jax.checkpoint(layer, policy=policy)


def run(
    layer: Callable[..., Any], carry: Any, stacked: Any, *, last: Callable[..., Any], scan: bool
) -> tuple[Any, list[Any]]:
    """Applies `carry, output = layer(carry, stacked[i])` for all layers but the last, and `last` for the last one.

    Args:
        stacked: pytree of arrays [layers, ...]: the layers' parameters and per-layer inputs.
        scan: one jax.lax.scan (compiles once) or unrolled.

    Returns:
        The final carry and the outputs as a list of pytrees, each [layers in this piece, ...]: concatenated by the caller if wanted.
    """
    depth = jax.tree.leaves(stacked)[0].shape[0]
    outputs = []
    if scan and depth > 1:
        # Over the layers' numbers: scanning the arrays themselves would first copy all layers but the last.
        carry, output = jax.lax.scan(
            lambda x, i: layer(x, _pick(stacked, i)), carry, jnp.arange(depth - 1)
        )
        outputs.append(output)
    else:
        traced_once = jax.jit(layer)  # and inlined wherever it is called
        for i in range(depth - 1):
            carry, output = traced_once(carry, jax.tree.map(lambda w, i=i: w[i], stacked))
            outputs.append(jax.tree.map(lambda y: y[None], output))
    carry, output = last(carry, jax.tree.map(lambda w: w[-1], stacked))
    outputs.append(jax.tree.map(lambda y: y[None], output))
    return carry, outputs


def _pick(stacked: Any, i: jax.Array) -> Any:
    return jax.tree.map(
        lambda w: jax.lax.dynamic_index_in_dim(w, i, keepdims=False, allow_negative_indices=False),
        stacked,
    )
