"""The same inputs run through our model and through others', with converted weights.

torch is needed, and for each comparison its port. LeRobot reports a file that does not fit and goes
on with random weights. So every tensor that it loaded is compared with the file's.
"""

import dataclasses
import gc
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pi0_jax.convert.formats import open_checkpoint
from pi0_jax.convert.huggingface_names import is_published
from pi0_jax.convert.safetensors_file import SafetensorsFiles
from pi0_jax.convert.shards import SINGLE
from pi0_jax.convert.source import Source, bits
from pi0_jax.errors import InputError
from pi0_jax.models.gemma import ExpertConfig, Gemma, GemmaConfig
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.paths import flatten, unflatten
from pi0_jax.models.pi0 import Pi0, Pi0Config
from pi0_jax.models.sampling import sample
from pi0_jax.models.siglip import SigLIP, VisionConfig
from pi0_jax.observation import CAMERA_SLOTS, Observation


class Comparison(NamedTuple):
    """Holds how far an output of ours (a) is from the other's (b)."""

    output: str
    absolute: float  # max|a-b|
    relative: float  # max|a-b| / max|b|


def _compare(output: str, ours: np.ndarray, theirs: np.ndarray) -> Comparison:
    """Compares two outputs."""
    assert ours.shape == theirs.shape, (output, ours.shape, theirs.shape)
    error = float(np.abs(ours - theirs).max())
    return Comparison(output, error, error / float(np.abs(theirs).max()))


def environment() -> str:
    """Says in a sentence what the comparisons ran on."""
    import torch
    import transformers

    versions = (
        f"JAX {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return f"float32 on a CPU, Python {platform.python_version()}, {versions}."


# ---- Hugging Face's PaliGemma, at toy size

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
        ours = open_checkpoint(folder).tree()["PaliGemma"]
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
        _compare("image tokens", np.asarray(image_tokens), projected),
        _compare("language model's outputs", outputs, read),
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


# ---- LeRobot's π0, at full size


def lerobot_installed() -> bool:
    """Returns whether LeRobot can be imported."""
    try:
        import lerobot  # noqa: F401
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def compare_with_lerobot(
    source: Source, directory: str | Path, *, num_steps: int = 10
) -> list[Comparison]:
    """Compares actions from the same noise, in float32 on the CPU.

    One model runs after the other, because each needs all of its weights in memory.

    Args:
        source: our weights.
        directory: LeRobot's policy directory with the same weights.
        num_steps: Euler steps.

    Raises:
        InputError: LeRobot did not load a tensor as the file has it.
    """
    model = source.model_config()
    observation, noise = inputs(model)
    ours = _our_actions(source, model, observation, noise, num_steps)
    gc.collect()
    return [
        _compare(
            f"actions after {num_steps} steps",
            ours,
            _their_actions(Path(directory), observation, noise, num_steps),
        )
    ]


def run_lerobot(source: Source, directory: str | Path) -> str:
    """Returns the errors in words, or why there are none."""
    if not lerobot_installed():
        return "not run by LeRobot: it is not installed"
    if not is_published(source.sizes):
        return "not run by LeRobot: it builds the published sizes only"
    found = compare_with_lerobot(source, directory)
    return "\n".join(
        f"{c.output}, LeRobot's and ours: max error {c.absolute:.1e}, {c.relative:.1e} of the largest"
        for c in found
    )


def inputs(model: Pi0Config) -> tuple[Observation, jax.Array]:
    """Returns one observation and noise, the same on every machine.

    The observation has no right wrist camera and a padded prompt. The noise is float32[1, H, D].
    """
    rng = np.random.default_rng(0)
    size, length = model.vision.image_size, model.max_tokens
    pixels = {
        slot: rng.uniform(-1, 1, (1, size, size, 3)).astype(np.float32) for slot in CAMERA_SLOTS
    }
    masks = {slot: np.array([slot != "right_wrist_0_rgb"]) for slot in CAMERA_SLOTS}
    token_mask = np.arange(length)[None] < length * 3 // 4
    tokens = np.where(token_mask, rng.integers(4, model.gemma.vocab_size, (1, length)), 0).astype(
        np.int32
    )
    state = rng.standard_normal((1, model.action_dim)).astype(np.float32)
    noise = rng.standard_normal((1, model.horizon, model.action_dim)).astype(np.float32)
    arrays = jax.tree.map(jnp.asarray, (pixels, masks, tokens, token_mask, state))
    return Observation(*arrays), jnp.asarray(noise)


def _our_actions(
    source: Source, model: Pi0Config, observation: Observation, noise: jax.Array, num_steps: int
) -> np.ndarray:
    """Samples actions with our model."""
    flat = {path: jnp.asarray(source.read(path), jnp.float32) for path in source.leaves}
    params = unflatten(flat)
    # It runs operation by operation. A compiled program would slice all layers' weights out of
    # their stacks at once.
    with jax.disable_jit(), jax.default_matmul_precision("highest"):
        module = Pi0(model, dataclasses.replace(_FLOAT32, scan_layers=False))
        return np.asarray(
            sample(
                params,
                observation,
                noise,
                model=module,
                num_steps=num_steps,
            )
        )


def _their_actions(
    directory: Path, observation: Observation, noise: jax.Array, num_steps: int
) -> np.ndarray:
    """Samples actions with LeRobot's model."""
    import torch
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy

    pixels, seen, tokens, token_mask, state, start = jax.tree.map(np.array, (*observation, noise))
    policy = PI0Policy.from_pretrained(directory).float().eval()
    _check_loaded(directory, policy.state_dict())
    images = [torch.from_numpy(pixels[slot].transpose(0, 3, 1, 2).copy()) for slot in CAMERA_SLOTS]
    masks = [torch.from_numpy(seen[slot]) for slot in CAMERA_SLOTS]
    with torch.no_grad():
        actions = policy.model.sample_actions(
            images,
            masks,
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(token_mask),
            torch.from_numpy(state),
            noise=torch.from_numpy(start),
            num_steps=num_steps,
        )
    return actions.numpy()


def _check_loaded(directory: Path, loaded: Mapping[str, Any]) -> None:
    """Raises InputError if LeRobot's model does not hold what the file has."""
    files = SafetensorsFiles([directory / SINGLE])
    apart = sorted(files.infos.keys() ^ loaded.keys())
    if apart:
        raise InputError(
            f"{directory}: {', '.join(apart[:3])}: in the file or in LeRobot's model, not in both"
        )
    for name in files.infos:
        if not np.array_equal(
            bits(files.read(name).astype(np.float32, copy=False)), bits(loaded[name].numpy())
        ):
            raise InputError(
                f"{directory}: {name}: LeRobot's model does not hold what the file has"
            )
