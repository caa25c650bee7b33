"""Our SigLIP and Gemma run beside transformers' PaliGemma, at toy size, with converted weights.

torch and transformers are needed.
"""

import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0_jax import convert
from pi0_jax.models.gemma import ExpertConfig, Gemma, GemmaConfig
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.paths import flatten, unflatten
from pi0_jax.models.siglip import SigLIP, VisionConfig
from pi0_jax.parity import Comparison, compare

_FLOAT32 = ComputeOptions(dtype=jnp.float32)
_VISION = VisionConfig(image_size=42, patch_size=14, width=20, depth=2, mlp_dim=28, num_heads=4)
_GEMMA = GemmaConfig(
    experts=(ExpertConfig(24, 36), ExpertConfig(16, 44)), depth=3, num_heads=6, num_kv_heads=2, head_dim=8, vocab_size=66
)  # fmt: skip


def compare_with_transformers() -> list[Comparison]:
    """Compares with a random PaliGemma of transformers, which transformers saves in shards.

    The outputs are the image tokens and the language model's. It is causal there, so it is causal
    here.
    """
    import torch

    theirs = _their_paligemma()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder, max_shard_size="20KB")
        ours = convert.open(folder).tree()["PaliGemma"]
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, _VISION.image_size, _VISION.image_size, 3)).astype(np.float32)
    tokens = rng.integers(0, _GEMMA.vocab_size, (2, 9)).astype(np.int32)
    with torch.no_grad():
        tower = theirs.model.vision_tower(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        ).last_hidden_state
        projected = theirs.model.multi_modal_projector(tower).numpy()
        read = theirs.model.language_model(
            torch.from_numpy(tokens.astype(np.int64)), use_cache=False
        ).last_hidden_state.numpy()
    with jax.default_matmul_precision("highest"):
        encoder = SigLIP(_VISION, output_width=24, options=_FLOAT32)
        image_tokens = encoder.apply({"params": ours["img"]}, jnp.asarray(images))
        outputs = our_causal_outputs(ours["llm"], tokens)
    return [
        compare("image tokens", np.asarray(image_tokens), projected),
        compare("language model's outputs", outputs, read),
    ]


def _their_paligemma() -> Any:
    """Makes a small PaliGemma of transformers with random weights."""
    import torch
    import transformers

    text = dict(
        model_type="gemma", hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        head_dim=8, vocab_size=66, hidden_activation="gelu_pytorch_tanh", pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        model_type="siglip_vision_model", hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
        image_size=42, patch_size=14, projection_dim=24, vision_use_head=False, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    config = transformers.PaliGemmaConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=24,
        hidden_size=24,
        image_token_index=65,
    )
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    # Their fused attention is not causal where the language model is called alone.
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def our_causal_outputs(llm: Mapping[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Runs a language model of this file's sizes with a causal mask.

    Args:
        llm: its parameters.
        tokens: int32[B, T].

    Returns:
        float32[B, T, D].
    """
    batch, length = tokens.shape
    module = Gemma(_GEMMA, _FLOAT32)
    variables = {"params": _beside_an_expert(llm)}
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
    embedded = module.apply(variables, jnp.asarray(tokens), method=Gemma.embed)
    (out,), _ = module.apply(variables, (embedded, None), positions, mask, read=(True, False))
    return np.asarray(out)


def _beside_an_expert(llm: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the language model's leaves with zeros for the action expert, which takes no part."""
    shapes = jax.eval_shape(lambda: Gemma(_GEMMA).init(jax.random.key(0), method=Gemma.declare))[
        "params"
    ]
    zeros = flatten(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    return unflatten(zeros | flatten(llm))
