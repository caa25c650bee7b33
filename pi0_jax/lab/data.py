"""Writes demonstrations of planar worlds as RLDS, and says how such a dataset is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.data.rows import Dataset, Language, RawField
from pi0_jax.data.write import ArrayFeature, TextFeature, read_settings, write_rlds
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError

VERSION = "1.0.0"
_REVISION = 1  # is raised when the same settings no longer give the same data


def row(name: str, embodiment: Embodiment) -> Dataset:
    """Returns how a dataset of this robot is read; it has no cameras and holds nothing out."""
    return Dataset(
        name=name,
        tfds_name=name,
        versions=(VERSION,),
        embodiment=embodiment,
        cameras={},
        fields={
            "steps/observation/state": RawField((len(embodiment.state),), "float32"),
            "steps/action": RawField((len(embodiment.actions),), "float32"),
        },
        language=Language(("steps/language_instruction",)),
        held_out=0.0,
    )


def write(
    data_dir: Path,
    name: str,
    states: np.ndarray,
    actions: np.ndarray,
    prompts: Sequence[str],
    settings: dict[str, Any],
) -> None:
    """Writes episodes of equal length as the dataset data_dir/name, if it is not there already.

    Args:
        data_dir: the folder of datasets.
        name: the dataset's name.
        states: float32[episodes, steps, S].
        actions: float32[episodes, steps, A].
        prompts: one for each episode.
        settings: what made them, as JSON values.

    Raises:
        InputError: a dataset of other settings is there.
    """
    folder, settings = data_dir / name / VERSION, {**settings, "revision": _REVISION}
    if (found := read_settings(folder)) is not None:
        if found != settings:
            raise InputError(f"{folder}: expected data of {settings}, found {found}")
        return
    episodes = (
        {
            "steps": [
                {
                    "observation": {"state": state},
                    "action": action,
                    "language_instruction": prompt,
                }
                for state, action in zip(seen, done, strict=True)
            ]
        }
        for seen, done, prompt in zip(states, actions, prompts, strict=True)
    )
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
        splits={"train": episodes},
        settings=settings,
    )
