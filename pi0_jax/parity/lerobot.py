"""The same inputs run through our π0 and through LeRobot's, at full size, with converted weights.

torch and LeRobot are needed. LeRobot reports a file that does not fit and goes on with random
weights. So every tensor that it loaded is compared with the file's.
"""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0_jax.convert import Source
from pi0_jax.convert.huggingface_names import is_published
from pi0_jax.convert.lerobot import policy_type
from pi0_jax.convert.safetensors_files import read_file
from pi0_jax.errors import InputError
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.paths import unflatten
from pi0_jax.models.pi0 import Pi0, Pi0Config
from pi0_jax.models.sampling import sample
from pi0_jax.observation import CAMERA_SLOTS, Observation
from pi0_jax.parity import Comparison, compare


def compare_with_lerobot(
    source: Source, directory: str | Path, *, num_steps: int = 10
) -> Comparison:
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
    kind = policy_type(source.sizes)
    theirs = _their_actions(kind, Path(directory), observation, noise, num_steps)
    return compare(f"actions after {num_steps} steps", ours, theirs)


def run_lerobot(source: Source, directory: str | Path) -> str:
    """Returns the errors in words, or why there are none."""
    try:
        import lerobot  # noqa: F401
        import torch  # noqa: F401
    except ImportError:
        return "not run by LeRobot: it is not installed"
    if not is_published(source.sizes):
        return "not run by LeRobot: it builds the published sizes only"
    output, absolute, relative = compare_with_lerobot(source, directory)
    return f"{output}, LeRobot's and ours: max error {absolute:.1e}, {relative:.1e} of the largest"


def inputs(model: Pi0Config) -> tuple[Observation, jax.Array]:
    """Returns one observation and noise, the same on every machine.

    The observation has no right wrist camera and a padded prompt. The noise is float32[1, H, D].
    """
    rng = np.random.default_rng(0)
    size, length = model.vision.image_size, model.max_tokens
    shape = (1, size, size, 3)
    pixels = {slot: rng.uniform(-1, 1, shape).astype(np.float32) for slot in CAMERA_SLOTS}
    masks = {slot: np.array([slot != "right_wrist_0_rgb"]) for slot in CAMERA_SLOTS}
    token_mask = np.arange(length)[None] < length * 3 // 4
    drawn = rng.integers(4, model.gemma.vocab_size, (1, length))
    tokens = np.where(token_mask, drawn, 0).astype(np.int32)
    state = rng.standard_normal((1, model.action_dim)).astype(np.float32)
    noise = rng.standard_normal((1, model.horizon, model.action_dim)).astype(np.float32)
    arrays = jax.tree.map(jnp.asarray, (pixels, masks, tokens, token_mask, state))
    return Observation(*arrays), jnp.asarray(noise)


def _our_actions(
    source: Source, model: Pi0Config, observation: Observation, noise: jax.Array, num_steps: int
) -> np.ndarray:
    flat = {path: jnp.asarray(source.read(path), jnp.float32) for path in source.leaves}
    params = unflatten(flat)
    module = Pi0(model, ComputeOptions(dtype=jnp.float32, scan_layers=False))
    # It runs operation by operation. A compiled program would slice all layers' weights out of
    # their stacks at once.
    with jax.disable_jit(), jax.default_matmul_precision("highest"):
        return np.asarray(sample(params, observation, noise, model=module, num_steps=num_steps))


def _their_actions(
    kind: str, directory: Path, observation: Observation, noise: jax.Array, num_steps: int
) -> np.ndarray:
    import torch
    from lerobot.policies.factory import get_policy_class

    pixels, seen, tokens, token_mask, state, start = jax.tree.map(np.array, (*observation, noise))
    policy = get_policy_class(kind).from_pretrained(directory).float().eval()
    _check_loaded(directory, policy.state_dict())
    images = [torch.from_numpy(pixels[slot].transpose(0, 3, 1, 2).copy()) for slot in CAMERA_SLOTS]
    masks = [torch.from_numpy(seen[slot]) for slot in CAMERA_SLOTS]
    with torch.no_grad():
        actions = policy.model.sample_actions(
            images,
            masks,
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(token_mask),
            *([torch.from_numpy(state)] if kind == "pi0" else []),
            noise=torch.from_numpy(start),
            num_steps=num_steps,
        )
    return actions.numpy()


def _check_loaded(directory: Path, loaded: Mapping[str, Any]) -> None:
    """Raises InputError if LeRobot's model does not hold what the file has, to the bit."""
    kept = read_file(directory / "model.safetensors")
    if apart := sorted(kept.keys() ^ loaded.keys()):
        raise InputError(f"{directory}: {apart[0]}: expected in the file and in LeRobot's model")
    for name, tensor in kept.items():
        if tensor.read(None).astype(np.float32).tobytes() != loaded[name].numpy().tobytes():
            raise InputError(f"{directory}: {name}: LeRobot's model holds other numbers")
