"""SigLIP's image encoder: a pre-norm vision transformer over patches, projected to the language model's width.

Axes: B images, S image side, P patches, D width, N heads, H head dimension, F hidden width of the MLP, O output width, L layers.
Source: Zhai et al. 2023 (SigLIP); So400m/14 as in PaliGemma. Parameter names are big_vision's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pi0_jax.models import layers
from pi0_jax.models.lora import LORA, LoraRule, merge_layer
from pi0_jax.models.params import Param, declare, normal, ones, zeros

LAYER_NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    image_size: int  # S, pixels
    patch_size: int  # pixels
    width: int
    depth: int
    mlp_dim: int
    num_heads: int

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


# Initialisers matter only to models trained from scratch; these were chosen by how fast a small one learns where a small block lies in a
# 64x64 image (from patches alone, loss 0.04 instead of 0.36 after 600 steps). Blocks that start near the identity, positions as loud as
# content and sharper attention each help.
BRANCH_GAIN, QUERY_KEY_GAIN, PATCH_GAIN, POSITION_GAIN = (
    0.2,
    2.0,
    2.0,
    4.0,
)  # of standard deviations


def param_table(config: VisionConfig, output_width: int) -> dict[str, Any]:
    """Shapes and initialisers, under the published names; encoder blocks are stacked on axis 0."""
    depth, width, mlp_dim, heads = config.depth, config.width, config.mlp_dim, config.num_heads
    head_dim = width // heads

    def xavier(in_axis: Any, out_axis: Any, gain: float = 1.0) -> Any:
        return jax.nn.initializers.variance_scaling(
            gain**2, "fan_avg", "uniform", in_axis=in_axis, out_axis=out_axis, batch_axis=(0,)
        )

    def layer_norm(*stack: int) -> dict[str, Param]:
        return {"scale": Param((*stack, width), ones), "bias": Param((*stack, width), zeros)}

    def projection(gain: float = 1.0) -> dict[str, Param]:
        return {
            "kernel": Param((depth, width, heads, head_dim), xavier(1, (2, 3), gain)),
            "bias": Param((depth, heads, head_dim), zeros),
        }

    return {
        "embedding": {
            "kernel": Param(
                (config.patch_size, config.patch_size, 3, width),
                jax.nn.initializers.variance_scaling(
                    PATCH_GAIN**2, "fan_in", "truncated_normal", in_axis=(0, 1, 2), out_axis=3
                ),
            ),
            "bias": Param((width,), zeros),
        },
        "pos_embedding": Param((1, config.num_patches, width), normal(POSITION_GAIN * width**-0.5)),
        "Transformer": {
            "encoderblock": {
                "LayerNorm_0": layer_norm(depth),
                "MultiHeadDotProductAttention_0": {
                    "query": projection(QUERY_KEY_GAIN),
                    "key": projection(QUERY_KEY_GAIN),
                    "value": projection(),
                    "out": {
                        "kernel": Param(
                            (depth, heads, head_dim, width), xavier((1, 2), 3, BRANCH_GAIN)
                        ),
                        "bias": Param((depth, width), zeros),
                    },
                },
                "LayerNorm_1": layer_norm(depth),
                "MlpBlock_0": {
                    "Dense_0": {
                        "kernel": Param((depth, width, mlp_dim), xavier(1, 2)),
                        "bias": Param((depth, mlp_dim), normal(1e-6)),
                    },
                    "Dense_1": {
                        "kernel": Param((depth, mlp_dim, width), xavier(1, 2, BRANCH_GAIN)),
                        "bias": Param((depth, width), normal(1e-6)),
                    },
                },
            },
            "encoder_norm": layer_norm(),
        },
        "head": {
            "kernel": Param((width, output_width), jax.nn.initializers.lecun_normal()),
            "bias": Param((output_width,), zeros),
        },
    }


def layer_norm(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """Normalises the last axis in float32; returns x's dtype."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True)
    y = (x32 - mean) * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
    return (y * params["scale"] + params["bias"]).astype(x.dtype)


def attention(params: Mapping[str, Any], x: jax.Array, constrain: layers.Constrain) -> jax.Array:
    """Every patch attends to every patch: [B, P, D] -> [B, P, D]."""
    q, k, v = (
        constrain(
            layers.dense(x, params[name]["kernel"]) + params[name]["bias"].astype(x.dtype),
            ("batch", "patches", "heads", None),
        )
        for name in ("query", "key", "value")
    )  # [B, P, N, H]
    q = q * (q.shape[-1] ** -0.5)
    logits = jnp.einsum(
        "BPNH,BQNH->BNPQ", q, k, preferred_element_type=jnp.float32
    )  # Q: patches as keys
    weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("BNPQ,BQNH->BPNH", weights, v)
    return layers.dense(mixed, params["out"]["kernel"], contract=2) + params["out"]["bias"].astype(
        x.dtype
    )


def mlp(params: Mapping[str, Any], x: jax.Array, constrain: layers.Constrain) -> jax.Array:
    """[B, P, D] -> [B, P, D] through a tanh-approximated GELU of width F."""
    first, second = params["Dense_0"], params["Dense_1"]
    hidden = constrain(
        layers.dense(x, first["kernel"]) + first["bias"].astype(x.dtype),
        ("batch", "patches", "mlp"),
    )  # [B, P, F]
    return layers.dense(jax.nn.gelu(hidden, approximate=True), second["kernel"]) + second[
        "bias"
    ].astype(x.dtype)


def encoder_block(
    x: jax.Array,
    inputs: tuple[Mapping[str, Any], Mapping[str, Any]],
    *,
    constrain: layers.Constrain,
    gather: Callable[[Any], Any],
    merge: Callable[[Any, Any], Any],
) -> tuple[jax.Array, None]:
    """[B, P, D] -> [B, P, D]; `inputs`: this block's parameters, and LoRA's factors of some, or {}."""
    params = gather(merge(inputs[0], inputs[1]))
    x = x + attention(
        params["MultiHeadDotProductAttention_0"], layer_norm(params["LayerNorm_0"], x), constrain
    )
    x = x + mlp(params["MlpBlock_0"], layer_norm(params["LayerNorm_1"], x), constrain)
    return constrain(x, ("batch", "patches", "vision_embed")), None


class SigLIP(nn.Module):
    config: VisionConfig
    output_width: int
    dtype: Any = jnp.bfloat16
    scan_layers: bool = True
    remat: layers.Remat = "none"
    constrain: layers.Constrain = layers.unconstrained
    gather: layers.Gather = layers.ungathered
    lora: tuple[LoraRule, ...] = ()

    @nn.compact
    def params(self) -> dict[str, Any]:
        return declare(self, param_table(self.config, self.output_width))

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32[B, S, S, 3] in [-1, 1] -> dtype[B, P, O], patches in row-major order."""
        config, params = self.config, self.params()
        ends = self.gather(
            {name: params[name] for name in ("embedding", "pos_embedding", "head")},
            path=self.path,
            dtype=self.dtype,
        )
        batch, side, patch = (
            images.shape[0],
            config.image_size // config.patch_size,
            config.patch_size,
        )
        assert images.shape == (batch, config.image_size, config.image_size, 3), images.shape
        # A convolution with stride = kernel is a matrix product over flattened patches.
        x = images.astype(self.dtype).reshape(batch, side, patch, side, patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, patch * patch * 3)
        kernel = ends["embedding"]["kernel"].reshape(-1, config.width)
        x = layers.dense(x, kernel) + ends["embedding"]["bias"].astype(self.dtype)
        x = x + ends["pos_embedding"].astype(self.dtype)  # [B, P, D]
        x = self.constrain(x, ("batch", "patches", "vision_embed"))

        where = dict(path=(*self.path, "Transformer", "encoderblock"), dtype=self.dtype)
        gather, merge = (
            partial(self.gather, **where),
            partial(merge_layer, rules=self.lora, **where),
        )
        block = layers.rematerialise(
            partial(encoder_block, constrain=self.constrain, gather=gather, merge=merge), self.remat
        )
        factors = self.get_variable(LORA, "Transformer", {"encoderblock": {}})["encoderblock"]
        x, _ = layers.run(
            block,
            x,
            (params["Transformer"]["encoderblock"], factors),
            last=block,
            scan=self.scan_layers,
        )
        x = layer_norm(params["Transformer"]["encoder_norm"], x)
        x = layers.dense(x, ends["head"]["kernel"]) + ends["head"]["bias"].astype(x.dtype)
        return self.constrain(x, ("batch", "patches", "embed"))
