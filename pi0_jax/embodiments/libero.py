"""Holds the record of LIBERO's simulated Panda, with operational-space commands at 20 Hz."""

from pi0_jax.embodiments.client_keys import ClientKeys
from pi0_jax.embodiments.dims import AXIS_ANGLE, CLOSING, COMMAND, POSITION
from pi0_jax.embodiments.record import Embodiment, StateDim

LIBERO = (
    Embodiment(
        name="libero",
        robot="simulated Panda (LIBERO)",
        cameras={"base_0_rgb": "base", "left_wrist_0_rgb": "wrist"},
        # The places of both fingers on one axis. They part in opposite directions, so that of the
        # second one is negative.
        state=(*POSITION, *AXIS_ANGLE, StateDim("finger_0", "m"), StateDim("finger_1", "m")),
        actions=(*COMMAND, CLOSING),
        control_hz=20.0,
        execute_steps=5,
        client_keys=ClientKeys(
            cameras={"base": "observation/image", "wrist": "observation/wrist_image"},
            state=(("observation/state", 8),),
        ),
        # The simulator's images are upside down. Those of the datasets and of released checkpoints
        # were turned.
        image_rotation=180,
    ),
)
