"""LIBERO without no-ops, as replayed for OpenVLA: a simulated Panda, 20 Hz, four suites of one structure."""

from pi0_jax.data.oxe.primitives import CLOSING_COMMANDS
from pi0_jax.data.rows import CameraField, Dataset, Language, RawField
from pi0_jax.embodiments import EMBODIMENTS

_STATE = "steps/observation/state"  # x y z (m), rotation vector (rad), two fingers (m)
_ACTION = "steps/action"  # change of x y z and rotation (normalised), gripper: -1 open, +1 close


def _suite(name: str) -> Dataset:
    return Dataset(
        name=name,
        tfds_name=name,
        versions=("1.0.0",),
        embodiment=EMBODIMENTS["libero"],
        cameras={
            "base": CameraField("steps/observation/image"),
            "wrist": CameraField("steps/observation/wrist_image"),
        },
        fields={_STATE: RawField((8,), "float32"), _ACTION: RawField((7,), "float32")},
        language=Language(("steps/language_instruction",)),
        grippers={"gripper": CLOSING_COMMANDS},
        revision=1,
        notes=(
            "Actions are normalised controller commands, not metres or radians.",
            "The files' images were turned by 180 degrees when they were made, and idle steps and failed replays removed:"
            " a simulator must turn its images too.",
            "Control rate: the simulation's 20 Hz; some published metadata say 10.",
        ),
    )


LIBERO = tuple(_suite(f"libero_{suite}_no_noops") for suite in ("spatial", "object", "goal", "10"))
