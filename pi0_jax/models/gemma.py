"""Gemma with several experts: each token stream has its own weights, all share one self-attention.

Axes: B batch, T query tokens (T_i those of expert i, T of all side by side), S key tokens (cached
ones first), D width of one expert (D_i of expert i), F its MLP width, N heads, K key-value heads,
G = N/K heads per key-value head, H head dimension, V vocabulary, L layers, U conditions of a
sample. `Float` is the dtype that the model computes in. An axis with a _ before it is not checked:
it differs among experts.
Sources: Gemma report (2024); π0, section IV and appendix B; π0.5 (arXiv 2504.16054) for the
adaptive norm. Parameter names are big_vision's, with suffix _i for expert i > 0.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from pi0_jax.models import layers, pieces
from pi0_jax.models.initializers import Param, Table, draw_table, fan_in_normal, normal
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.lora import LORA, merge_layer

RMS_NORM_EPSILON = 1e-6
ROPE_MAX_WAVELENGTH = 10_000.0
BRANCH_GAIN = 0.2  # layers start near the identity, which trains faster from scratch; see siglip.py
MASKED_LOGIT = -2.3819763e38  # finite, so that a row without any key stays finite


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    """Holds the sizes of one expert: D and F, and whether a condition modulates its norms."""

    width: int
    mlp_dim: int
    adaptive: bool = False


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Holds the sizes of a language model with experts."""

    experts: tuple[ExpertConfig, ...]  # expert 0 is the language model and owns the embedding
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


class KVCache(NamedTuple):
    """Holds keys (rotated) and values of tokens that ran already, for every layer."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]


def suffixed(name: str, expert: int) -> str:
    """Returns the published name of an expert's parameters: `mlp` for expert 0, `mlp_1` for 1."""
    return name if expert == 0 else f"{name}_{expert}"


def _norm_table(expert: ExpertConfig, *stack: int) -> Table:
    """Lists the parameters of one norm; an adaptive one starts as a plain one with a closed gate."""
    width = expert.width
    if not expert.adaptive:
        return {"scale": Param((*stack, width), 0.0)}
    kernel, bias = Param((*stack, width, 3 * width), 0.0), Param((*stack, 3 * width), 0.0)
    return {"Dense_0": {"kernel": kernel, "bias": bias}}


def param_table(config: GemmaConfig) -> Table:
    """Returns shapes and initializers under the published names; layers are stacked on axis 0."""
    depth, heads, kv_heads = config.depth, config.num_heads, config.num_kv_heads
    head_dim, width = config.head_dim, config.experts[0].width
    attn: dict[str, Any] = {}
    layer: dict[str, Any] = {"attn": attn}
    # The embedding is scaled by sqrt(width) at use, so this starts tokens at unit variance.
    embedding = Param((config.vocab_size, width), normal(width**-0.5))
    table: dict[str, Any] = {"embedder": {"input_embedding": embedding}, "layers": layer}
    for i, expert in enumerate(config.experts):
        width, mlp_dim = expert.width, expert.mlp_dim
        from_width = fan_in_normal(width)
        attn[suffixed("q_einsum", i)] = {"w": Param((depth, heads, width, head_dim), from_width)}
        attn[suffixed("kv_einsum", i)] = {
            "w": Param((depth, 2, kv_heads, width, head_dim), from_width)
        }
        attn[suffixed("attn_vec_einsum", i)] = {
            "w": Param(
                (depth, heads, head_dim, width), fan_in_normal(heads * head_dim, BRANCH_GAIN)
            )
        }
        layer[suffixed("mlp", i)] = {
            "gating_einsum": Param((depth, 2, width, mlp_dim), from_width),
            "linear": Param((depth, mlp_dim, width), fan_in_normal(mlp_dim, BRANCH_GAIN)),
        }
        layer[suffixed("pre_attention_norm", i)] = _norm_table(expert, depth)
        layer[suffixed("pre_ffw_norm", i)] = _norm_table(expert, depth)
        table[suffixed("final_norm", i)] = _norm_table(expert)
    return table


def rms_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "*modulated D"],
    shift: Float[Array, "*modulated D"] | None = None,
) -> Float[Array, "... D"]:
    """Divides the last axis by its root mean square: x / rms(x) * (1 + scale) + shift.

    It computes in float32, and returns the dtype of x.
    """
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)  # float32[..., 1]
    y = x32 * jax.lax.rsqrt(mean_square + RMS_NORM_EPSILON)  # float32[..., D]
    y = y * (1.0 + scale.astype(jnp.float32))
    return (y if shift is None else y + shift.astype(jnp.float32)).astype(x.dtype)


def norm(
    params: Mapping[str, Any],
    x: Float[Array, "B T D"],
    condition: Float[Array, "B U D"] | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"] | None]:
    """Normalises tokens; where a condition is given, it says how (adaptive RMSNorm).

        scale, shift, gate = W c + b          each of the U conditions serves T / U tokens in a row

    Args:
        params: "scale", or the dense layer "Dense_0" of an adaptive norm.
        x: the tokens.
        condition: c, for an adaptive norm.

    Returns:
        The normalised tokens; and the gate of the branch that reads them, None of a plain norm.
    """
    if condition is None:
        return rms_norm(x, params["scale"]), None
    own = params["Dense_0"]
    modulation = layers.dense(condition, own["kernel"]) + own["bias"].astype(condition.dtype)
    modulation = jnp.repeat(modulation, x.shape[1] // condition.shape[1], axis=1)  # [B, T, 3D]
    scale, shift, gate = jnp.split(modulation, 3, axis=-1)
    return rms_norm(x, scale, shift), gate


def residual(
    x: Float[Array, "B T D"], y: Float[Array, "B T D"], gate: Float[Array, "B T D"] | None
) -> Float[Array, "B T D"]:
    """Adds what a branch computed: x + gate y, or x + y where its norm is a plain one.

    It returns the dtype of x.
    """
    return (x + y if gate is None else x + gate * y).astype(x.dtype)


def rope(x: Float[Array, "B T N H"], positions: Int32[Array, "B T"]) -> Float[Array, "B T N H"]:
    """Rotates queries or keys by their positions (Su et al. 2021).

    Component i of the first half of H is a pair with component i of the second half.
    """
    half = x.shape[-1] // 2
    wavelength = ROPE_MAX_WAVELENGTH ** (jnp.arange(half, dtype=jnp.float32) / half)  # [H/2]
    angle = positions[:, :, None, None].astype(jnp.float32) / wavelength  # [B, T, 1, H/2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # [B, T, N, H/2] each
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)  # [B, T, N, H]


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Computes attention in which groups of query heads share keys and values.

    The softmax is in float32.

    Args:
        q: queries, scaled.
        k: keys.
        v: values.
        mask: true where a token attends to a key.
    """
    batch, tokens, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim)  # [B, T, K, G, H]
    # Heads of a group stay beside each other, as in q, so logits are not transposed.
    logits = jnp.einsum("BTKGH,BSKH->BKTGS", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(mask[:, None, :, None], logits, MASKED_LOGIT)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)  # [B, K, T, G, S]
    mixed = jnp.einsum("BKTGS,BSKH->BTKGH", weights, v)
    return mixed.reshape(batch, tokens, heads, head_dim)


def mlp(
    params: Mapping[str, Array], x: Float[Array, "B T D"], constrain: layers.Constrain
) -> Float[Array, "B T D"]:
    """Runs the MLP, with a gate through a GELU."""
    # These are two products, not one. The gradients of one product would be put together and taken
    # apart again, at the size of F times all tokens.
    # [B, T, F]
    gate, up = (
        constrain(layers.dense(x, w), ("batch", "tokens", "mlp")) for w in params["gating_einsum"]
    )
    return layers.dense(jax.nn.gelu(gate, approximate=True) * up, params["linear"])


def layer(
    xs: Sequence[Float[Array, "B _T_i _D_i"] | None],
    inputs: tuple[Mapping[str, Any], Mapping[str, Any], KVCache | None],
    *,
    positions: Int32[Array, "B T"],
    mask: Bool[Array, "B T S"],
    conditions: Sequence[Float[Array, "B U _D_i"] | None],
    read: Sequence[bool],
    in_pieces: bool,
    constrain: layers.Constrain,
    gather: Callable[[Any], Any],
    merge: Callable[[Any, Any], Any],
) -> tuple[tuple[Float[Array, "B _T_i _D_i"] | None, ...], KVCache]:
    """Runs one layer for all streams.

    Args:
        xs: for each expert its tokens, or None where it takes no part.
        inputs: this layer's parameters; LoRA's factors of some, or {}; cached keys and values
            [B, S - T, K, H] that every token may attend to, or None.
        positions: of the streams side by side.
        mask: true where a token of the streams attends to a key.
        conditions: for each expert what modulates its norms, or None where they are plain ones.
        read: whether anyone reads expert i's output. Where not, the expert stops at its keys and
            values.
        in_pieces: see ComputeOptions.
        constrain: see ComputeOptions.
        gather: makes the sums of parameters and LoRA's products ready for use.
        merge: adds LoRA's products to the layer's parameters.

    Returns:
        The streams after this layer (None where not read) and the new keys and values
        [B, T, K, H].
    """
    layer_params, factors, cache = inputs
    params = gather(merge(layer_params, factors))
    attn = params["attn"]
    present = {i: x for i, x in enumerate(xs) if x is not None}
    rows, total = {}, 0  # expert -> where its tokens are among all
    for i, x in present.items():
        rows[i] = slice(total, total + x.shape[1])
        total += x.shape[1]
    assert positions.shape[1] == total == mask.shape[1], (positions.shape, mask.shape, total)
    readers = [i for i in present if read[i]]

    normed, gates = {}, {}
    for i, x in present.items():
        own = params[suffixed("pre_attention_norm", i)]
        normed[i], gates[i] = norm(own, x, conditions[i])
    # Weights [2, K, D, H]: keys and values.
    # [B, T_i, 2, K, H]
    pairs = [
        layers.dense(x, attn[suffixed("kv_einsum", i)]["w"].transpose(2, 0, 1, 3))
        for i, x in normed.items()
    ]
    kv = jnp.concatenate(pairs, axis=1)  # [B, T, 2, K, H]
    kv = constrain(kv, ("batch", "tokens", None, None, None))
    new = KVCache(rope(kv[:, :, 0], positions), kv[:, :, 1])
    if not readers:
        return tuple(None for _ in xs), new

    keys, values = new  # [B, T, K, H]
    if cache is not None:
        keys = jnp.concatenate([cache.keys, keys], axis=1)  # [B, S, K, H]
        values = jnp.concatenate([cache.values, values], axis=1)
    # Only the streams that are read have queries.
    # [B, T_i, N, H]
    queries = [
        layers.dense(normed[i], attn[suffixed("q_einsum", i)]["w"].transpose(1, 0, 2))
        for i in readers
    ]
    asking = jnp.concatenate([positions[:, rows[i]] for i in readers], axis=1)
    q = rope(jnp.concatenate(queries, axis=1), asking)  # [B, T of the readers, N, H]
    q = constrain(q * q.shape[-1] ** -0.5, ("batch", "tokens", "heads", None))
    allowed = jnp.concatenate([mask[:, rows[i]] for i in readers], axis=1)
    run_attend, run_mlp = attend, partial(mlp, constrain=constrain)
    if in_pieces:
        run_attend, run_mlp = partial(pieces.by_head, attend), partial(pieces.by_columns, run_mlp)
    mixed = run_attend(q, keys, values, allowed)  # [B, T of the readers, N, H]

    ys: list[Array | None] = [None] * len(xs)
    start = 0
    for i in readers:
        x, end = present[i], start + present[i].shape[1]
        y = layers.dense(mixed[:, start:end], attn[suffixed("attn_vec_einsum", i)]["w"], contract=2)
        x = residual(x, y, gates[i])
        normed_x, gate = norm(params[suffixed("pre_ffw_norm", i)], x, conditions[i])
        x = residual(x, run_mlp(params[suffixed("mlp", i)], normed_x), gate)
        ys[i] = constrain(x, ("batch", "tokens", "embed"))  # [B, T_i, D_i]
        start = end
    return tuple(ys), new


class Gemma(nn.Module):
    """Is the language model with its experts."""

    config: GemmaConfig
    options: ComputeOptions = ComputeOptions()

    def setup(self) -> None:
        """Declares the parameters."""
        table = param_table(self.config)
        self.embedder = self.param("embedder", draw_table, table["embedder"])
        self.layers = self.param("layers", draw_table, table["layers"])
        norms = [suffixed("final_norm", i) for i in range(len(self.config.experts))]
        self.final_norms = {name: self.param(name, draw_table, table[name]) for name in norms}

    def declare(self) -> None:
        """Declares the parameters, and computes nothing: `init(key, method=Gemma.declare)`."""

    def embed(self, tokens: Int32[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks tokens up in the embedding table, scaled by sqrt(D).

        D is the width of expert 0.
        """
        table = self.embedder["input_embedding"]  # [V, D]
        # The table is too large to gather: each device reads all tokens' rows from its own columns,
        # then rows change hands.
        x = table[tokens] * jnp.sqrt(jnp.float32(table.shape[1]))  # [B, T, D]
        x = x.astype(self.options.dtype)
        x = self.options.constrain(x, ("lookup", "tokens", "table_columns"))
        return self.options.constrain(x, ("batch", "tokens", "embed"))

    def __call__(
        self,
        xs: Sequence[Float[Array, "B _T_i _D_i"] | None],
        positions: Int32[Array, "B T"],
        mask: Bool[Array, "B T S"],
        *,
        cache: KVCache | None = None,
        conditions: Sequence[Float[Array, "B U _D_i"] | None] = (None, None),
        read: Sequence[bool],
    ) -> tuple[list[Float[Array, "B _T_i _D_i"]], KVCache]:
        """Runs the streams through all layers.

        An expert that is not read stops at the last layer's keys and values.

        Args:
            xs: for each expert its tokens, or None where it takes no part.
            positions: of the streams side by side.
            mask: true where a token of the streams attends to a key.
            cache: keys and values of S - T tokens that ran before; None where there are none.
            conditions: for each expert what modulates its norms, or None where they are plain ones.
            read: whether expert i's output is wanted.

        Returns:
            The normalised outputs of the experts that are read, and the keys and values of all new
            tokens.
        """
        options, path = self.options, (*self.path, "layers")
        step = partial(
            layer,
            positions=positions,
            mask=mask,
            conditions=conditions,
            in_pieces=options.in_pieces,
            constrain=options.constrain,
            gather=lambda params: options.gather(params, path, options.dtype),
            merge=partial(merge_layer, rules=options.lora, path=path, dtype=options.dtype),
        )
        everyone = tuple(True for _ in xs)
        # Where every expert that takes part is read, the last layer is as the others: one program.
        all_read = all(x is None or wanted for x, wanted in zip(xs, read, strict=True))
        ys, pieces = layers.run(
            partial(step, read=everyone),
            tuple(None if x is None else x.astype(options.dtype) for x in xs),
            (self.layers, self.get_variable(LORA, "layers", {}), cache),
            last=None if all_read else partial(step, read=tuple(read)),
            scan=options.scan_layers,
            remat=options.remat,
        )
        new = jax.tree.map(lambda *kv: jnp.concatenate(kv), *pieces)  # [L, B, T, K, H]
        outputs = []
        for y, (name, own), condition in zip(ys, self.final_norms.items(), conditions, strict=True):
            if y is not None:
                own = options.gather(own, (*self.path, name), options.dtype)
                outputs.append(norm(own, y, condition)[0])
        return outputs, new
