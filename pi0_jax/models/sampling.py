"""Sampling makes an action chunk from noise; policies, validation, verification and exports run it.

    images, prompt       once         -> keys and values of the prefix
    state, x_t, t        each step    -> velocity, which flow.integrate follows from the noise

The weights are the published tree, or packed by `pack` as a policy keeps them: cast once to the
dtype that they are multiplied in and, where layers are unrolled, an array per layer with the input
axis first. `unpack` states the published tree in terms of packed weights inside the compiled
function, where the compiler cancels it against the model's own slices and transposes.

Axes: B batch, K draws (of a policy one), H horizon, D action dimension, P prefix tokens.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from pi0_jax import flow
from pi0_jax.models import lora, paths
from pi0_jax.models.gemma import KVCache
from pi0_jax.models.pi0 import Pi0
from pi0_jax.observation import Observation

# Published path -> array. The path of an unrolled layer's weight has "/<layer>" behind it.
Packed = Mapping[str, Array]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def sample(
    params: Any,
    observation: Observation,
    noise: Float32[Array, "B H D"],
    *,
    model: Pi0,
    num_steps: int,
    dim_mask: Bool[Array, "B D"] | None = None,
    factors: Mapping[str, Any] | None = None,
    unroll_steps: bool = False,
) -> Float32[Array, "B H D"]:
    """Samples action chunks: runs the prefix once, then follows the model's velocity.

    Args:
        params: the published tree, or `pack`ed weights.
        observation: see observation.py. A camera slot that it lacks costs nothing.
        noise: standard normal.
        model: with the scan_layers that the weights were packed for, or all of them are copied.
        num_steps: Euler steps, static, at least 1.
        dim_mask: for models trained on real dimensions only, see flow.integrate.
        factors: LoRA's, where they are not merged into the weights.
        unroll_steps: whether each Euler step is compiled by itself instead of a loop, which takes
            longer to compile.

    Returns:
        The actions, in model units.
    """
    prefix, valid = apply(model, params, factors, Pi0.embed_prefix, observation)
    cache = apply(model, params, factors, Pi0.prefill, prefix, valid)
    velocity = cached_velocity(
        params, cache, valid, observation.state, model=model, factors=factors
    )
    return flow.integrate(velocity, noise, num_steps, dim_mask=dim_mask, unroll=unroll_steps)


def cached_velocity(
    params: Any,
    cache: KVCache,
    valid: Bool[Array, "B P"],
    state: Float32[Array, "B D"],
    *,
    model: Pi0,
    factors: Mapping[str, Any] | None = None,
) -> flow.Velocity:
    """Returns the velocity function of a prefix that was run.

    Args:
        params: the published tree, or `pack`ed weights.
        cache: the prefix's keys and values, of Pi0.prefill.
        valid: which of its tokens are real.
        state: normalised, zero-padded.
        model: see `sample`.
        factors: see `sample`.
    """

    def velocity(
        x_t: Float32[Array, "B K H D"], t: Float32[Array, "B K"]
    ) -> Float32[Array, "B K H D"]:
        return apply(model, params, factors, Pi0.cached_velocity, cache, valid, state, x_t, t)

    return velocity


def apply(
    model: Pi0,
    params: Any,
    factors: Mapping[str, Any] | None,
    method: Callable[Concatenate[Pi0, Arguments], Result],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Result:
    """Calls a method of the model with the published tree, or with `pack`ed weights.

    Args:
        model: which model.
        params: the published tree, or `pack`ed weights.
        factors: LoRA's, or None where they are merged into the weights.
        method: such as Pi0.velocity.
        args, kwargs: of the method.
    """
    # Unpacked at each use: a stack that came into the Euler loop from outside would really be made.
    variables = lora.variables(unpack(params), factors)
    result: Result = nn.apply(method, model)(variables, *args, **kwargs)
    return result


# Patterns over published paths; the first that matches wins.
_STACKED = r"/(encoderblock|layers)/"  # one layer per entry of axis 0
# The order in which the axes of one layer's weight are packed.
_INPUT_FIRST = (
    (r"/q_einsum", (1, 0, 2)),
    (r"/kv_einsum", (2, 0, 1, 3)),
)
# The model itself computes with these weights in float32.
_FLOAT32 = r"norm(_\d+)?/(scale|bias)$|LayerNorm|action_out_proj"


def pack(params: Any, dtype: Any, *, scan_layers: bool) -> dict[str, Any]:
    """Packs the published tree as a model with or without `scan_layers` takes it.

    It may be jitted. Of NumPy arrays it takes views where it can.
    """
    packed = {}
    for path, weight in paths.flatten(params).items():
        weight = weight.astype(storage_dtype(path, dtype), copy=False)
        if scan_layers or not re.search(_STACKED, path):
            packed[path] = weight
            continue
        for layer in range(weight.shape[0]):
            packed[f"{path}/{layer}"] = weight[layer].transpose(_axes(path, weight.ndim - 1))
    return packed


def unpack(weights: Any) -> dict[str, Any]:
    """Returns the published tree of `pack`ed weights, in their dtypes; a published one as it is."""
    flat: dict[str, Array] = {}
    stacks: dict[str, dict[int, Array]] = {}
    for name, weight in paths.flatten(weights).items():
        path, _, layer = name.rpartition("/")
        # An unrolled layer's weight: its axes go back to the published order.
        if layer.isdigit():
            axes = np.argsort(_axes(path, weight.ndim)).tolist()
            stacks.setdefault(path, {})[int(layer)] = jnp.transpose(weight, axes)
        else:
            flat[name] = weight
    for path, stack in stacks.items():
        flat[path] = jnp.stack([stack[layer] for layer in range(len(stack))])
    return paths.unflatten(flat)


def storage_dtype(path: str, dtype: Any) -> Any:
    """Returns the dtype in which a packed weight is kept.

    Computing in `dtype` with it gives the numbers of float32 weights. Only a token's embedding is
    rounded twice, as a weight and as an activation, which moves actions less than the products do.

    Args:
        path: the weight's published path.
        dtype: the dtype that the model computes in.
    """
    return jnp.dtype(jnp.float32 if re.search(_FLOAT32, path) else dtype)


def _axes(path: str, ndim: int) -> Sequence[int]:
    """Returns the order in which a packed layer's weight has the axes of the published one."""
    return next((axes for pattern, axes in _INPUT_FIRST if re.search(pattern, path)), range(ndim))
