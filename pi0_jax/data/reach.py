"""Holds the reach world's datasets (pi0_jax/sim), one for each arm, at 10 Hz.

They have joint positions as states, and joint targets as actions.
"""

from pi0_jax.data.rows import CameraField, Dataset, Language, RawField
from pi0_jax.embodiments import EMBODIMENTS

_STATE = "steps/observation/state"  # joint positions, rad
_ACTION = "steps/action"  # joint targets, rad


def _row(name: str) -> Dataset:
    """Returns the dataset's row for one arm."""
    embodiment = EMBODIMENTS[name]
    joints = RawField((len(embodiment.state),), "float32")
    return Dataset(
        name=name,
        tfds_name=name,
        versions=("1.0.0",),
        embodiment=embodiment,
        cameras={
            camera: CameraField(f"steps/observation/{camera}")
            for camera in embodiment.cameras.values()
        },
        fields={_STATE: joints, _ACTION: joints},
        language=Language(("steps/language_instruction",)),
    )


REACH = tuple(_row(name) for name in ("reach_arm3", "reach_arm4", "reach_arm5"))
