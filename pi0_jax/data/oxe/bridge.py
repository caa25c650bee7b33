"""Bridge V2 (WidowX 250, 5 Hz) as published at Berkeley: `bridge_dataset` 1.0.0, also known as bridge_orig."""

import numpy as np

from pi0_jax.data.oxe.primitives import binarize_gripper, wrap_angle
from pi0_jax.data.rows import CameraField, Columns, DatasetRow, Language, RawField, Standardised
from pi0_jax.embodiments import EMBODIMENTS

_STATE = "steps/observation/state"  # x y z (m), roll pitch yaw (rad), gripper opening (1 = open)
_ACTION = "steps/action"  # commanded change of the pose, gripper command (1 = open)


def standardise(columns: Columns) -> Standardised:
    """The arm's action is the change of the pose that was reached; the gripper's is its command, made binary.

    action[t, 0:6] = state[t + 1, 0:6] - state[t, 0:6], angles by the short way round (public pipelines subtract them
    plainly, which leaves jumps of 2 pi); action[t, 6] = binarize_gripper of the commands. The last step has no next
    state and so no action. The first step is dropped where its command is all zeros: there the gripper's 0 is a filler,
    not "close".
    """
    state, command = columns[_STATE], columns[_ACTION]
    steps = len(state)
    change = np.diff(state[:, 0:6].astype(np.float64), axis=0)  # [T - 1, 6]
    action = np.zeros_like(command)
    action[:-1, 0:3] = change[:, 0:3]
    action[:-1, 3:6] = wrap_angle(change[:, 3:6])
    action[:-1, 6] = binarize_gripper(command[:, 6])[:-1]
    keep = np.arange(steps) < steps - 1
    keep[0] &= bool(command[0].any())
    return Standardised(state, action, keep, stop=steps - 1)


BRIDGE = (
    DatasetRow(
        name="bridge_dataset",
        tfds_name="bridge_dataset",
        versions=("1.0.0",),
        embodiment=EMBODIMENTS["widowx"],
        cameras={"image_0": CameraField("steps/observation/image_0")},
        fields={_STATE: RawField((7,), "float32"), _ACTION: RawField((7,), "float32")},
        language=Language(("steps/language_instruction",)),
        standardise=standardise,
        revision=1,
    ),
)
