"""Writes demonstrations of planar worlds as RLDS, and says how such a dataset is read."""

from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.data.rows import Dataset, Language, RawField
from pi0_jax.data.write import ArrayFeature, TextFeature, read_settings, write_rlds
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError

VERSION = "1.0.0"
_REVISION = 1  # is raised when the same settings no longer give the same data


def write(
    data_dir: Path,
    name: str,
    embodiment: Embodiment,
    states: np.ndarray,
    actions: np.ndarray,
    prompt: str,
    settings: dict[str, Any],
) -> Dataset:
    """Writes the dataset data_dir/name, if it is not there already; returns how it is read.

    Args:
        data_dir: the folder of datasets.
        name: the dataset's name.
        embodiment: the record of its robot.
        states: float32[episodes, steps, S].
        actions: float32[episodes, steps, A].
        prompt: of all episodes.
        settings: what made them, as JSON values.

    Raises:
        InputError: a dataset of other settings is there.
    """
    row = Dataset(
        name=name,
        tfds_name=name,
        versions=(VERSION,),
        embodiment=embodiment,
        cameras={},
        fields={
            "steps/observation/state": RawField(states.shape[2:], "float32"),
            "steps/action": RawField(actions.shape[2:], "float32"),
        },
        language=Language(("steps/language_instruction",)),
        held_out=0.0,
    )
    folder, settings = data_dir / name / VERSION, {**settings, "revision": _REVISION}
    if (found := read_settings(folder)) is not None:
        if found != settings:
            raise InputError(f"{folder}: expected data of {settings}, found {found}")
        return row
    steps = [
        [
            {"observation": {"state": seen}, "action": done, "language_instruction": prompt}
            for seen, done in zip(*episode, strict=True)
        ]
        for episode in zip(states, actions, strict=True)
    ]
    write_rlds(
        data_dir,
        name,
        VERSION,
        steps={
            "observation": {"state": ArrayFeature(states.shape[2:], np.float32)},
            "action": ArrayFeature(actions.shape[2:], np.float32),
            "language_instruction": TextFeature(),
        },
        metadata={},
        splits={"train": ({"steps": episode} for episode in steps)},
        settings=settings,
    )
    return row
