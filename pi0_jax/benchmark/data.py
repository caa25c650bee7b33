"""Frames per second and memory of reading training batches: ours, and a plain tf.data pipeline over the same files in the same run.

Each contender reads for the same time in a process of its own. A frame is three 256x256 cameras decoded to uint8, a state and a chunk of 50
actions; ours also tokenises and places images on canvases. Memory is the growth of RssAnon since the imports were done.
"""

import dataclasses
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pi0_jax.benchmark import tfdata
from pi0_jax.benchmark.memory import PeakMemory
from pi0_jax.data.index import build_or_open
from pi0_jax.data.mixture import Mixture
from pi0_jax.data.rows import row_from_mapping
from pi0_jax.data.write import ArrayFeature, ImageFeature, TextFeature, encode_jpeg, write_rlds
from pi0_jax.preprocess import Layout, Robot
from pi0_jax.statistics import statistics
from pi0_jax.tokenizer import Tokenizer
from pi0_jax.train import batches

NAME = "benchmark_arm"
CAMERAS = {"base_0_rgb": "base", "left_wrist_0_rgb": "left_wrist", "right_wrist_0_rgb": "right_wrist"}
SIDE = 256  # pixels
JOINTS = 7
HORIZON = 50
BATCH = 64
EPISODE_STEPS = 200
DISTINCT_IMAGES = 256

ROW = {
    "versions": ("1.0.0",),
    "embodiment": {
        "robot": "made up",
        "cameras": CAMERAS,
        "state": [{"name": f"joint_{i}", "unit": "rad"} for i in range(JOINTS)],
        "actions": [{"name": f"joint_{i}", "unit": "rad", "kind": "absolute", "delta": True} for i in range(JOINTS)],
        "control_hz": 15.0,
        "execute_steps": 8,
    },
    "cameras": {camera: {"path": f"steps/observation/{camera}"} for camera in CAMERAS.values()},
    "fields": {path: {"shape": (JOINTS,), "dtype": "float32"} for path in ("steps/observation/state", "steps/action")},
    "language": {"paths": ("steps/language_instruction",)},
}


@dataclasses.dataclass(frozen=True)
class Measurement:
    contender: str
    frames_per_second: float
    first_batch_s: float  # from the call to the first batch: a shuffle buffer has to be filled
    memory_mb: float  # growth of RssAnon


def write_dataset(data_dir: Path, frames: int) -> None:
    """A real TFDS dataset of `frames` frames; nothing where it is there already."""
    if (data_dir / NAME / "1.0.0").exists():
        return
    rng = np.random.default_rng(0)
    images = [encode_jpeg(_picture(rng)) for _ in range(DISTINCT_IMAGES)]

    def step() -> dict[str, Any]:
        seen = {camera: images[rng.integers(DISTINCT_IMAGES)] for camera in CAMERAS.values()}
        state, action = rng.normal(size=(2, JOINTS)).astype(np.float32)
        return {"observation": {**seen, "state": state}, "action": action, "language_instruction": "put the cup on the shelf"}

    steps = {
        "observation": {**{camera: ImageFeature(SIDE, SIDE) for camera in CAMERAS.values()}, "state": ArrayFeature((JOINTS,), np.float32)},
        "action": ArrayFeature((JOINTS,), np.float32),
        "language_instruction": TextFeature(),
    }
    episodes = ({"steps": [step() for _ in range(EPISODE_STEPS)]} for _ in range(frames // EPISODE_STEPS))
    write_rlds(data_dir, NAME, "1.0.0", steps=steps, metadata={}, splits={"train": episodes}, episodes_per_shard=10)


def _picture(rng: np.random.Generator) -> np.ndarray:
    """uint8[SIDE, SIDE, 3]: smooth shapes and some grain, about 20 kB as JPEG."""
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(coarse) + rng.normal(0, 3, (SIDE, SIDE, 1)), 0, 255).astype(np.uint8)
