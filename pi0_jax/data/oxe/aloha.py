"""Mobile ALOHA: two arms and a moving base, 50 Hz."""

import numpy as np

from pi0_jax.data.oxe.primitives import all_steps
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Standardised
from pi0_jax.embodiments import EMBODIMENTS

_STATE = "steps/observation/state"  # left joints (6, rad) and gripper, right joints and gripper; gripper 1 = open
_ACTION = (
    "steps/action"  # the same as targets, then the base's velocity: forward (m/s), turning (rad/s)
)
_GRIPPERS = (6, 13)


def standardise(columns: Columns) -> Standardised:
    """State as recorded. Action as recorded but for the grippers, cut to [0, 1]: the arms that are led by hand overshoot a little."""
    action = columns[_ACTION].copy()
    action[:, _GRIPPERS] = np.clip(action[:, _GRIPPERS], 0, 1)
    return all_steps(columns[_STATE], action)


ALOHA = (
    Dataset(
        name="aloha_mobile",
        tfds_name="aloha_mobile",
        versions=("0.0.1",),
        embodiment=EMBODIMENTS["mobile_aloha"],
        cameras={
            camera: CameraField(f"steps/observation/{camera}")
            for camera in ("cam_high", "cam_left_wrist", "cam_right_wrist")
        },
        fields={_STATE: RawField((14,), "float32"), _ACTION: RawField((16,), "float32")},
        language=Language(("steps/language_instruction",)),
        standardise=standardise,
        revision=1,
        notes=(
            "No page says what the numbers are: arms, grippers (1 = open) and base are ALOHA's usual order, the base's units are taken"
            " as m/s and rad/s.",
        ),
    ),
)
