"""π0: camera images and a prompt through PaliGemma, state and noisy actions through the action expert, one shared attention.

    [base | left wrist | right wrist | prompt] [state] [action 1 ... action H] x K
     \\_____ prefix: P tokens, expert 0 _____/  \\_____ suffix: 1 + K*H tokens, expert 1 ____/

Axes: B batch, K draws of noise and time, H horizon, D action (and state) dimension, P prefix tokens, L prompt tokens, S image side,
W width of the action expert. Source: π0 (arXiv 2410.24164), section IV and appendix B, with the published code's deviations:
8 heads, biases in every projection, time running from 1 (noise) to 0 (data), see flow.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pi0_jax import flow
from pi0_jax.models import gemma, layers, masks, siglip
from pi0_jax.models.gemma import ExpertConfig, Gemma, GemmaConfig, KVCache
from pi0_jax.models.lora import LoraRule, variables
from pi0_jax.models.params import Param, declare, zeros
from pi0_jax.models.siglip import SigLIP, VisionConfig
from pi0_jax.observation import CAMERA_SLOTS, Observation

# Periods of the sinusoidal code of time t in [0, 1].
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


@dataclasses.dataclass(frozen=True)
class Pi0Config:
    vision: VisionConfig
    gemma: GemmaConfig  # experts: (PaliGemma's language model, the action expert)
    action_dim: int
    horizon: int
    max_tokens: int  # prompt tokens


# Sizes of every part, per variant.
VARIANTS = {
    # The published model: SigLIP So400m/14, Gemma 2B, 300M action expert; 3,238,048,528 parameters.
    "pi0": Pi0Config(
        vision=VisionConfig(image_size=224, patch_size=14, width=1152, depth=27, mlp_dim=4304, num_heads=16),
        gemma=GemmaConfig(
            experts=(ExpertConfig(width=2048, mlp_dim=16_384), ExpertConfig(width=1024, mlp_dim=4096)),
            depth=18, num_heads=8, num_kv_heads=1, head_dim=256, vocab_size=257_152,
        ),
        action_dim=32, horizon=50, max_tokens=48,
    ),
    # Learns the reach world on a laptop CPU in minutes.
    "nano": Pi0Config(
        vision=VisionConfig(image_size=64, patch_size=16, width=64, depth=2, mlp_dim=256, num_heads=8),
        gemma=GemmaConfig(
            experts=(ExpertConfig(width=96, mlp_dim=192), ExpertConfig(width=64, mlp_dim=128)),
            depth=4, num_heads=4, num_kv_heads=1, head_dim=24, vocab_size=512,
        ),
        action_dim=8, horizon=10, max_tokens=16,
    ),
    # For tests: seconds to compile.
    "pico": Pi0Config(
        vision=VisionConfig(image_size=32, patch_size=16, width=16, depth=2, mlp_dim=32, num_heads=2),
        gemma=GemmaConfig(
            experts=(ExpertConfig(width=32, mlp_dim=48), ExpertConfig(width=24, mlp_dim=40)),
            depth=3, num_heads=4, num_kv_heads=2, head_dim=8, vocab_size=512,
        ),
        action_dim=6, horizon=4, max_tokens=12,
    ),
}  # fmt: skip


class PaliGemma(nn.Module):
    """The published names of the two pre-trained parts."""

    config: Pi0Config
    dtype: Any
    scan_layers: bool
    remat: layers.Remat
    constrain: layers.Constrain
    gather: layers.Gather
    lora: tuple[LoraRule, ...]

    def setup(self) -> None:
        how = dict(
            dtype=self.dtype,
            scan_layers=self.scan_layers,
            remat=self.remat,
            constrain=self.constrain,
            gather=self.gather,
            lora=self.lora,
        )
        self.img = SigLIP(
            self.config.vision, output_width=self.config.gemma.experts[0].width, **how
        )
        self.llm = Gemma(self.config.gemma, **how)


class Pi0(nn.Module):
    config: Pi0Config
    dtype: Any = jnp.bfloat16  # of matrix products and activations; parameters are float32
    scan_layers: bool = True
    remat: layers.Remat = "none"
    constrain: layers.Constrain = layers.unconstrained
    gather: layers.Gather = layers.ungathered
    lora: tuple[
        LoraRule, ...
    ] = ()  # scales of the variables in collection "lora", where there are any; see lora.py

    def setup(self) -> None:
        self.PaliGemma = PaliGemma(
            self.config,
            self.dtype,
            self.scan_layers,
            self.remat,
            self.constrain,
            self.gather,
            self.lora,
        )

    @nn.compact
    def projections(self) -> dict[str, Any]:
        """Of state, actions and time into and out of the action expert."""
        return declare(self, projection_table(self.config))

    def project(self, name: str, x: jax.Array, dtype: Any) -> jax.Array:
        """[..., in] -> dtype[..., out] by the named projection."""
        params = self.gather(self.projections()[name], path=(*self.path, name), dtype=dtype)
        return layers.dense(x.astype(dtype), params["kernel"]) + params["bias"].astype(dtype)

    def declare(self) -> None:
        """Declares every parameter, no forward pass: `model.init(key, method="declare")`."""
        self.PaliGemma.img.params()
        self.PaliGemma.llm.params()
        self.projections()

    def encode_image(self, images: jax.Array) -> jax.Array:
        """float32[B, S, S, 3] in [-1, 1] -> dtype[B, patches, width of expert 0]."""
        return self.PaliGemma.img(images)

    def embed_prefix(self, observation: Observation) -> tuple[jax.Array, jax.Array]:
        """Image and prompt embeddings side by side: dtype[B, P, width of expert 0], and which are real: bool[B, P]."""
        slots = [slot for slot in CAMERA_SLOTS if slot in observation.images]
        tokens = self.PaliGemma.llm.embed(observation.tokens)
        batch = tokens.shape[0]
        if not slots:
            return tokens, observation.token_mask
        # One encoder call for all cameras. A row's cameras are neighbours on the batch axis, so that no device needs another's images.
        images = jnp.stack(
            [observation.images[slot] for slot in slots], axis=1
        )  # [B, slots, S, S, 3]
        patches = self.PaliGemma.img(images.reshape(-1, *images.shape[2:])).reshape(
            batch, -1, tokens.shape[2]
        )  # [B, slots * P, W]
        seen = jnp.stack([observation.image_masks[slot] for slot in slots], axis=1)  # [B, slots]
        valid = jnp.concatenate(
            [jnp.repeat(seen, patches.shape[1] // len(slots), axis=1), observation.token_mask],
            axis=1,
        )
        return self.constrain(
            jnp.concatenate([patches, tokens], axis=1), ("batch", "tokens", "embed")
        ), valid

    def embed_suffix(self, state: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """State float32[B, D], noisy actions float32[B, K, H, D], times float32[B, K] -> dtype[B, 1 + K*H, W].

        An action token is W3 swish(W2 [W1 a, code(t)]) (paper, appendix B), with biases.
        """
        batch, draws, horizon, _ = x_t.shape
        actions = self.project("action_in_proj", x_t, self.dtype)  # [B, K, H, W]
        time = time_code(t, actions.shape[-1]).astype(self.dtype)
        time = jnp.broadcast_to(time[:, :, None, :], actions.shape)
        hidden = jax.nn.swish(
            self.project(
                "action_time_mlp_in", jnp.concatenate([actions, time], axis=-1), self.dtype
            )
        )
        actions = self.project("action_time_mlp_out", hidden, self.dtype).reshape(
            batch, draws * horizon, -1
        )
        state = self.project("state_proj", state, self.dtype)[:, None, :]
        return self.constrain(
            jnp.concatenate([state, actions], axis=1), ("batch", "tokens", "embed")
        )

    def velocity(self, observation: Observation, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """The full forward pass, for training: x_t float32[B, K, H, D], t float32[B, K] -> velocity float32[B, K, H, D]."""
        prefix, valid = self.embed_prefix(observation)
        suffix = self.embed_suffix(observation.state, x_t, t)
        layout = dict(horizon=x_t.shape[2], draws=x_t.shape[1])
        positions = jnp.concatenate(
            [masks.prefix_positions(valid), masks.suffix_positions(valid, **layout)], axis=1
        )
        mask = masks.full_mask(valid, **layout)
        (_, out), _ = self.PaliGemma.llm((prefix, suffix), positions, mask, read=(False, True))
        return self.decode(out, x_t.shape)

    def prefill(self, observation: Observation) -> tuple[KVCache, jax.Array]:
        """Runs the prefix once: its keys and values in every layer, and which of its tokens are real (bool[B, P])."""
        prefix, valid = self.embed_prefix(observation)
        positions = masks.prefix_positions(valid)
        _, cache = self.PaliGemma.llm(
            (prefix, None), positions, masks.prefix_mask(valid), read=(False, False)
        )
        return cache, valid

    def cached_velocity(
        self, cache: KVCache, valid: jax.Array, state: jax.Array, x_t: jax.Array, t: jax.Array
    ) -> jax.Array:
        """`velocity` for a prefix that `prefill` has run."""
        suffix = self.embed_suffix(state, x_t, t)
        layout = dict(horizon=x_t.shape[2], draws=x_t.shape[1])
        positions, mask = (
            masks.suffix_positions(valid, **layout),
            masks.suffix_mask(valid, **layout),
        )
        (_, out), _ = self.PaliGemma.llm(
            (None, suffix), positions, mask, cache=cache, read=(False, True)
        )
        return self.decode(out, x_t.shape)

    def decode(self, out: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The action tokens' outputs, linearly: dtype[B, 1 + K*H, W] -> float32[B, K, H, D]."""
        return self.project("action_out_proj", out[:, 1:], jnp.float32).reshape(shape)


def projection_table(config: Pi0Config) -> dict[str, Any]:
    """Shapes and initialisers of the projections, under the published names."""
    width, action_dim = config.gemma.experts[1].width, config.action_dim

    def projection(inputs: int, outputs: int) -> dict[str, Param]:
        return {
            "kernel": Param((inputs, outputs), jax.nn.initializers.lecun_normal()),
            "bias": Param((outputs,), zeros),
        }

    return {
        "state_proj": projection(action_dim, width),
        "action_in_proj": projection(action_dim, width),
        "action_time_mlp_in": projection(2 * width, width),
        "action_time_mlp_out": projection(width, width),
        "action_out_proj": projection(width, action_dim),
    }


def parameter_shapes(config: Pi0Config) -> Any:
    """The parameter tree as ShapeDtypeStructs; allocates nothing."""
    vision = siglip.param_table(config.vision, output_width=config.gemma.experts[0].width)
    table = {
        "PaliGemma": {"img": vision, "llm": gemma.param_table(config.gemma)},
        **projection_table(config),
    }
    return jax.tree.map(
        lambda param: jax.ShapeDtypeStruct(param.shape, jnp.float32),
        table,
        is_leaf=lambda x: isinstance(x, Param),
    )


def sample_actions(
    params: Any,
    observation: Observation,
    noise: jax.Array,
    *,
    model: Pi0,
    num_steps: int,
    dim_mask: jax.Array | None = None,
    factors: Mapping[str, Any] | None = None,
) -> jax.Array:
    """Actions float32[B, H, D] in model units from noise of that shape: the prefix once, then `num_steps` Euler steps.

    `dim_mask`, bool[B, D], is for models trained on real dimensions only: the others hold zero all the way, as they did in training.
    `factors`: LoRA's, if the weights are not merged.
    """
    given = variables(params, factors)
    cache, valid = model.apply(given, observation, method="prefill")

    def velocity(x_t: jax.Array, t: jax.Array) -> jax.Array:
        v = model.apply(given, cache, valid, observation.state, x_t, t, method="cached_velocity")
        return v if dim_mask is None else flow.mask_dims(v, dim_mask)

    return flow.integrate(
        velocity, noise if dim_mask is None else flow.mask_dims(noise, dim_mask), num_steps
    )


def time_code(t: jax.Array, width: int) -> jax.Array:
    """float32[...] -> float32[..., width]: sines, then cosines, of 2*pi*t over periods from 0.004 to 4, geometrically spaced."""
    angle = t.astype(jnp.float32)[..., None] * time_frequencies(width // 2)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def time_frequencies(count: int) -> np.ndarray:
    """float32[count], radians per unit of time: a host constant, the same on every device.

    Each operation is rounded to float32 in the published order: an angle reaches 1,571 rad, so one unit in the last place of a frequency
    already moves the velocity by 1e-4.
    """
    fraction = np.arange(count, dtype=np.float32) * np.float32(1.0 / max(count - 1, 1))
    fraction[-1] = 1.0
    ratio = np.float64(np.float32(MAX_PERIOD / MIN_PERIOD)) ** fraction.astype(np.float64)
    period = np.float32(MIN_PERIOD) * ratio.astype(np.float32)
    return np.float32(1.0) / period * np.float32(2.0) * np.float32(np.pi)
