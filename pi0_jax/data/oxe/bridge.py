"""Bridge (WidowX 250, 5 Hz): V2 as published at Berkeley, under both its names, and the older conversion of RT-X."""

import numpy as np

from pi0_jax.data.oxe.primitives import binarize_gripper, pose_changes
from pi0_jax.data.oxe.rtx_fields import MOTION_FIELDS, OPEN, motion, rtx_row
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Standardised
from pi0_jax.embodiments import EMBODIMENTS

_STATE = "steps/observation/state"  # x y z (m), roll pitch yaw (rad), gripper opening (1 = open)
_ACTION = "steps/action"  # commanded change of the pose, gripper command (1 = open)


def standardise(columns: Columns) -> Standardised:
    """Bridge V2: the gripper's command is made binary. See `reached`."""
    command = columns[_ACTION]
    return reached(columns[_STATE], command, binarize_gripper(command[:, 6]))


def standardise_old(columns: Columns) -> Standardised:
    """The older conversion, whose gripper command is binary already. See `reached`."""
    gripper = columns[OPEN].astype(np.float32)
    return reached(columns[_STATE], np.column_stack([motion(columns), gripper]), gripper)


def reached(state: np.ndarray, command: np.ndarray, gripper: np.ndarray) -> Standardised:
    """The arm's action is the change of the pose that was reached, float32[T, 7]; the gripper's is its command.

    action[t, 0:6] = state[t + 1, 0:6] - state[t, 0:6], angles by the short way round (public pipelines subtract them
    plainly, which leaves jumps of 2 pi). The last step has no next state and so no action. The first step is dropped
    where its command is all zeros: there the gripper's 0 is a filler, not "close".
    """
    steps = len(state)
    action = np.zeros((steps, 7), np.float32)
    action[:-1] = np.column_stack([pose_changes(state[:, 0:6]), gripper[:-1]])
    keep = np.arange(steps) < steps - 1
    keep[0] &= bool(command[0].any())
    return Standardised(state, action, keep, stop=steps - 1)


_NOTES = (
    "Actions are the changes of pose that were reached, not the commands; their angles are wrapped, where public pipelines leave"
    " jumps of a full turn.",
    "A first step whose command is all zeros is dropped: its gripper value is a filler. Octo keeps it as a command to close.",
    "Episodes without an instruction are not drawn unless the row is changed to keep them.",
)


def _bridge_v2(name: str) -> Dataset:
    return Dataset(
        name=name,
        tfds_name=name,
        versions=("1.0.0",),
        embodiment=EMBODIMENTS["widowx"],
        cameras={"image_0": CameraField("steps/observation/image_0")},
        fields={_STATE: RawField((7,), "float32"), _ACTION: RawField((7,), "float32")},
        language=Language(("steps/language_instruction",)),
        standardise=standardise,
        revision=1,
        notes=(
            *_NOTES,
            "The other cameras are left out: where an episode has none of them its images are black.",
        ),
    )


BRIDGE = (
    _bridge_v2("bridge_dataset"),
    _bridge_v2("bridge_orig"),
    rtx_row(
        "bridge",
        embodiment="widowx",
        cameras={"image_0": CameraField("steps/observation/image")},
        fields={**MOTION_FIELDS, OPEN: RawField((), "bool"), _STATE: RawField((7,), "float32")},
        standardise=standardise_old,
        notes=(
            *_NOTES,
            "This is version 0.1.0 of the RT-X collection; the TFDS catalogue now means other data by this name.",
        ),
    ),
)
