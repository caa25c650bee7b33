"""Running a stack of layers whose parameters carry the layer on axis 0: scanned or unrolled, rematerialised or not."""

from collections.abc import Callable
from typing import Any, Literal

import jax

Remat = Literal["none", "dots", "full"]
Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]


def unconstrained(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The default `constrain`: activations are placed wherever the compiler likes."""
    del axes
    return x


def rematerialise(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """none: keep every activation; dots: keep matrix products without a batch axis; full: keep only the layer's input."""
    if remat == "none":
        return layer
    policy = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}[remat]
    return jax.checkpoint(layer, policy=policy)


def run(layer: Callable[..., Any], carry: Any, stacked: Any, *, last: Callable[..., Any], scan: bool) -> tuple[Any, list[Any]]:
    """Applies `carry, output = layer(carry, stacked[i])` for all layers but the last, and `last` for the last one.

    Args:
        stacked: pytree of arrays [layers, ...]: the layers' parameters and per-layer inputs.
        scan: one jax.lax.scan (compiles once) or unrolled (no slicing of stacked weights at run time).

    Returns:
        The final carry and the outputs as a list of pytrees, each [layers in this piece, ...]: concatenated by the caller if wanted.
    """
    depth = jax.tree.leaves(stacked)[0].shape[0]
    outputs = []
    if scan and depth > 1:
        carry, output = jax.lax.scan(layer, carry, jax.tree.map(lambda w: w[:-1], stacked))
        outputs.append(output)
    else:
        for i in range(depth - 1):
            carry, output = layer(carry, jax.tree.map(lambda w, i=i: w[i], stacked))
            outputs.append(jax.tree.map(lambda y: y[None], output))
    carry, output = last(carry, jax.tree.map(lambda w: w[-1], stacked))
    outputs.append(jax.tree.map(lambda y: y[None], output))
    return carry, outputs
