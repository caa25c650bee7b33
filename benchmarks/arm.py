"""Describes the made-up arm of the policy benchmarks, with one, two or three cameras."""

import numpy as np

from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.observation import CAMERA_SLOTS, RawObservation

JOINTS = 7
IMAGE_SIZE = (224, 224)  # pixels
PROMPT = "put the cup on the shelf"


def _robot(cameras: int) -> Embodiment:
    return Embodiment(
        name=f"benchmark_arm_{cameras}",
        robot=f"made-up arm, {cameras} cameras",
        cameras={slot: f"camera_{i}" for i, slot in enumerate(CAMERA_SLOTS[:cameras])},
        state=tuple(StateDim(f"joint_{i}", "rad") for i in range(JOINTS)),
        actions=tuple(
            ActionDim(f"joint_{i}", "rad", "absolute", delta=True) for i in range(JOINTS)
        ),
        control_hz=50.0,
        execute_steps=25,
    )


# The robots by their number of cameras.
ROBOTS = {cameras: _robot(cameras) for cameras in range(1, len(CAMERA_SLOTS) + 1)}


def observation(cameras: int) -> RawObservation:
    """Returns an observation with noise in every camera."""
    rng = np.random.default_rng(cameras)
    images = {
        camera: rng.integers(0, 256, (*IMAGE_SIZE, 3), np.uint8)
        for camera in ROBOTS[cameras].cameras.values()
    }
    return {"images": images, "state": rng.normal(size=JOINTS).astype(np.float32), "prompt": PROMPT}
