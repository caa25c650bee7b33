"""Gemma with N experts: each token stream has its own weights, and all streams meet in shared self-attention.

Axes: B batch, T query tokens, S key tokens, D width of one expert, F its MLP width, N heads, K key-value heads,
G = N/K heads per key-value head, H head dimension, V vocabulary, L layers.
Sources: Gemma report (2024); π0, section IV and appendix B. Parameter names are big_vision's, with suffix _i for expert i > 0.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pi0_jax.models import layers
from pi0_jax.models.lora import LORA, LoraRule, merge_layer
from pi0_jax.models.params import Param, declare, fan_in_normal, normal, zeros

RMS_NORM_EPSILON = 1e-6
ROPE_MAX_WAVELENGTH = 10_000.0
BRANCH_GAIN = 0.2  # layers start near the identity, which trains faster from scratch; see siglip.py
MASKED_LOGIT = -2.3819763e38  # finite, so that a row without any key stays finite


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    width: int
    mlp_dim: int


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    experts: tuple[
        ExpertConfig, ...
    ]  # expert 0 is the language model itself and owns the embedding
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


class KVCache(NamedTuple):
    """Keys (rotated) and values of tokens already run, for every layer."""

    keys: jax.Array  # dtype[L, B, S, K, H]
    values: jax.Array  # dtype[L, B, S, K, H]


def suffixed(name: str, expert: int) -> str:
    return name if expert == 0 else f"{name}_{expert}"


def param_table(config: GemmaConfig) -> dict[str, Any]:
    """Shapes and initialisers, under the published names; layers are stacked on axis 0."""
    depth, heads, kv_heads, head_dim = (
        config.depth,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
    )
    attn: dict[str, Any] = {}
    layer: dict[str, Any] = {"attn": attn}
    width = config.experts[0].width
    # The embedding is scaled by sqrt(width) at use, so this starts tokens at unit variance.
    table: dict[str, Any] = {
        "embedder": {"input_embedding": Param((config.vocab_size, width), normal(width**-0.5))},
        "layers": layer,
    }
    for i, expert in enumerate(config.experts):
        width, mlp_dim = expert.width, expert.mlp_dim
        attn[suffixed("q_einsum", i)] = {
            "w": Param((depth, heads, width, head_dim), fan_in_normal(2, (1, 3)))
        }
        attn[suffixed("kv_einsum", i)] = {
            "w": Param((depth, 2, kv_heads, width, head_dim), fan_in_normal(3, (1, 2, 4)))
        }
        attn[suffixed("attn_vec_einsum", i)] = {
            "w": Param((depth, heads, head_dim, width), fan_in_normal((1, 2), 3, BRANCH_GAIN))
        }
        layer[suffixed("mlp", i)] = {
            "gating_einsum": Param((depth, 2, width, mlp_dim), fan_in_normal(2, (1, 3))),
            "linear": Param((depth, mlp_dim, width), fan_in_normal(1, 2, BRANCH_GAIN)),
        }
        layer[suffixed("pre_attention_norm", i)] = {"scale": Param((depth, width), zeros)}
        layer[suffixed("pre_ffw_norm", i)] = {"scale": Param((depth, width), zeros)}
        table[suffixed("final_norm", i)] = {"scale": Param((width,), zeros)}
    return table


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / rms(x) * (1 + scale) over the last axis, in float32; returns x's dtype."""
    x32 = x.astype(jnp.float32)
    y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + RMS_NORM_EPSILON)
    return (y * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)


def rope(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embedding (Su et al. 2021) of x [B, T, N, H] at int32[B, T]; the halves of H are the pairs."""
    half = x.shape[-1] // 2
    wavelength = ROPE_MAX_WAVELENGTH ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, :, None, None].astype(jnp.float32) / wavelength  # [B, T, 1, H/2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention: q [B, T, N, H] scaled, k and v [B, S, K, H], mask bool[B, T, S] -> [B, T, N, H]. Softmax in float32."""
    batch, tokens, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim)
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(mask[:, None, None], logits, MASKED_LOGIT)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(batch, tokens, heads, head_dim)


def mlp(params: Mapping[str, jax.Array], x: jax.Array, constrain: layers.Constrain) -> jax.Array:
    """GELU-gated MLP: [B, T, D] -> [B, T, D]."""
    # Two products, not one: their gradients would be put together and taken apart again, at the size of F times all tokens.
    gate, up = (
        constrain(layers.dense(x, w), ("batch", "tokens", "mlp")) for w in params["gating_einsum"]
    )  # [B, T, F]
    return layers.dense(jax.nn.gelu(gate, approximate=True) * up, params["linear"])


def layer(
    xs: Sequence[jax.Array | None],
    inputs: tuple[Mapping[str, Any], Mapping[str, Any], KVCache | None],
    *,
    positions: jax.Array,
    mask: jax.Array,
    read: Sequence[bool],
    constrain: layers.Constrain,
    gather: Callable[[Any], Any],
    merge: Callable[[Any, Any], Any],
) -> tuple[tuple[jax.Array | None, ...], KVCache]:
    """One layer for all streams.

    Args:
        xs: for each expert its tokens [B, T_i, D_i], or None where it takes no part.
        inputs: this layer's parameters; LoRA's factors of some, or {}; cached keys and values [B, S, K, H] that every token may attend to,
            or None.
        positions: int32[B, sum T_i]. mask: bool[B, sum T_i, S + sum T_i]; both over the streams side by side.
        read: whether anyone reads expert i's output. Where not, the expert stops at its keys and values.
        merge: adds LoRA's products to the layer's parameters. gather: makes the sums ready for use.

    Returns:
        The streams after this layer (None where not read) and the new keys and values [B, sum T_i, K, H].
    """
    params, cache = gather(merge(inputs[0], inputs[1])), inputs[2]
    attn = params["attn"]
    present = [i for i, x in enumerate(xs) if x is not None]
    ends, total = {}, 0
    for i in present:
        ends[i] = (total, total := total + xs[i].shape[1])
    assert positions.shape[1] == total == mask.shape[1], (positions.shape, mask.shape, total)
    readers = [i for i in present if read[i]]

    normed = {
        i: rms_norm(xs[i], params[suffixed("pre_attention_norm", i)]["scale"]) for i in present
    }
    # Weights [2, K, D, H]: keys and values.
    kv = [
        layers.dense(x, attn[suffixed("kv_einsum", i)]["w"].transpose(2, 0, 1, 3))
        for i, x in normed.items()
    ]
    kv = constrain(
        jnp.concatenate(kv, axis=1), ("batch", "tokens", None, None, None)
    )  # [B, sum T_i, 2, K, H]
    new = KVCache(rope(kv[:, :, 0], positions), kv[:, :, 1])
    if not readers:
        return tuple(None for _ in xs), new

    keys, values = (
        new
        if cache is None
        else (jnp.concatenate(pair, axis=1) for pair in zip(cache, new, strict=True))
    )
    queries = [
        layers.dense(normed[i], attn[suffixed("q_einsum", i)]["w"].transpose(1, 0, 2))
        for i in readers
    ]  # [B, T_i, N, H]
    rows = [slice(*ends[i]) for i in readers]
    q = rope(
        jnp.concatenate(queries, axis=1), jnp.concatenate([positions[:, r] for r in rows], axis=1)
    )
    q = constrain(q * q.shape[-1] ** -0.5, ("batch", "tokens", "heads", None))
    mixed = attend(q, keys, values, jnp.concatenate([mask[:, r] for r in rows], axis=1))

    ys: list[jax.Array | None] = [None] * len(xs)
    start = 0
    for i in readers:
        x, end = xs[i], start + xs[i].shape[1]
        x = x + layers.dense(
            mixed[:, start:end], attn[suffixed("attn_vec_einsum", i)]["w"], contract=2
        )
        x = x + mlp(
            params[suffixed("mlp", i)],
            rms_norm(x, params[suffixed("pre_ffw_norm", i)]["scale"]),
            constrain,
        )
        ys[i] = constrain(x, ("batch", "tokens", "embed"))
        start = end
    return tuple(ys), new


class Gemma(nn.Module):
    config: GemmaConfig
    dtype: Any = jnp.bfloat16
    scan_layers: bool = True
    remat: layers.Remat = "none"
    constrain: layers.Constrain = layers.unconstrained
    gather: layers.Gather = layers.ungathered
    lora: tuple[LoraRule, ...] = ()

    @nn.compact
    def params(self) -> dict[str, Any]:
        return declare(self, param_table(self.config))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32[B, T] -> dtype[B, T, D] of expert 0, scaled by sqrt(D)."""
        table = self.params()["embedder"]["input_embedding"]
        # The table is too large to gather: each device reads all tokens' rows from its own columns, then rows change hands.
        x = (table[tokens] * jnp.sqrt(jnp.float32(table.shape[1]))).astype(self.dtype)
        x = self.constrain(x, ("lookup", "tokens", "table_columns"))
        return self.constrain(x, ("batch", "tokens", "embed"))

    def __call__(
        self,
        xs: Sequence[jax.Array | None],
        positions: jax.Array,
        mask: jax.Array,
        *,
        cache: KVCache | None = None,
        read: Sequence[bool],
    ) -> tuple[list[jax.Array | None], KVCache]:
        """Runs the streams through all layers; see `layer` for the arguments.

        An expert that is not read stops at the last layer's keys and values.

        Returns:
            For each read expert its normalised output [B, T_i, D_i] (None otherwise), and the keys and values of all new tokens.
        """
        params = self.params()
        everyone = tuple(True for _ in xs)
        where = dict(path=(*self.path, "layers"), dtype=self.dtype)
        gather, merge = (
            partial(self.gather, **where),
            partial(merge_layer, rules=self.lora, **where),
        )
        step = partial(
            layer,
            positions=positions,
            mask=mask,
            constrain=self.constrain,
            gather=gather,
            merge=merge,
        )
        ys, pieces = layers.run(
            layers.rematerialise(partial(step, read=everyone), self.remat),
            tuple(None if x is None else x.astype(self.dtype) for x in xs),
            (params["layers"], self.get_variable(LORA, "layers", {}), cache),
            last=layers.rematerialise(partial(step, read=tuple(read)), self.remat),
            scan=self.scan_layers,
        )
        new = jax.tree.map(lambda *kv: jnp.concatenate(kv), *pieces)
        outputs = [
            None if y is None else rms_norm(y, params[suffixed("final_norm", i)]["scale"])
            for i, y in enumerate(ys)
        ]
        return outputs, new
