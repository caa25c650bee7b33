"""Sampling as a policy runs it: the numbers of models.pi0.sample_actions, with nothing computed twice.

    images, prompt   once   -> keys and values of the prefix
    times            once   -> their part of every action token, for all Euler steps at once
    state            in the first Euler step -> its keys and values, which later steps read like the prefix's
    actions          every step

The model is the same: its own modules run here, on tokens that it has not run yet. Weights are cast once to the compute dtype. Where
layers are unrolled, they are stored as they are multiplied: an array per layer, input axis first. `unpack` states the published tree in
terms of them inside the compiled function, where the compiler cancels it against the model's own slices and transposes.

Axes: B batch, H horizon, D action dimension, N Euler steps, P prefix tokens, W width of the action expert, L layers.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from pi0_jax import flow
from pi0_jax.models import masks
from pi0_jax.models.gemma import KVCache
from pi0_jax.models.pi0 import Pi0, time_code
from pi0_jax.observation import Observation

Packed = Mapping[
    str, jax.Array
]  # published path, of an unrolled layer's weight with "/<layer>" behind it -> array

# First match wins, over published paths.
_STACKED = r"/(encoderblock|layers)/"  # one layer per entry of axis 0
_INPUT_FIRST = (
    (r"/q_einsum", (1, 0, 2)),
    (r"/kv_einsum", (2, 0, 1, 3)),
)  # axes of one layer's weight
_FLOAT32 = r"norm|LayerNorm|input_embedding|action_out_proj"  # what the model itself computes with in float32


def pack(params: Any, dtype: Any, *, scan_layers: bool) -> dict[str, Any]:
    """The published tree -> weights as a model with or without `scan_layers` takes them. Of NumPy arrays it takes views where it can;
    jittable too."""
    packed = {}
    for path, weight in flax.traverse_util.flatten_dict(params, sep="/").items():
        weight = weight.astype(storage_dtype(path, dtype), copy=False)
        if scan_layers or not re.search(_STACKED, path):
            packed[path] = weight
            continue
        for layer in range(weight.shape[0]):
            packed[f"{path}/{layer}"] = weight[layer].transpose(_axes(path, weight.ndim - 1))
    return packed


def unpack(packed: Packed) -> dict[str, Any]:
    """`pack`ed weights -> the published tree (in `pack`'s dtypes)."""
    flat: dict[str, jax.Array] = {}
    stacks: dict[str, dict[int, jax.Array]] = {}
    for name, weight in packed.items():
        path, _, layer = name.rpartition("/")
        if layer.isdigit():
            stacks.setdefault(path, {})[int(layer)] = jnp.transpose(
                weight, np.argsort(_axes(path, weight.ndim))
            )
        else:
            flat[name] = weight
    flat |= {
        path: jnp.stack([stack[layer] for layer in range(len(stack))])
        for path, stack in stacks.items()
    }
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def storage_dtype(path: str, dtype: Any) -> Any:
    """In which dtype the weight of a published path is kept, so that computing in `dtype` gives the numbers of float32 weights."""
    return jnp.dtype(jnp.float32 if re.search(_FLOAT32, path) else dtype)


def _axes(path: str, ndim: int) -> Sequence[int]:
    return next((axes for pattern, axes in _INPUT_FIRST if re.search(pattern, path)), range(ndim))


def sample(
    packed: Packed,
    observation: Observation,
    noise: jax.Array,
    *,
    model: Pi0,
    num_steps: int,
    dim_mask: jax.Array | None = None,
    unroll_steps: bool = False,
) -> jax.Array:
    """Actions float32[B, H, D] in model units; see models.pi0.sample_actions, to which they are equal up to rounding.

    Args:
        packed: `pack`ed weights. model: with their scan_layers, or all layers' weights are copied.
        unroll_steps: compile each Euler step by itself instead of a loop: takes longer to compile.
    """
    tokens, valid = encode(packed, observation, model=model)
    cache = prefill(packed, tokens, valid, model=model)
    return integrate(
        packed,
        cache,
        valid,
        observation.state,
        noise,
        model=model,
        num_steps=num_steps,
        dim_mask=dim_mask,
        unroll_steps=unroll_steps,
    )


def encode(packed: Packed, observation: Observation, *, model: Pi0) -> tuple[jax.Array, jax.Array]:
    """The prefix's tokens, of images and prompt, dtype[B, P, width of expert 0], and which of them are real, bool[B, P]."""
    return _apply(model, packed, "embed_prefix", observation)


def prefill(packed: Packed, tokens: jax.Array, valid: jax.Array, *, model: Pi0) -> KVCache:
    """The keys and values of `encode`'s tokens in every layer."""
    return _apply(model, packed, _prefill, tokens, valid)


def integrate(
    packed: Packed,
    cache: KVCache,
    valid: jax.Array,
    state: jax.Array,
    noise: jax.Array,
    *,
    model: Pi0,
    num_steps: int,
    dim_mask: jax.Array | None = None,
    unroll_steps: bool = False,
) -> jax.Array:
    """The Euler steps of `sample`, from the prefix's cache, state float32[B, D] and noise float32[B, H, D]."""

    def masked(x: jax.Array) -> jax.Array:
        return x if dim_mask is None else flow.mask_dims(x, dim_mask)

    times = euler_times(num_steps)
    time_parts = _apply(model, packed, _time_parts, jnp.asarray(times))  # [N, W]
    x = masked(noise.astype(jnp.float32))
    v, state_cache = _apply(model, packed, _first_velocity, cache, valid, state, x, time_parts[0])
    cache = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=2), cache, state_cache)
    dt = np.float32(-1.0 / num_steps)
    x = x + dt * masked(v)

    def euler(x: jax.Array, time_part: jax.Array) -> tuple[jax.Array, None]:
        return x + dt * masked(
            _apply(model, packed, _next_velocity, cache, valid, x, time_part)
        ), None

    x, _ = jax.lax.scan(
        euler, x, time_parts[1:], unroll=max(num_steps - 1, 1) if unroll_steps else 1
    )
    return x


def _apply(model: Pi0, packed: Packed, method: Any, *args: Any) -> Any:
    # Unpacked at each use: a stack that came into the Euler loop from outside would really be made.
    return model.apply({"params": unpack(packed)}, *args, method=method)


def euler_times(num_steps: int) -> np.ndarray:
    """float32[N]: flow.integrate's times, summed in float32 as there."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    dt = np.float32(-1.0 / num_steps)
    return np.cumsum(np.array([1.0, *[dt] * (num_steps - 1)], np.float32), dtype=np.float32)


# What follows runs inside `model.apply`. An action token is W3 swish(W2 [W1 a, code(t)]) (Pi0.embed_suffix); W2's columns for the time
# make a vector per Euler step that does not depend on the actions.


def _prefill(model: Pi0, tokens: jax.Array, valid: jax.Array) -> KVCache:
    _, cache = model.PaliGemma.llm(
        (tokens, None), masks.prefix_positions(valid), masks.prefix_mask(valid), read=(False, False)
    )
    return cache


def _time_parts(model: Pi0, times: jax.Array) -> jax.Array:
    """float32[N] -> float32[N, W]: W2's product with the time's code, and its bias."""
    mlp = model.projections()["action_time_mlp_in"]
    width = mlp["bias"].shape[0]
    code = time_code(times, width).astype(model.dtype)
    return (
        jnp.matmul(
            code, mlp["kernel"][width:].astype(model.dtype), preferred_element_type=jnp.float32
        )
        + mlp["bias"]
    )


def _action_tokens(model: Pi0, x: jax.Array, time_part: jax.Array) -> jax.Array:
    """Noisy actions float32[B, H, D] at the time of float32[W] -> dtype[B, H, W]."""
    actions = model.project("action_in_proj", x, model.dtype)
    kernel = model.projections()["action_time_mlp_in"]["kernel"][: time_part.shape[0]].astype(
        model.dtype
    )
    hidden = jnp.matmul(actions, kernel, preferred_element_type=jnp.float32) + time_part
    return model.project(
        "action_time_mlp_out", jax.nn.swish(hidden.astype(model.dtype)), model.dtype
    )


def _first_velocity(
    model: Pi0,
    cache: KVCache,
    valid: jax.Array,
    state: jax.Array,
    x: jax.Array,
    time_part: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """Velocity float32[B, H, D], and the state token's keys and values [L, B, 1, K, H]: it sees neither actions nor time."""
    suffix = jnp.concatenate(
        [
            model.project("state_proj", state, model.dtype)[:, None, :],
            _action_tokens(model, x, time_part),
        ],
        axis=1,
    )
    layout = dict(horizon=x.shape[1], draws=1)
    positions, mask = masks.suffix_positions(valid, **layout), masks.suffix_mask(valid, **layout)
    (_, out), new = model.PaliGemma.llm(
        (None, suffix), positions, mask, cache=cache, read=(False, True)
    )
    return _decode(model, out[:, 1:]), jax.tree.map(lambda kv: kv[:, :, :1], new)


def _next_velocity(
    model: Pi0, cache: KVCache, valid: jax.Array, x: jax.Array, time_part: jax.Array
) -> jax.Array:
    """Velocity float32[B, H, D] from a cache of prefix and state: the suffix's rows and columns without the state's own."""
    layout = dict(horizon=x.shape[1], draws=1)
    positions, mask = (
        masks.suffix_positions(valid, **layout)[:, 1:],
        masks.suffix_mask(valid, **layout)[:, 1:],
    )
    (_, out), _ = model.PaliGemma.llm(
        (None, _action_tokens(model, x, time_part)),
        positions,
        mask,
        cache=cache,
        read=(False, True),
    )
    return _decode(model, out)


def _decode(model: Pi0, out: jax.Array) -> jax.Array:
    return model.project("action_out_proj", out, jnp.float32)
