"""π0 in JAX: a vision-language-action model, from RLDS files to a policy.

A policy takes what a robot sees and gives a chunk of actions:

    import pi0_jax

    policy = pi0_jax.Policy.open("runs/reach/train")   # a run, or a released π0
    policy(observation)["actions"]                     # float32[H, A], what the robot's step takes

A run is a config and a folder. Checkpoints go to other formats and come from them:

    pi0_jax.train.run("reach", "runs/reach/train")     # a recipe, a file, or a typed config
    pi0_jax.convert.run("runs/reach/train", "reach_lerobot", to="lerobot")

A robot of your own and its data are typed records:

    pi0_jax.Embodiment    its cameras, state and actions, of StateDim and ActionDim
    pi0_jax.Dataset       which raw field holds what, of CameraField, RawField, Language
                          and RecordedGripper

For those who build on the model:

    pi0_jax.models        Pi0, its sizes in VARIANTS, and sample
    pi0_jax.flow          flow matching: the loss, and the integration from noise to actions

Wrong input is an InputError, in lines that name it. These names are what is promised between
versions. Importing pi0_jax is cheap: each of them is loaded when it is used first.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pi0_jax import convert, flow, models, train
    from pi0_jax.data.grippers import RecordedGripper
    from pi0_jax.data.rows import CameraField, Dataset, Language, RawField, Standardised
    from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
    from pi0_jax.errors import InputError
    from pi0_jax.policy import Policy

__version__ = "0.1.0"  # setup.py reads it here

__all__ = [
    "ActionDim",
    "CameraField",
    "Dataset",
    "Embodiment",
    "InputError",
    "Language",
    "Policy",
    "RawField",
    "RecordedGripper",
    "Standardised",
    "StateDim",
    "convert",
    "flow",
    "models",
    "train",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is used first (PEP 562)."""
    found: Any
    # A submodule stays an attribute of the package after its import, and does not come here again.
    match name:
        case "Policy":
            from pi0_jax.policy import Policy as found
        case (
            "CameraField" | "Dataset" | "Language" | "RawField" | "RecordedGripper" | "Standardised"
        ):
            from pi0_jax.data import rows

            found = vars(rows)[name]
        case "ActionDim" | "Embodiment" | "StateDim":
            from pi0_jax import embodiments

            found = vars(embodiments)[name]
        case "InputError":
            from pi0_jax.errors import InputError as found
        case "convert":
            import pi0_jax.convert as found
        case "flow":
            import pi0_jax.flow as found
        case "models":
            import pi0_jax.models as found
        case "train":
            import pi0_jax.train as found
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
