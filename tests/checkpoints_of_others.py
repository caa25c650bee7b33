"""Makes checkpoints for tests: random parameters, as openpi would have written them.

The sizes of the model are all different.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from pi0_jax.convert import rules, tree
from pi0_jax.convert.paligemma import HUGGING_FACE_RULES
from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.models.gemma import ExpertConfig, GemmaConfig
from pi0_jax.models.paths import flatten, unflatten
from pi0_jax.models.pi0 import Pi0Config, parameter_shapes
from pi0_jax.models.siglip import VisionConfig

GOLDEN = Path(__file__).parent / "golden"

# No two sizes that a layout could mix up are the same.
UNEVEN = Pi0Config(
    vision=VisionConfig(image_size=42, patch_size=14, width=20, depth=2, mlp_dim=28, num_heads=4),
    gemma=GemmaConfig(
        experts=(ExpertConfig(width=24, mlp_dim=36), ExpertConfig(width=16, mlp_dim=44)),
        depth=3, num_heads=6, num_kv_heads=2, head_dim=8, vocab_size=66,
    ),
    action_dim=10, horizon=7, max_tokens=11,
)  # fmt: skip

ROBOT = EMBODIMENTS["droid"]  # 8 dimensions, the first 7 learnt relative to the state


def shapes_of(config: Pi0Config) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's parameters by path."""
    return {path: leaf.shape for path, leaf in flatten(parameter_shapes(config)).items()}


def random_parameters(config: Pi0Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random float32 parameters by path."""
    rng = np.random.default_rng(seed)
    shapes = shapes_of(config)
    return {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}


def write_big_vision(file: Path, flat: dict[str, np.ndarray]) -> Path:
    """Writes the PaliGemma among these parameters as big_vision's npz."""
    backbone = {path: array for path, array in flat.items() if path in tree.BACKBONE_AXES}
    names = {path.replace("PaliGemma/", "params/"): array for path, array in backbone.items()}
    np.savez(file, **names)
    return file


def hugging_face(
    backbone: dict[str, np.ndarray], config: Pi0Config, table: Any = HUGGING_FACE_RULES[0]
) -> dict[str, np.ndarray]:
    """Returns a PaliGemma's tensors under Hugging Face's names.

    What they compute there is compared in test_convert_torch.py.
    """
    shapes = {path: array.shape for path, array in backbone.items()}
    return {
        entry.name: np.ascontiguousarray(
            rules.parse_layout(entry.layout).inverse(backbone[entry.path][entry.place])
        )
        for entry in rules.entries(table, shapes, tree.sizes_of_config(config), "backbone")
    }


def norm_stats(dims: int, seed: int = 1) -> dict:
    """Returns statistics of no particular size, but for the last dimension of the action.

    For a robot of eight dimensions it is a gripper in [0, 1].
    """
    rng = np.random.default_rng(seed)
    parts = {
        part: {
            "mean": rng.normal(size=dims).tolist(), "std": rng.uniform(0.5, 2, dims).tolist(),
            "q01": rng.uniform(-3, -2, dims).tolist(), "q99": rng.uniform(2, 3, dims).tolist(),
        }
        for part in ("state", "actions")
    }  # fmt: skip
    if dims == 8:
        for key, value in (("mean", 0.4), ("std", 0.5), ("q01", 0.0), ("q99", 1.0)):
            parts["actions"][key][7] = value
    return parts


def write_openpi(
    folder: Path,
    flat: dict[str, np.ndarray],
    *,
    value_level: bool = False,
    asset: str = "droid",
    dims: int = 8,
) -> Path:
    """Writes a checkpoint as openpi's JAX training does.

    With `value_level` it is as training saves it.
    """
    end = "/value" if value_level else ""
    tree = unflatten({path + end: array for path, array in flat.items()})
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", {"params": tree})
    assets = folder / "assets" / asset
    assets.mkdir(parents=True)
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": norm_stats(dims)}))
    return folder
