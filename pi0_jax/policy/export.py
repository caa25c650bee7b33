"""A policy is exported as files that run without this package.

    DIR/policy.jax            f(params, images, tokens, state, noise) -> actions, serialised by
                              jax.export for cpu, cuda and tpu
        weights.safetensors   params: name -> array
        tokenizer.model       SentencePiece model
        policy.json           what goes in and what comes out: names, shapes, dtypes, units

    f = jax.export.deserialize(open("DIR/policy.jax", "rb").read())
    params = jax.device_put(safetensors.numpy.load_file("DIR/weights.safetensors"))
    actions = jax.jit(f.call)(params, {"base_0_rgb": image[None], ...}, tokens, state[None], noise)

Images are uint8, state and actions in the robot's units. So only tokens are left to the caller:
beginning of sequence, the prompt's pieces, the pieces of a line break, zeros. Where the prompt
tells the state (π0.5), policy.json has "prompt": its text, in which the bins of the numbers
(state - offset) / scale stand for {state}; see preprocess/tokenizer.py. An angle that turns, one
with a turn above 0 in "turns", is first put to within half a turn of its "middle", by whole turns.
Normalisation happens in float32 here, and in float64 on a policy's host, so actions differ in their
last digits.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from pi0_jax import preprocess
from pi0_jax.embodiments import ActionDim, StateDim
from pi0_jax.errors import InputError
from pi0_jax.files import new_path
from pi0_jax.observation import RawBatch
from pi0_jax.preprocess import Layout, Robot, normalize
from pi0_jax.preprocess.tokenizer import PAD_ID, STATE_BINS, Tokenizer, prompt_with_state

PLATFORMS = ("cpu", "cuda", "tpu")

# (weights, RawBatch, bool[B, D] the robot's dimensions, noise float32[B, H, D], layout=)
# -> float32[B, H, D] in model units; jitted.
Sample = Callable[..., jax.Array]


def write(
    directory: Path,
    *,
    weights: Mapping[str, jax.Array],
    sample: Sample,
    layout: Layout,
    robot: Robot,
    tokenizer: Tokenizer,
    horizon: int,
    image_size: tuple[int, int],
    batch: int,
) -> None:
    """Exports a sampler with the robot's units around it; the folder appears when it is whole.

    Args:
        directory: the new folder.
        weights: the packed weights, by name.
        sample: the policy's jitted sampler.
        layout: the layout of the robot's observations.
        robot: the robot's embodiment and statistics.
        tokenizer: the prompts' tokenizer.
        horizon: H.
        image_size: height and width of every camera's image, in pixels.
        batch: B.

    Raises:
        InputError: something is there already.
    """
    if directory.exists():
        raise InputError(f"{directory}: expected nothing there to export to, found something")
    embodiment = robot.embodiment
    inputs = {
        "images": {
            slot: jax.ShapeDtypeStruct((batch, *image_size, 3), jnp.uint8) for slot in layout.slots
        },
        "tokens": jax.ShapeDtypeStruct((batch, layout.max_tokens), jnp.int32),
        "state": jax.ShapeDtypeStruct((batch, len(embodiment.state)), jnp.float32),
        "noise": jax.ShapeDtypeStruct((batch, horizon, layout.action_dim), jnp.float32),
    }
    params = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), dict(weights))
    policy = jax.jit(_in_robot_units(sample, layout, robot))
    exported = jax.export.export(policy, platforms=PLATFORMS)(params, *inputs.values())
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_path(directory.parent, f".{directory.name}-")
    temporary.mkdir()
    try:
        (temporary / "policy.jax").write_bytes(exported.serialize())
        arrays = jax.device_get(dict(weights))
        safetensors.numpy.save_file(arrays, temporary / "weights.safetensors")
        (temporary / "tokenizer.model").write_bytes(tokenizer.model)
        # The library writes a file that its user alone can read.
        shutil.copymode(temporary / "tokenizer.model", temporary / "weights.safetensors")
        description = _description(inputs, exported, robot, layout)
        (temporary / "policy.json").write_text(json.dumps(description, indent=1))
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _in_robot_units(sample: Sample, layout: Layout, robot: Robot) -> Callable[..., jax.Array]:
    """Returns the sampler with normalisation before it and physical units behind it."""

    def policy(
        params: Any,
        images: Mapping[str, jax.Array],
        tokens: jax.Array,
        state: jax.Array,
        noise: jax.Array,
    ) -> jax.Array:
        """Samples float32[B, H, A] from uint8[B, h, w, 3] per slot and the robot's state.

        Tokens are int32[B, L], the state is float32[B, n], the noise float32[B, H, D].
        """
        batch, width = tokens.shape[0], layout.action_dim
        sizes = {
            slot: jnp.broadcast_to(jnp.int32(image.shape[1:3]), (batch, 2))
            for slot, image in images.items()
        }
        present = {slot: jnp.ones(batch, bool) for slot in images}
        in_model = preprocess.state_to_model(state, robot, layout.normalization)
        in_model = normalize.clipped(in_model, layout.normalization_clip)
        padded = jnp.pad(in_model, ((0, 0), (0, width - in_model.shape[1])))
        numbers = preprocess.embodiment_numbers([robot] * batch, layout)
        observation = RawBatch(images, sizes, present, tokens, tokens != PAD_ID, padded, numbers)
        dims = jnp.asarray(preprocess.dimension_masks([robot] * batch, width))
        actions = sample(params, observation, dims, noise, layout=layout)
        return preprocess.to_robot(actions, state, robot, layout.normalization)

    return policy


def _description(
    inputs: Mapping[str, Any], exported: jax.export.Exported, robot: Robot, layout: Layout
) -> dict[str, Any]:
    """Returns the content of policy.json."""

    def array(x: Any, **more: Any) -> dict[str, Any]:
        return {"shape": list(x.shape), "dtype": str(x.dtype), **more}

    def units(dims: Iterable[StateDim | ActionDim]) -> list[list[str]]:
        return [[dim.name, dim.unit] for dim in dims]

    embodiment, (actions,) = robot.embodiment, exported.out_avals
    prompt = {}
    if layout.state_in_prompt:
        statistics, turns = robot.statistics.state, embodiment.readings.state
        offset, scale = normalize.offset_and_scale(statistics, layout.normalization)
        prompt["prompt"] = {
            "text": prompt_with_state("{prompt}", "{state}"),
            "bins": STATE_BINS,
            "offset": offset.tolist(),
            "scale": scale.tolist(),
            "turns": (np.zeros(len(offset)) if turns is None else turns).tolist(),
            "middle": statistics.mean.tolist(),
        }
    return {
        "robot": embodiment.robot,
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "inputs": {
            "images": {
                slot: array(image, camera=embodiment.cameras[slot], order="RGB")
                for slot, image in inputs["images"].items()
            },
            "tokens": array(inputs["tokens"], padding=PAD_ID, **prompt),
            "state": array(inputs["state"], dimensions=units(embodiment.state)),
            "noise": array(inputs["noise"], distribution="standard normal"),
        },
        "actions": array(actions, dimensions=units(embodiment.actions)),
        "image_rotation": embodiment.image_rotation,  # degrees by which the caller turns images
        "control_hz": embodiment.control_hz,
        "execute_steps": embodiment.execute_steps,
    }
