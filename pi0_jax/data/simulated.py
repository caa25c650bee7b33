"""Holds the datasets that this project's own simulations write.

The reach world's (launch.make_reach_data), one for each arm, at 10 Hz, have joint positions as
states and joint targets as actions. Meta-World's (launch.make_metaworld_data) are one for each
length of an action.
"""

from pi0_jax.data.rows import CameraField, Dataset, Language, RawField
from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.embodiments.simulated import METAWORLD as METAWORLD_RECORDS

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

METAWORLD = tuple(
    Dataset(
        name=record.name,
        tfds_name=record.name,
        versions=("1.0.0",),
        embodiment=record,
        cameras={"corner2": CameraField("steps/observation/corner2")},
        fields={
            "steps/observation/state": RawField((4,), "float32"),
            "steps/action": RawField((4,), "float32"),
        },
        language=Language(("steps/language_instruction",)),
    )
    for record in METAWORLD_RECORDS
)
