"""Moves LIBERO's simulated hand, in the simulator's Python, and prints what happened as JSON.

python -m tests.libero_physics moves HOST:PORT    by a server of tests.spoken_server
python -m tests.libero_physics reach              by a scripted policy that knows the goal
python -m tests.libero_physics images             beside the environment's own observations
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from pi0_jax.execution import OpenLoop
from pi0_jax.observation import RawObservation
from pi0_jax.serve.client import Client, Controller
from pi0_jax.sim.benchmark import families
from pi0_jax.sim.libero import _CAMERAS, SEED, Panda, sent

FAMILY = families.find("libero:all").family
# Half of the largest change, so that the controller follows.
SAID = [f"{name} +0.5" for name in ("dx", "dy", "dz", "droll", "dpitch", "dyaw")]
TICKS = 20


@contextlib.contextmanager
def panda(task: str) -> Iterator[Panda]:
    with contextlib.closing(families.opened(FAMILY, task)) as simulator:
        yield simulator


def rotation(vector: np.ndarray) -> np.ndarray:
    """Returns the matrix of a rotation vector (Rodrigues)."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle if angle else vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def turned(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the rotation vector, in the base's frame, from one state's hand to another's."""
    change = rotation(after[3:6]) @ rotation(before[3:6]).T
    axis = np.array(
        [change[2, 1] - change[1, 2], change[0, 2] - change[2, 0], change[1, 0] - change[0, 1]]
    )
    angle = np.arccos(np.clip((np.trace(change) - 1) / 2, -1, 1))
    return axis / max(np.linalg.norm(axis), 1e-9) * angle


def moves(address: str) -> dict[str, list[float]]:
    """Returns, for each thing that the policy was told, the hand's change: x y z, turn, opening."""
    found = {}
    with Client(address) as client, panda("libero_spatial_0") as simulator:
        families.check_record(FAMILY, client.metadata["embodiment"])
        simulator.reset(0)
        for said in [*SAID, "gripper closed", "gripper open"]:
            if said in SAID:
                simulator.reset(0)

            def observe(said: str = said) -> RawObservation:
                return {**simulator.observe(), "prompt": said}

            before, controller = simulator.observe()["state"], Controller(client)
            for _ in range(TICKS):
                simulator.step(controller.action(observe))
            after = simulator.observe()["state"]
            change = [*(after - before)[:3], *turned(before, after), after[6] - after[7]]
            found[said] = [float(number) for number in change]
    return found


def reach(task: str = "libero_object_0", thing: str = "alphabet_soup_1") -> dict[str, float]:
    """Puts the hand over a thing, then at it, and returns the distances in m: at first, at last."""
    with panda(task) as simulator:
        simulator.reset(0)

        def goal() -> np.ndarray:
            return np.array(simulator.env.sim.data.get_body_xpos(f"{thing}_main"))

        def act(observations: Sequence[RawObservation], seeds: np.ndarray) -> np.ndarray:
            """Goes 5 cm a step at most, by five equal steps of a chunk, and stays 12 cm above."""
            chunks = np.zeros((len(observations), 10, 7), np.float32)
            chunks[..., 6] = -1.0
            for chunk, one in zip(chunks, observations, strict=True):
                way = goal() - one["state"][:3]
                way[2] += 0.12 if np.linalg.norm(way[:2]) > 0.01 else 0.0
                chunk[:, :3] = np.clip(way / 5 / 0.05, -1, 1)
            return chunks

        def distance() -> float:
            return float(np.linalg.norm(simulator.observe()["state"][:3] - goal()))

        first, execution = distance(), OpenLoop(FAMILY.record.execute_steps)
        for _ in range(150):
            wanted = execution.wants_chunk()
            chunk = act([{**simulator.observe(), "prompt": thing}], np.zeros(1))[0]
            action, execution = execution.step(chunk if wanted else None)
            simulator.step(action)
            if distance() < 0.015:
                break
        return {"first": first, "last": distance()}


def images() -> dict[str, list[bool]]:
    """Compares with LIBERO's own environment, and a used simulator with a fresh one."""
    from libero.libero.envs import OffScreenRenderEnv

    actions = np.random.default_rng(0).uniform(-1, 1, (7, 7))
    with panda("libero_goal_0") as one, panda("libero_goal_1") as other:
        one.reset(3), other.reset(0)
        for action in actions:
            one.step(-action), other.step(action)
        one.reset(1)
        for action in actions:
            one.step(action)
        ours = one.observe()
        with contextlib.closing(
            OffScreenRenderEnv(
                bddl_file_name=one.env.env.bddl_file_name, camera_heights=256, camera_widths=256
            )
        ) as env:
            env.seed(SEED + 1)
            env.reset()
            env.set_init_state(one._states[1])
            for action in [[0.0] * 6 + [-1.0]] * 10 + list(actions):
                theirs = env.step(action)[0]
    return {
        **{
            name: [bool(np.array_equal(ours["images"][name], sent(theirs[f"{camera}_image"])))]
            for name, camera in _CAMERAS.items()
        },
        "state": [
            bool(np.array_equal(ours["state"][:3], theirs["robot0_eef_pos"].astype(np.float32)))
        ],
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        found = {"moves": moves, "reach": reach, "images": images}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(found))
