"""What the datasets of the RT-X collection have in common: the action is a dict of a translation, a rotation and a gripper command.

Names and shapes are shared, what the numbers mean differs: see each row.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from pi0_jax.data.grippers import RecordedGripper
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Rule
from pi0_jax.embodiments import EMBODIMENTS

TRANSLATION = "steps/action/world_vector"
ROTATION = "steps/action/rotation_delta"
CLOSING = "steps/action/gripper_closedness_action"
OPEN = "steps/action/open_gripper"
MOTION_FIELDS = {TRANSLATION: RawField((3,), "float32"), ROTATION: RawField((3,), "float32")}
INSTRUCTION = Language(("steps/observation/natural_language_instruction",))


def motion(columns: Columns) -> np.ndarray:
    """float32[T, 6]: translation, rotation."""
    return np.concatenate([columns[TRANSLATION], columns[ROTATION]], axis=1)


def no_state(columns: Columns) -> np.ndarray:
    """float32[T, 0]: the robot's state was not recorded."""
    return np.zeros((len(columns[TRANSLATION]), 0), np.float32)


def rtx_row(
    name: str,
    *,
    embodiment: str,
    cameras: Mapping[str, CameraField],
    fields: Mapping[str, RawField],
    standardise: Rule,
    grippers: Mapping[str, RecordedGripper] = MappingProxyType({}),
    versions: tuple[str, ...] = ("0.1.0",),
    language: Language = INSTRUCTION,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """A row of the collection: what is the same in all of them is filled in."""
    return Dataset(
        name=name,
        tfds_name=name,
        versions=versions,
        embodiment=EMBODIMENTS[embodiment],
        cameras=cameras,
        fields=fields,
        language=language,
        standardise=standardise,
        grippers=grippers,
        revision=1,
        notes=notes,
    )
