"""Writes demonstrations of planar worlds as RLDS, and says how such a dataset is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.data.rows import CameraField, Dataset, Language, RawField
from pi0_jax.data.write import (
    ArrayFeature,
    ImageFeature,
    TextFeature,
    encode_png,
    read_settings,
    write_rlds,
)
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError

VERSION = "1.0.0"
_REVISION = 1  # is raised when the same settings no longer give the same data


def write(
    data_dir: Path,
    name: str,
    embodiment: Embodiment,
    states: Sequence[np.ndarray] | np.ndarray,
    actions: Sequence[np.ndarray] | np.ndarray,
    prompts: str | Sequence[str],
    settings: dict[str, Any],
    images: Sequence[np.ndarray] = (),
) -> Dataset:
    """Writes the dataset data_dir/name, if it is not there already; returns how it is read.

    Args:
        data_dir: the folder of datasets.
        name: the dataset's name.
        embodiment: the record of its robot.
        states: float32[steps, S] of each episode.
        actions: float32[steps, A] of each episode.
        prompts: of each episode, or of all of them.
        settings: what made them, as JSON values.
        images: uint8[height, width, 3] of each episode, what the robot's one camera sees all along;
            none where it has no camera.

    Raises:
        InputError: a dataset of other settings is there.
    """
    cameras = embodiment.cameras.values()
    state, action = states[0].shape[1:], actions[0].shape[1:]
    row = Dataset(
        name=name,
        tfds_name=name,
        versions=(VERSION,),
        embodiment=embodiment,
        cameras={camera: CameraField(f"steps/observation/{camera}") for camera in cameras},
        fields={
            "steps/observation/state": RawField(state, "float32"),
            "steps/action": RawField(action, "float32"),
        },
        language=Language(("steps/language_instruction",)),
        held_out=0.0,
    )
    folder, settings = data_dir / name / VERSION, {**settings, "revision": _REVISION}
    if (found := read_settings(folder)) is not None:
        if found != settings:
            raise InputError(f"{folder}: expected data of {settings}, found {found}")
        return row
    told = [prompts] * len(states) if isinstance(prompts, str) else prompts
    shown = [{camera: encode_png(image) for camera in cameras} for image in images]
    steps = [
        [
            {
                "observation": {"state": seen, **pictures},
                "action": done,
                "language_instruction": prompt,
            }
            for seen, done in zip(*episode, strict=True)
        ]
        for *episode, prompt, pictures in zip(
            states, actions, told, shown or [{}] * len(states), strict=True
        )
    ]
    sizes = {camera: images[0].shape for camera in cameras}
    features = {
        camera: ImageFeature(height, width, "png") for camera, (height, width, _) in sizes.items()
    }
    write_rlds(
        data_dir,
        name,
        VERSION,
        steps={
            "observation": {"state": ArrayFeature(state, np.float32), **features},
            "action": ArrayFeature(action, np.float32),
            "language_instruction": TextFeature(),
        },
        metadata={},
        splits={"train": ({"steps": episode} for episode in steps)},
        settings=settings,
    )
    return row
