"""Both transformers share this: how they are computed, linear maps, and running a stack of layers.

The parameters of a stack carry the layer on axis 0.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from pi0_jax.models.lora import LoraRule

Remat = Literal["none", "dots", "full"]
Constrain = Callable[[Array, tuple[str | None, ...]], Array]

# (parameters, their path in the model, dtype of their products) -> the parameters as they are used
Gather = Callable[[Any, tuple[str, ...], Any], Any]


def unconstrained(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Leaves an activation wherever the compiler likes: the default `constrain`."""
    del axes
    return x


def ungathered(params: Any, path: tuple[str, ...], dtype: Any) -> Any:
    """Returns the parameters as they are, which every device holds whole: the default `gather`."""
    del path, dtype
    return params


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """Says how a model is computed; the parameter tree does not depend on it.

    Attributes:
        dtype: the dtype of matrix products and activations. Parameters are float32.
        scan_layers: whether layers run in one jax.lax.scan, which compiles one layer, or unrolled.
        remat: which activations are kept for the backward pass, see `rematerialise`.
        in_pieces: whether the language model computes attention and MLPs a piece at a time, see
            pieces.py; heads and hidden columns must not be split over devices.
        constrain: says on which devices an activation is; called with the names of its axes.
        gather: brings parameters together for use, from the devices that hold their parts.
        lora: the rules that scale LoRA's factors, where the model is applied to some (lora.py).
    """

    dtype: Any = jnp.bfloat16
    scan_layers: bool = True
    remat: Remat = "none"
    in_pieces: bool = False
    constrain: Constrain = unconstrained
    gather: Gather = ungathered
    lora: tuple[LoraRule, ...] = ()


def dense(
    x: Float[Array, "..."], w: Float[Array, "..."], contract: int = 1, dtype: Any = None
) -> Float[Array, "..."]:
    """Multiplies the last axes of activations by a weight.

    It is one matrix product over flattened axes. The einsum says the same, but its weight gradient
    contracts batch and tokens as two axes, for which XLA's CPU backend has no fast path (4 times
    slower).

    Args:
        x: [..., *inputs].
        w: [*inputs, *outputs]; it is cast to the dtype of x first.
        contract: how many axes the inputs have.
        dtype: in which the product is summed and returned; None takes the dtype of x.

    Returns:
        [..., *outputs].
    """
    inputs, outputs = math.prod(w.shape[:contract]), w.shape[contract:]
    flat = x.reshape(-1, inputs)  # [..., in]
    matrix = w.astype(x.dtype).reshape(inputs, -1)  # [in, out]
    y = jnp.matmul(flat, matrix, preferred_element_type=dtype)  # [..., out]
    return y.reshape(*x.shape[: x.ndim - contract], *outputs)


def rematerialise(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """Makes a layer keep less for the backward pass, which then computes it again.

    Args:
        layer: a function as `run` takes.
        remat: "none" keeps every activation, and every weight that was gathered; "dots" keeps the
            matrix products without a batch axis; "full" keeps only the layer's input.
    """
    if remat == "none":
        return layer
    policy = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}[remat]
    return jax.checkpoint(layer, policy=policy)


def run(
    layer: Callable[..., Any],
    carry: Any,
    stacked: Any,
    *,
    last: Callable[..., Any] | None = None,
    scan: bool,
    remat: Remat,
) -> tuple[Any, list[Any]]:
    """Runs a stack of layers, one after the other.

        carry, output = layer(carry, stacked[i])        for all layers but the last; `last` for that

    Args:
        layer: the function of all layers but the last.
        carry: what the first layer takes, such as activations.
        stacked: pytree of arrays [layers, ...]: the layers' parameters and per-layer inputs.
        last: the function of the last layer, which may compute less; None where it is like all
            others.
        scan: whether the layers run in one jax.lax.scan, which compiles one layer, or unrolled.
        remat: what each layer keeps for the backward pass, see `rematerialise`.

    Returns:
        The final carry, and the outputs as a list of pytrees, each [layers in this piece, ...]. The
        caller concatenates them where it wants to.
    """

    depth = jax.tree.leaves(stacked)[0].shape[0]
    alike = depth if last is None else depth - 1
    outputs = []
    if scan and alike > 0:
        # The scan is over the layers' numbers. Scanning the arrays themselves would first copy all
        # layers but the last. A layer's slice is cut out inside of what is rematerialised, and
        # again in the backward pass. A slice cut outside would be an input of the layer, and kept:
        # a second copy of all weights.
        numbered = rematerialise(lambda x, i: layer(x, _pick(stacked, i)), remat)
        carry, output = jax.lax.scan(numbered, carry, jnp.arange(alike))
        outputs.append(output)
    else:
        traced_once = jax.jit(rematerialise(layer, remat))  # and inlined wherever it is called
        for i in range(alike):
            carry, output = traced_once(carry, jax.tree.map(lambda w, i=i: w[i], stacked))
            outputs.append(jax.tree.map(lambda y: y[None], output))
    if last is None:
        return carry, outputs
    carry, output = rematerialise(lambda x: last(x, jax.tree.map(lambda w: w[-1], stacked)), remat)(
        carry
    )
    outputs.append(jax.tree.map(lambda y: y[None], output))
    return carry, outputs


def _pick(stacked: Any, i: Integer[Array, ""]) -> Any:
    """Takes layer i of every array."""
    return jax.tree.map(
        lambda w: jax.lax.dynamic_index_in_dim(w, i, keepdims=False, allow_negative_indices=False),
        stacked,
    )
