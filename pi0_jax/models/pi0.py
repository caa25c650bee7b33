"""π0: PaliGemma for images and prompt, an expert for state and noisy actions, one shared attention.

    [base | left wrist | right wrist | prompt] [state] [action 1 ... action H] x K
     \\_____ prefix: P tokens, expert 0 _____/  \\_____ suffix: 1 + K*H tokens, expert 1 ____/

π0.5 is a variant of it, whose action expert has adaptive norms (`Pi0Config.adaptive`):

              state                              time                     suffix
    π0        a token                            added to each action     1 + K*H tokens
    π0.5      text in the prompt (preprocess/)   in the expert's norms    K*H tokens

Axes: B batch, K draws of noise and time, H horizon, D action (and state) dimension, P prefix
tokens, T suffix tokens (Z + K*H, Z tokens of the state), L prompt tokens, S image side, C camera
slots, V width of the language model, W width of the action expert. `Float` is the dtype that the
model computes in.
Sources: π0 (arXiv 2410.24164), section IV and appendix B, with the published code's deviations:
8 heads, biases in every projection, time running from 1 (noise) to 0 (data), see flow.py. π0.5
(arXiv 2504.16054) as its published code has it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from pi0_jax.models import gemma, layers, masks, siglip
from pi0_jax.models.gemma import ExpertConfig, Gemma, GemmaConfig, KVCache
from pi0_jax.models.initializers import Param, Table, draw_table, fan_in_normal, normal
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.siglip import SigLIP, VisionConfig
from pi0_jax.models.time_code import time_code
from pi0_jax.observation import CAMERA_SLOTS, Observation


@dataclasses.dataclass(frozen=True)
class Pi0Config:
    """Holds the sizes of a π0.

    Attributes:
        vision: the sizes of the image encoder.
        gemma: the sizes of the language model and the action expert, in this order.
        action_dim: D, dimensions of actions and state, padding included.
        horizon: H, steps of an action chunk.
        max_tokens: L, tokens of a prompt.
        embodiment_tokens: how many robots have a learnt token, which stands before the prompt.
    """

    vision: VisionConfig
    gemma: GemmaConfig
    action_dim: int
    horizon: int
    max_tokens: int
    embodiment_tokens: int = 0

    @property
    def adaptive(self) -> bool:
        """Returns whether time enters through the action expert's norms: whether it is a π0.5."""
        return self.gemma.experts[1].adaptive

    @property
    def state_tokens(self) -> int:
        """Returns Z, the number of the state's tokens."""
        return 0 if self.adaptive else 1


def pi05(pi0: Pi0Config, max_tokens: int) -> Pi0Config:
    """Returns the π0.5 of a π0's sizes, with prompts of another length for the state in them."""
    backbone, expert = pi0.gemma.experts
    experts = (backbone, dataclasses.replace(expert, adaptive=True))
    gemma = dataclasses.replace(pi0.gemma, experts=experts)
    return dataclasses.replace(pi0, gemma=gemma, max_tokens=max_tokens)


# The sizes of every part, for each variant.
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
    # It learns the reach world on a laptop CPU in minutes.
    "nano": Pi0Config(
        vision=VisionConfig(image_size=64, patch_size=16, width=64, depth=2, mlp_dim=256, num_heads=8),
        gemma=GemmaConfig(
            experts=(ExpertConfig(width=96, mlp_dim=192), ExpertConfig(width=64, mlp_dim=128)),
            depth=4, num_heads=4, num_kv_heads=1, head_dim=24, vocab_size=512,
        ),
        action_dim=8, horizon=10, max_tokens=16,
    ),
    # It is for tests, because it compiles in seconds.
    "pico": Pi0Config(
        vision=VisionConfig(image_size=32, patch_size=16, width=16, depth=2, mlp_dim=32, num_heads=2),
        gemma=GemmaConfig(
            experts=(ExpertConfig(width=32, mlp_dim=48), ExpertConfig(width=24, mlp_dim=40)),
            depth=3, num_heads=4, num_kv_heads=2, head_dim=8, vocab_size=512,
        ),
        action_dim=6, horizon=4, max_tokens=12,
    ),
    # It learns a planar world from state and prompt in a CPU minute, for experiments of many seeds
    # (lab/). The image encoder is there because the tree is the published one; it never runs.
    "femto": Pi0Config(
        vision=VisionConfig(image_size=16, patch_size=16, width=8, depth=1, mlp_dim=8, num_heads=1),
        gemma=GemmaConfig(
            experts=(ExpertConfig(width=16, mlp_dim=32), ExpertConfig(width=32, mlp_dim=64)),
            depth=2, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512,
        ),
        action_dim=4, horizon=8, max_tokens=8,
    ),
    # The same with an image of 16 patches, each of which shows all of a thing (lab/shapes.py).
    "femto_seeing": Pi0Config(
        vision=VisionConfig(image_size=32, patch_size=8, width=32, depth=1, mlp_dim=64, num_heads=2),
        gemma=GemmaConfig(
            experts=(ExpertConfig(width=32, mlp_dim=64), ExpertConfig(width=32, mlp_dim=64)),
            depth=3, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=512,
        ),
        action_dim=4, horizon=8, max_tokens=8,
    ),
}  # fmt: skip
# The published π0.5: 3,353,433,872 parameters.
VARIANTS["pi05"] = pi05(VARIANTS["pi0"], max_tokens=200)
VARIANTS["pi05_nano"] = pi05(VARIANTS["nano"], max_tokens=64)
VARIANTS["pi05_pico"] = pi05(VARIANTS["pico"], max_tokens=64)


class PaliGemma(nn.Module):
    """Holds the two pre-trained parts, under their published names."""

    config: Pi0Config
    options: ComputeOptions

    def setup(self) -> None:
        """Makes the parts."""
        width = self.config.gemma.experts[0].width
        self.img = SigLIP(self.config.vision, output_width=width, options=self.options)
        self.llm = Gemma(self.config.gemma, self.options)


class Pi0(nn.Module):
    """Is the model, a Flax module whose methods are passed to Flax as functions.

        model = Pi0(VARIANTS["nano"], ComputeOptions(dtype=jnp.float32))
        params = model.init(key, method=Pi0.declare)["params"]
        v = model.apply({"params": params}, observation, x_t, t, method=Pi0.velocity)

    Attributes:
        config: the sizes.
        options: how it is computed; the parameter tree is the same whatever they say.
    """

    config: Pi0Config
    options: ComputeOptions = ComputeOptions()

    def setup(self) -> None:
        """Makes the parts and declares the projections."""
        self.PaliGemma = PaliGemma(self.config, self.options)
        # They project state, actions and time into the action expert, and its output to velocities.
        table = projection_table(self.config)
        self.projections = {name: self.param(name, draw_table, table[name]) for name in table}

    def declare(self) -> None:
        """Declares every parameter and runs no forward pass: `init(key, method=Pi0.declare)`."""
        self.PaliGemma.img.declare()
        self.PaliGemma.llm.declare()

    def encode_image(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B patches V"]:
        """Encodes one camera's images, with values in [-1, 1]."""
        return self.PaliGemma.img(images)

    def embed_prefix(
        self, observation: Observation
    ) -> tuple[Float[Array, "B P V"], Bool[Array, "B P"]]:
        """Embeds images, perhaps the robot's own token, and the prompt, side by side.

        A camera slot that the observation lacks takes no tokens; which slots there are is static.

        Returns:
            The prefix's tokens, and which of them are real.
        """
        slots = [slot for slot in CAMERA_SLOTS if slot in observation.images]
        tokens = self.PaliGemma.llm.embed(observation.tokens)  # [B, L, V]
        valid = observation.token_mask
        if self.config.embodiment_tokens:
            own = self._gathered("embodiment_tokens", tokens.dtype)["embedding"]
            own = own[observation.embodiment].astype(tokens.dtype)  # [B, V]
            tokens = jnp.concatenate([own[:, None], tokens], axis=1)
            valid = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        if not slots:
            return tokens, valid
        # One encoder call for all cameras. A row's cameras are neighbours on the batch axis, so no
        # device needs another's images.
        images = jnp.stack([observation.images[slot] for slot in slots], axis=1)  # [B, C, S, S, 3]
        patches = self.PaliGemma.img(images.reshape(-1, *images.shape[2:]))  # [B * C, patches, V]
        count = patches.shape[1]
        patches = patches.reshape(tokens.shape[0], -1, tokens.shape[2])  # [B, C * patches, V]
        seen = jnp.stack([observation.image_masks[slot] for slot in slots], axis=1)  # [B, C]
        seen = jnp.repeat(seen, count, axis=1)  # [B, C * patches]
        valid = jnp.concatenate([seen, valid], axis=1)  # [B, P]
        prefix = jnp.concatenate([patches, tokens], axis=1)  # [B, P, V]
        return self.options.constrain(prefix, ("batch", "tokens", "embed")), valid

    def embed_suffix(
        self,
        state: Float32[Array, "B D"],
        x_t: Float32[Array, "B K H D"],
        t: Float32[Array, "B K"],
    ) -> Float[Array, "B T W"]:
        """Embeds the state and the noisy actions.

        An action token of π0.5 is W1 a. One of π0 is W3 swish(W2 [W1 a, code(t)]) (paper, appendix
        B), with biases. W2's product with the time's code is the same for all actions of a draw, so
        it is computed once for each draw and added: W2 [W1 a, code(t)] = W2a W1 a + W2t code(t).

        Returns:
            The state's token, which π0.5 has not, then those of each draw.
        """
        dtype = self.options.dtype
        actions = self.project("action_in_proj", x_t, dtype)  # [B, K, H, W]
        batch, width = len(actions), actions.shape[-1]
        if self.config.adaptive:
            suffix = actions.reshape(batch, -1, width)  # [B, K*H, W]
            return self.options.constrain(suffix, ("batch", "tokens", "embed"))
        mlp_in = self._gathered("action_time_mlp_in", dtype)
        code = time_code(t, width).astype(dtype)  # [B, K, W]
        # The two parts of W2's product are added in float32, as one product would add them.
        from_time = layers.dense(code, mlp_in["kernel"][width:], dtype=jnp.float32)  # [B, K, W]
        from_time = from_time + mlp_in["bias"].astype(dtype)
        from_actions = layers.dense(actions, mlp_in["kernel"][:width], dtype=jnp.float32)
        hidden = from_actions + from_time[:, :, None]  # float32[B, K, H, W]
        hidden = jax.nn.swish(hidden.astype(dtype))
        actions = self.project("action_time_mlp_out", hidden, dtype).reshape(batch, -1, width)
        from_state = self.project("state_proj", state, dtype)  # [B, W]
        suffix = jnp.concatenate([from_state[:, None], actions], axis=1)  # [B, 1 + K*H, W]
        return self.options.constrain(suffix, ("batch", "tokens", "embed"))

    def condition(self, t: Float32[Array, "B K"]) -> Float[Array, "B K W"] | None:
        """Returns what modulates the norms of π0.5's action expert; None in π0.

        It is swish(W2 swish(W1 code(t))), with biases.
        """
        if not self.config.adaptive:
            return None
        code = time_code(t, self.config.gemma.experts[1].width)  # [B, K, W]
        hidden = jax.nn.swish(self.project("time_mlp_in", code, self.options.dtype))
        return jax.nn.swish(self.project("time_mlp_out", hidden, self.options.dtype))

    def velocity(
        self,
        observation: Observation,
        x_t: Float32[Array, "B K H D"],
        t: Float32[Array, "B K"],
    ) -> Float32[Array, "B K H D"]:
        """Predicts the velocity by the full forward pass, for training.

        Args:
            observation: see observation.py.
            x_t: noisy actions.
            t: their times.
        """
        prefix, valid = self.embed_prefix(observation)
        suffix = self.embed_suffix(observation.state, x_t, t)
        _, draws, horizon, _ = x_t.shape
        states = self.config.state_tokens
        # [B, P + T, P + T]
        mask = masks.full_mask(valid, horizon=horizon, draws=draws, states=states)
        # [B, P + T]
        positions = masks.full_positions(valid, horizon=horizon, draws=draws, states=states)
        conditions = (None, self.condition(t))
        (out,), _ = self.PaliGemma.llm(
            (prefix, suffix), positions, mask, conditions=conditions, read=(False, True)
        )
        return self.decode(out, x_t.shape)

    def prefill(self, prefix: Float[Array, "B P V"], valid: Bool[Array, "B P"]) -> KVCache:
        """Runs the prefix, for all velocities that are asked for later.

        Args:
            prefix: of `embed_prefix`.
            valid: which of its tokens are real.

        Returns:
            Its keys and values in every layer.
        """
        positions, mask = masks.prefix_positions(valid), masks.prefix_mask(valid)
        _, cache = self.PaliGemma.llm((prefix, None), positions, mask, read=(False, False))
        return cache

    def cached_velocity(
        self,
        cache: KVCache,
        valid: Bool[Array, "B P"],
        state: Float32[Array, "B D"],
        x_t: Float32[Array, "B K H D"],
        t: Float32[Array, "B K"],
    ) -> Float32[Array, "B K H D"]:
        """Predicts what `velocity` predicts, for a prefix that `prefill` has run.

        Args:
            cache: the keys and values of `prefill`.
            valid: which of the prefix's tokens are real.
            state: normalised, zero-padded.
            x_t: noisy actions.
            t: their times.
        """
        suffix = self.embed_suffix(state, x_t, t)
        _, draws, horizon, _ = x_t.shape
        states = self.config.state_tokens
        # [B, T, P + T]
        mask = masks.suffix_mask(valid, horizon=horizon, draws=draws, states=states)
        # [B, T]
        positions = masks.suffix_positions(valid, horizon=horizon, draws=draws, states=states)
        (out,), _ = self.PaliGemma.llm(
            (None, suffix),
            positions,
            mask,
            cache=cache,
            conditions=(None, self.condition(t)),
            read=(False, True),
        )
        return self.decode(out, x_t.shape)

    def decode(
        self, out: Float[Array, "B T W"], shape: tuple[int, ...]
    ) -> Float32[Array, "B K H D"]:
        """Projects the suffix's outputs, but for the state's, to velocities of this shape."""
        actions = out[:, self.config.state_tokens :]  # [B, K*H, W]
        return self.project("action_out_proj", actions, jnp.float32).reshape(shape)

    def project(
        self, name: str, x: Float[Array, "*axes inputs"], dtype: Any
    ) -> Float[Array, "*axes outputs"]:
        """Applies the named projection, in this dtype."""
        params = self._gathered(name, dtype)
        return layers.dense(x.astype(dtype), params["kernel"]) + params["bias"].astype(dtype)

    def _gathered(self, name: str, dtype: Any) -> Mapping[str, Array]:
        """Returns kernel and bias of the named projection, ready for use in this dtype."""
        own = self.projections[name]
        gathered: Mapping[str, Array] = self.options.gather(own, (*self.path, name), dtype)
        return gathered


def projection_table(config: Pi0Config) -> Table:
    """Returns shapes and initializers of the projections, under the published names."""
    width, action_dim = config.gemma.experts[1].width, config.action_dim
    shapes = {"action_in_proj": (action_dim, width), "action_out_proj": (width, action_dim)}
    if config.adaptive:
        shapes |= {"time_mlp_in": (width, width), "time_mlp_out": (width, width)}
    else:
        shapes |= {
            "state_proj": (action_dim, width),
            "action_time_mlp_in": (2 * width, width),
            "action_time_mlp_out": (width, width),
        }
    table = {
        name: {"kernel": Param(shape, fan_in_normal(shape[0])), "bias": Param(shape[1:], 0.0)}
        for name, shape in shapes.items()
    }
    if robots := config.embodiment_tokens:
        embedding = Param((robots, config.gemma.experts[0].width), normal(1.0))
        table["embodiment_tokens"] = {"embedding": embedding}
    return table


def parameter_shapes(config: Pi0Config) -> Any:
    """Returns the parameter tree as ShapeDtypeStructs, and allocates nothing."""
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
