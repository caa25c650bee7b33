"""LIBERO without no-ops, as replayed for OpenVLA: a simulated Panda, 20 Hz, four suites of one structure."""

import numpy as np

from pi0_jax.data.oxe.primitives import all_steps, opening_from_closedness
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Standardised
from pi0_jax.embodiments import EMBODIMENTS

_STATE = "steps/observation/state"  # x y z (m), rotation vector (rad), two fingers (m)
_ACTION = "steps/action"  # change of x y z and rotation (normalised), gripper: -1 open, +1 close


def standardise(columns: Columns) -> Standardised:
    """State as recorded. Action: the six commands as they are; gripper 1 - action[6] cut to [0, 1]: -1 gives 1 = open, +1 gives 0."""
    action = columns[_ACTION]
    return all_steps(
        columns[_STATE],
        np.concatenate([action[:, 0:6], opening_from_closedness(action[:, 6:7])], axis=1),
    )


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
        standardise=standardise,
        revision=1,
        notes=(
            "Actions are normalised controller commands, not metres or radians.",
            "The files' images were turned by 180 degrees when they were made, and idle steps and failed replays removed:"
            " a simulator must turn its images too.",
            "Control rate: the simulation's 20 Hz; some published metadata say 10.",
        ),
    )


LIBERO = tuple(_suite(f"libero_{suite}_no_noops") for suite in ("spatial", "object", "goal", "10"))
