"""Writes checkpoints of random weights, so that benchmarks open them as any checkpoint."""

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from benchmarks import arm
from pi0_jax.convert import ours, tree
from pi0_jax.convert.metadata import Metadata, RobotRecord
from pi0_jax.convert.source import LazyArray, Source, is_stacked
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.models import sampling
from pi0_jax.models.gemma import ExpertConfig, GemmaConfig
from pi0_jax.models.pi0 import VARIANTS, Pi0Config, pi05
from pi0_jax.models.siglip import VisionConfig
from pi0_jax.preprocess import normalize
from pi0_jax.preprocess.tokenizer import Tokenizer

# What can be measured: the variants that have a name, and one in between. A laptop's CPU runs that
# one in about a second.
MODELS: dict[str, Pi0Config] = {
    "nano": VARIANTS["nano"],
    # It has the published depths, so that compilation takes as long, at a fifth of the widths: 61
    # million parameters.
    "mid": Pi0Config(
        vision=VisionConfig(image_size=224, patch_size=16, width=192, depth=27, mlp_dim=768, num_heads=3),
        gemma=GemmaConfig(
            experts=(ExpertConfig(width=384, mlp_dim=1536), ExpertConfig(width=192, mlp_dim=768)),
            depth=18, num_heads=8, num_kv_heads=1, head_dim=48, vocab_size=512,
        ),
        action_dim=32, horizon=50, max_tokens=48,
    ),
    "pi0": VARIANTS["pi0"],
}  # fmt: skip
# The same of π0.5.
MODELS |= {
    "pi05_nano": VARIANTS["pi05_nano"],
    "pi05_mid": pi05(MODELS["mid"], max_tokens=200),
    "pi05": VARIANTS["pi05"],
}
_WEIGHT = 0.02  # standard deviation
# So many numbers are drawn; larger leaves repeat them.
_BLOCK = (1 << 20) + 7


def named(variant: str) -> Pi0Config:
    """Returns a model of MODELS.

    Raises:
        InputError: MODELS has no such name.
    """
    if variant not in MODELS:
        raise InputError(f"variant {variant!r}: expected one of {', '.join(MODELS)}")
    return MODELS[variant]


def write(directory: Path, model: Pi0Config, dtype: str) -> None:
    """Writes a run's workdir with random weights; its robots are arm.ROBOTS.

    The weights are stored as a policy of that compute dtype keeps them.
    """
    ours.write(
        random_source(
            model, lambda path: np.dtype(sampling.storage_dtype(path, dtype)), arm.ROBOTS.values()
        ),
        directory,
    )


def random_source(
    model: Pi0Config, dtype: Callable[[str], np.dtype], robots: Iterable[Embodiment]
) -> Source:
    """Returns a source of normal numbers, other ones in every leaf and layer.

    The numbers are the same whenever a leaf or a layer is read.

    Args:
        model: the model's sizes.
        dtype: returns a leaf's dtype, by its path.
        robots: the robots whose records and statistics the source has.
    """
    sizes = tree.sizes_of_config(model)
    shapes = tree.expected_shapes(sizes)
    block = np.random.default_rng(0).normal(0, _WEIGHT, _BLOCK).astype(np.float32)

    def draw(shape: tuple[int, ...], name: str) -> np.ndarray:
        return np.resize(np.roll(block, zlib.crc32(name.encode()) % _BLOCK), shape)

    def leaf(path: str) -> LazyArray:
        shape, stored = shapes[path], dtype(path)

        def read(layer: int | None) -> np.ndarray:
            if layer is not None:
                return draw(shape[1:], f"{path}/{layer}").astype(stored)
            if is_stacked(path):
                return np.stack([read(i) for i in range(shape[0])])
            return draw(shape, path).astype(stored)

        return LazyArray(shape, stored, read)

    leaves = {path: leaf(path) for path in shapes}
    metadata = Metadata(
        robots={robot.name: RobotRecord(_statistics(robot), robot) for robot in robots},
        horizon=model.horizon, max_tokens=model.max_tokens, normalization="zscore", tokenizer=Tokenizer.open("small").model,
    )  # fmt: skip
    return Source("random", "random", leaves, sizes, metadata)


def _statistics(robot: Embodiment) -> normalize.Statistics:
    rng = np.random.default_rng(0)
    return normalize.Statistics(
        *(
            normalize.accumulate([rng.normal(size=(100, len(dims)))])
            for dims in (robot.state, robot.actions)
        )
    )
