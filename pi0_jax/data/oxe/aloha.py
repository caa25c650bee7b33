"""Mobile ALOHA: two arms and a moving base, 50 Hz."""

from pi0_jax.data.grippers import RecordedGripper
from pi0_jax.data.rows import CameraField, Dataset, Language, RawField
from pi0_jax.embodiments import EMBODIMENTS

_STATE = "steps/observation/state"  # left joints (6, rad) and gripper, right joints and gripper; gripper 1 = open
_ACTION = (
    "steps/action"  # the same as targets, then the base's velocity: forward (m/s), turning (rad/s)
)
# the arms that are led by hand overshoot a little
_GRIPPER = RecordedGripper(open=1.0, closed=0.0, overshoot=0.25)

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
        grippers={"left_gripper": _GRIPPER, "right_gripper": _GRIPPER},
        revision=1,
        notes=(
            "No page says what the numbers are: arms, grippers (1 = open) and base are ALOHA's usual order, the base's units are taken"
            " as m/s and rad/s.",
        ),
    ),
)
