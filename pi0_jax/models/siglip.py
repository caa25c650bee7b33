"""SigLIP's image encoder is a pre-norm vision transformer over patches.

Its outputs are projected to the language model's width.

Axes: B images, S image side, P patches (Q where they are keys), D width, N heads, H head dimension,
F hidden width of the MLP, O output width, L layers. `Float` is the dtype that the model computes
in.
Source: Zhai et al. 2023 (SigLIP); So400m/14 as in PaliGemma. Parameter names are big_vision's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pi0_jax.models import layers
from pi0_jax.models.initializers import (
    Param,
    Table,
    draw_table,
    fan_in_normal,
    normal,
    xavier_uniform,
)
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.lora import LORA, merge_layer

LAYER_NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Holds the sizes of an image encoder."""

    image_size: int  # S, pixels
    patch_size: int  # pixels
    width: int
    depth: int
    mlp_dim: int
    num_heads: int

    @property
    def num_patches(self) -> int:
        """Returns P, the number of patches of one image."""
        return (self.image_size // self.patch_size) ** 2


# Initializers matter only to models trained from scratch. These gains of standard deviations were
# chosen by how fast a small model learns where a small block lies in a 64x64 image (from patches
# alone, loss 0.04 instead of 0.36 after 600 steps). Blocks that start near the identity, position
# embeddings as large as the patches' and sharper attention each help.
BRANCH_GAIN = 0.2
QUERY_KEY_GAIN = 2.0
PATCH_GAIN = 2.0
POSITION_GAIN = 4.0


def param_table(config: VisionConfig, output_width: int) -> Table:
    """Returns shapes and initializers under the published names; blocks are stacked on axis 0."""
    depth, width, mlp_dim, heads = config.depth, config.width, config.mlp_dim, config.num_heads
    head_dim, patch = width // heads, config.patch_size

    def layer_norm(*stack: int) -> Table:
        return {"scale": Param((*stack, width), 1.0), "bias": Param((*stack, width), 0.0)}

    def projection(gain: float = 1.0) -> Table:
        kernel = Param((depth, width, heads, head_dim), xavier_uniform(width, width, gain))
        return {"kernel": kernel, "bias": Param((depth, heads, head_dim), 0.0)}

    merge_heads = xavier_uniform(width, width, BRANCH_GAIN)
    down = xavier_uniform(mlp_dim, width, BRANCH_GAIN)
    return {
        "embedding": {
            "kernel": Param((patch, patch, 3, width), fan_in_normal(3 * patch**2, PATCH_GAIN)),
            "bias": Param((width,), 0.0),
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
                        "kernel": Param((depth, heads, head_dim, width), merge_heads),
                        "bias": Param((depth, width), 0.0),
                    },
                },
                "LayerNorm_1": layer_norm(depth),
                "MlpBlock_0": {
                    "Dense_0": {
                        "kernel": Param((depth, width, mlp_dim), xavier_uniform(width, mlp_dim)),
                        "bias": Param((depth, mlp_dim), normal(1e-6)),
                    },
                    "Dense_1": {
                        "kernel": Param((depth, mlp_dim, width), down),
                        "bias": Param((depth, width), normal(1e-6)),
                    },
                },
            },
            "encoder_norm": layer_norm(),
        },
        "head": {
            "kernel": Param((width, output_width), fan_in_normal(width)),
            "bias": Param((output_width,), 0.0),
        },
    }


def layer_norm(
    params: Mapping[str, Float[Array, " D"]], x: Float[Array, "... D"]
) -> Float[Array, "... D"]:
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it.

    It computes in float32, and returns the dtype of x.

    Args:
        params: scale and bias.
        x: activations.
    """
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)  # float32[..., 1]
    variance = jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True)  # float32[..., 1]
    y = (x32 - mean) * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)  # float32[..., D]
    return (y * params["scale"] + params["bias"]).astype(x.dtype)


def attention(
    params: Mapping[str, Any], x: Float[Array, "B P D"], constrain: layers.Constrain
) -> Float[Array, "B P D"]:
    """Lets every patch attend to every patch."""
    # [B, P, N, H]
    q, k, v = (
        constrain(_dense(params[name], x), ("batch", "patches", "heads", None))
        for name in ("query", "key", "value")
    )
    q = q * (q.shape[-1] ** -0.5)
    logits = jnp.einsum("BPNH,BQNH->BNPQ", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)  # [B, N, P, Q]
    mixed = jnp.einsum("BNPQ,BQNH->BPNH", weights, v)  # [B, P, N, H]
    return _dense(params["out"], mixed, contract=2)


def mlp(
    params: Mapping[str, Any], x: Float[Array, "B P D"], constrain: layers.Constrain
) -> Float[Array, "B P D"]:
    """Runs the MLP, with a tanh-approximated GELU."""
    hidden = constrain(_dense(params["Dense_0"], x), ("batch", "patches", "mlp"))  # [B, P, F]
    return _dense(params["Dense_1"], jax.nn.gelu(hidden, approximate=True))


def _dense(
    params: Mapping[str, Float[Array, "..."]], x: Float[Array, "..."], contract: int = 1
) -> Float[Array, "..."]:
    """Multiplies by the kernel and adds the bias, in the dtype of x."""
    return layers.dense(x, params["kernel"], contract) + params["bias"].astype(x.dtype)


def encoder_block(
    x: Float[Array, "B P D"],
    inputs: tuple[Mapping[str, Any], Mapping[str, Any]],
    *,
    constrain: layers.Constrain,
    gather: Callable[[Any], Any],
    merge: Callable[[Any, Any], Any],
) -> tuple[Float[Array, "B P D"], None]:
    """Runs one encoder block.

    Args:
        x: activations.
        inputs: this block's parameters; LoRA's factors of some, or {}.
        constrain: see ComputeOptions.
        gather: makes the sums of parameters and LoRA's products ready for use.
        merge: adds LoRA's products to the block's parameters.

    Returns:
        The activations after this block, and no output of its own.
    """
    block_params, factors = inputs
    params = gather(merge(block_params, factors))
    normed = layer_norm(params["LayerNorm_0"], x)
    x = x + attention(params["MultiHeadDotProductAttention_0"], normed, constrain)
    x = x + mlp(params["MlpBlock_0"], layer_norm(params["LayerNorm_1"], x), constrain)
    return constrain(x, ("batch", "patches", "vision_embed")), None


class SigLIP(nn.Module):
    """Is the image encoder."""

    config: VisionConfig
    output_width: int
    options: ComputeOptions = ComputeOptions()

    def setup(self) -> None:
        """Declares the parameters."""
        table = param_table(self.config, self.output_width)
        self.params = {name: self.param(name, draw_table, table[name]) for name in table}

    def declare(self) -> None:
        """Declares the parameters, and computes nothing: `init(key, method=SigLIP.declare)`."""

    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B P O"]:
        """Encodes images with values in [-1, 1] to patches, row by row."""
        config, options = self.config, self.options
        ends = {name: self.params[name] for name in ("embedding", "pos_embedding", "head")}
        ends = options.gather(ends, self.path, options.dtype)
        batch, patch = images.shape[0], config.patch_size
        side = config.image_size // patch
        assert images.shape == (batch, config.image_size, config.image_size, 3), images.shape
        # A convolution with stride = kernel is a matrix product over flattened patches.
        x = images.astype(options.dtype).reshape(batch, side, patch, side, patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, patch * patch * 3)
        kernel = ends["embedding"]["kernel"].reshape(-1, config.width)  # [patch * patch * 3, D]
        x = _dense({"kernel": kernel, "bias": ends["embedding"]["bias"]}, x)  # [B, P, D]
        x = x + ends["pos_embedding"].astype(options.dtype)
        x = options.constrain(x, ("batch", "patches", "vision_embed"))

        path = (*self.path, "Transformer", "encoderblock")
        block = partial(
            encoder_block,
            constrain=options.constrain,
            gather=lambda params: options.gather(params, path, options.dtype),
            merge=partial(merge_layer, rules=options.lora, path=path, dtype=options.dtype),
        )
        encoder = self.params["Transformer"]
        none: dict[str, Any] = {"encoderblock": {}}
        factors = self.get_variable(LORA, "Transformer", none)
        x, _ = layers.run(
            block,
            x,
            (encoder["encoderblock"], factors["encoderblock"]),
            scan=options.scan_layers,
            remat=options.remat,
        )
        x = _dense(ends["head"], layer_norm(encoder["encoder_norm"], x))  # [B, P, O]
        return options.constrain(x, ("batch", "patches", "embed"))
