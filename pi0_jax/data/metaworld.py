"""Holds the datasets that launch.make_metaworld_data writes, one for each length of an action."""

from pi0_jax.data.rows import CameraField, Dataset, Language, RawField
from pi0_jax.embodiments.metaworld import METAWORLD as RECORDS

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
    for record in RECORDS
)
