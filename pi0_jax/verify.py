"""Known-answer vectors test that the model gives the published implementation's numbers.

That holds on any device. A vectors file is an npz: `spec.json` (sizes), `params/<path>` (the
published tree), `in/...` (one batch of inputs) and `out/...` (what the published implementation
computed from them). `"pi05": true` among the sizes says that it is a π0.5's. Every array under
`out/` is recomputed and compared; nothing about sizes is assumed.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pi0_jax import flow
from pi0_jax.errors import InputError
from pi0_jax.models import paths
from pi0_jax.models.gemma import ExpertConfig, GemmaConfig
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import Pi0, Pi0Config, parameter_shapes
from pi0_jax.models.sampling import apply, sample
from pi0_jax.models.siglip import VisionConfig
from pi0_jax.observation import CAMERA_SLOTS, Observation

ASSETS = Path(__file__).parent / "assets"
SHIPPED_VECTORS = ASSETS / "pi0_toy_float32.npz"
SHIPPED_PI05_VECTORS = ASSETS / "pi05_toy_float32.npz"

# The relative error that is allowed: max|a-b| / max|b| over an array.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
# A gradient norm may differ by this share of itself plus this much. Attention key biases have zero
# gradient in exact arithmetic, so their gradient is rounding noise.
GRADIENT_TOLERANCE = {"float32": (1e-4, 1e-7), "bfloat16": (1e-1, 1e-4)}


class Vectors(NamedTuple):
    """Holds the content of a vectors file: sizes of the model, inputs and expected outputs."""

    config: Pi0Config
    params: dict[str, Any]  # the published tree
    observation: Observation  # one batch
    actions: np.ndarray  # float32[B, H, D]
    noise: np.ndarray  # float32[B, H, D]
    time: np.ndarray  # float32[B]
    outputs: dict[str, np.ndarray]  # by the name under out/


class Comparison(NamedTuple):
    """Holds how far an output is from the expected one."""

    name: str
    absolute: float  # max|a-b|
    relative: float  # max|a-b| / max|b|
    tolerance: float  # of the relative error; for a gradient norm of the absolute error
    ok: bool


def load_vectors(path: str | Path) -> Vectors:
    """Reads a vectors file.

    Raises:
        InputError: it names the file and the missing key, or what is wrong with it.
    """
    try:
        with zipfile.ZipFile(path):  # it refuses a file that is no npz
            archive = np.load(path)
        arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a readable vectors file (npz): {error}") from error

    def get(name: str) -> np.ndarray:
        if name not in arrays:
            raise InputError(f"{path}: key {name!r} is missing")
        return arrays[name]

    def size(spec: dict[str, Any], *names: str) -> Any:
        for i, name in enumerate(names):
            if name not in spec:
                raise InputError(f"{path}: spec.json has no {'.'.join(names[: i + 1])!r}")
            spec = spec[name]
        return spec

    try:
        spec = json.loads(bytes(get("spec.json")).decode())
    except ValueError as error:
        raise InputError(f"{path}: spec.json is not JSON: {error}") from error

    def sizes(part: str, *fields: str) -> dict[str, Any]:
        return {field: size(spec, part, field) for field in fields}

    vision = sizes("vit", "width", "depth", "mlp_dim", "num_heads")
    backbone = sizes("backbone", "depth", "num_heads", "num_kv_heads", "head_dim")
    adaptive = "pi05" in spec and bool(spec["pi05"])
    experts = (
        ExpertConfig(**sizes("backbone", "width", "mlp_dim")),
        ExpertConfig(**sizes("expert", "width", "mlp_dim"), adaptive=adaptive),
    )
    config = Pi0Config(
        vision=VisionConfig(
            image_size=size(spec, "image"), patch_size=size(spec, "vit", "patch"), **vision
        ),
        gemma=GemmaConfig(experts, **backbone, vocab_size=size(spec, "vocab")),
        action_dim=size(spec, "action_dim"),
        horizon=size(spec, "horizon"),
        max_tokens=size(spec, "tokens"),
    )
    slots = [slot for slot in CAMERA_SLOTS if slot in size(spec, "image_mask")]
    observation = Observation(
        images={slot: jnp.asarray(get(f"in/image/{slot}")) for slot in slots},
        image_masks={slot: jnp.asarray(get(f"in/image_mask/{slot}")) for slot in slots},
        tokens=jnp.asarray(get("in/tokenized_prompt")),
        token_mask=jnp.asarray(get("in/tokenized_prompt_mask")),
        state=jnp.asarray(get("in/state")),
    )
    flat = {}
    for name, leaf in paths.flatten(parameter_shapes(config)).items():
        flat[name] = get(f"params/{name}")
        if flat[name].shape != leaf.shape:
            sized = f"the sizes in spec.json make it {leaf.shape}"
            raise InputError(f"{path}: params/{name} has shape {flat[name].shape}; {sized}")
    outputs = {name[4:]: array for name, array in arrays.items() if name.startswith("out/")}
    for name in ("velocity", "loss"):
        get(f"out/{name}")
    actions, noise, time = (get(f"in/{name}") for name in ("actions", "noise", "time"))
    return Vectors(config, paths.unflatten(flat), observation, actions, noise, time, outputs)


def compute(vectors: Vectors, model: Pi0) -> dict[str, jax.Array]:
    """Computes everything that a vectors file may hold under out/, by name; it is jitted.

    Args:
        vectors: the inputs and parameters.
        model: the model, of the vectors' sizes.
    """
    observation = vectors.observation
    actions, noise, time = (jnp.asarray(a) for a in (vectors.actions, vectors.noise, vectors.time))

    def batch_loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        def velocity(x_t: jax.Array, t: jax.Array) -> jax.Array:
            return apply(model, params, None, Pi0.velocity, observation, x_t, t)

        x_t, t = flow.interpolate(actions, noise[:, None], time[:, None]), time[:, None]
        v = velocity(x_t, t)[:, 0]
        mean = jnp.mean(flow.loss(velocity, actions, noise[:, None], t))
        return mean, (v, jnp.mean(jnp.square(v - (noise - actions)), axis=-1))

    @jax.jit
    def training_outputs(params: Any) -> dict[str, jax.Array]:
        (_, (velocity, loss)), gradient = jax.value_and_grad(batch_loss, has_aux=True)(params)
        norms = {
            f"grad_norm/{path}": jnp.linalg.norm(g) for path, g in paths.flatten(gradient).items()
        }
        return {"velocity": velocity, "loss": loss} | norms

    @jax.jit
    def embeddings(params: Any) -> dict[str, jax.Array]:
        images = {
            f"image_tokens/{slot}": apply(model, params, None, Pi0.encode_image, image)
            for slot, image in observation.images.items()
        }
        prefix, _ = apply(model, params, None, Pi0.embed_prefix, observation)
        return images | {"prefix_embedding": prefix}

    @partial(jax.jit, static_argnums=1)
    def sampled(params: Any, num_steps: int) -> jax.Array:
        return sample(params, observation, noise, model=model, num_steps=num_steps)

    found = [re.fullmatch(r"actions_(\d+)", name) for name in vectors.outputs]
    actions_after = {match[0]: sampled(vectors.params, int(match[1])) for match in found if match}
    return embeddings(vectors.params) | training_outputs(vectors.params) | actions_after


def compare(vectors: Vectors, dtype: str) -> Iterator[Comparison]:
    """Yields one comparison for each array under out/.

    Args:
        vectors: the content of a vectors file.
        dtype: "float32" (matrix products at the highest precision) or "bfloat16".

    Raises:
        InputError: an output is not known, or has another shape.
    """
    precision = {"float32": "highest", "bfloat16": "default"}[dtype]
    with jax.default_matmul_precision(precision):
        model = Pi0(vectors.config, ComputeOptions(dtype=jnp.dtype(dtype)))
        computed = compute(vectors, model)
    for name, expected in vectors.outputs.items():
        if name not in computed:
            raise InputError(
                f"vectors hold out/{name}, which is none of the outputs that are known: {', '.join(sorted(computed))}"
            )
        got = np.asarray(computed[name], np.float64)
        if got.shape != expected.shape:
            raise InputError(f"out/{name} has shape {expected.shape}, the model gives {got.shape}")
        absolute, scale = float(np.max(np.abs(got - expected))), float(np.max(np.abs(expected)))
        tolerance, limit = TOLERANCE[dtype], TOLERANCE[dtype] * scale
        if name.startswith("grad_norm/"):
            share, floor = GRADIENT_TOLERANCE[dtype]
            tolerance = limit = share * scale + floor
        yield Comparison(
            name, absolute, absolute / max(scale, 1e-30), tolerance, bool(absolute <= limit)
        )
