"""The scripted expert, and its demonstrations.

    goal point --damped least squares--> joint targets --proportional control--> clean command --+noise--> executed
                                                                                    |
                                                                                 recorded

What is recorded is the clean command for the state that the arm is really in: where perturbations have pushed it off
the straight way, that is the correction. To record what was executed would be to teach the noise. The chunk that a
policy learns at step t is the clean commands of t, t+1, ...; those after a perturbation answer a push that cannot be
seen at t, so large pushes are rare and the everyday noise is small.
"""

import dataclasses

import numpy as np

from pi0_jax.observation import RawObservation
from pi0_jax.sim.reach import ReachEnv
from pi0_jax.sim.scene import ReachScene

_GAIN = 0.35  # share of the remaining joint error that one tick commands
_MAX_STEP = 0.15  # rad a tick and joint
_NOISE = 0.01  # rad, standard deviation of every executed command
_KNOCK_PROBABILITY = 0.05  # a tick
_KNOCK = 0.15  # rad, standard deviation over the joints
_TICKS_AFTER_SUCCESS = 3
_MAX_ATTEMPTS = 20

_DAMPING = 0.02  # m
_IK_STEPS = 200
_IK_TOLERANCE = 5e-4  # m
_LEAN = 0.02  # share of the way home that the redundant motions go in one IK step


def goal_joints(scene: ReachScene, point: np.ndarray) -> np.ndarray:
    """Joint angles that bring the fingertip to `point` (float[3], m): float64[n], rad.

    Damped least squares (Levenberg-Marquardt with constant damping) from the home posture turned towards the point;
    what motion the task leaves free leans home. So the answer depends on the point alone, and demonstrations agree.
    """
    low, high = scene.joint_limits.T
    joints = scene.home
    joints[0] = np.arctan2(point[1], point[0])
    for _ in range(_IK_STEPS):
        fingertip, jacobian = scene.fingertip_at(joints)
        error = point - fingertip
        if np.linalg.norm(error) < _IK_TOLERANCE:
            break
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + _DAMPING**2 * np.eye(3))
        free = np.eye(len(joints)) - np.linalg.pinv(jacobian) @ jacobian
        joints = np.clip(joints + inverse @ error + _LEAN * free @ (scene.home - joints), low, high)
    return joints


def command(joints: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The expert's clean command at `joints` on the way to `goal` (both float[n], rad): float64[n], rad."""
    return joints + np.clip(_GAIN * (goal - joints), -_MAX_STEP, _MAX_STEP)


@dataclasses.dataclass(frozen=True)
class DemonstrationStep:
    observation: RawObservation
    action: np.ndarray  # float32[n], rad: the clean command
    reward: float


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A successful episode. The arm stays at its goal for a few ticks more, so that staying is in the data too."""

    robot: str
    seed: int
    color: str
    steps: tuple[DemonstrationStep, ...]


def demonstrate(env: ReachEnv, seed: int) -> Demonstration:
    """A successful episode, a function of the robot and `seed`. An attempt that fails is dropped and drawn again."""
    for attempt in range(_MAX_ATTEMPTS):
        rng = np.random.default_rng((seed, attempt))
        steps, success = _attempt(env, rng)
        if success:
            return Demonstration(env.robot, seed, env.prompt_color, tuple(steps))
    raise RuntimeError(
        f"{env.robot}: the expert failed {_MAX_ATTEMPTS} times on end from seed {seed}"
    )


def _attempt(env: ReachEnv, rng: np.random.Generator) -> tuple[list[DemonstrationStep], bool]:
    env.begin(seed=int(rng.integers(2**31)))
    goal = goal_joints(env.scene, env.goal(env.prompt_color))
    steps: list[DemonstrationStep] = []
    success = truncated = False
    ticks_left = _TICKS_AFTER_SUCCESS
    while ticks_left and not truncated:
        clean = command(env.joints, goal)
        observation = env.observe()
        # No knock at the end: past it a chunk repeats the last command, which should then be one to stay at.
        executed = clean + _perturbation(
            rng, len(clean), knock_probability=0.0 if success else _KNOCK_PROBABILITY
        )
        reward, _, truncated, info = env.advance(executed)
        steps.append(DemonstrationStep(observation, clean.astype(np.float32), reward))
        success = success or info["success"]
        ticks_left -= success
    return steps, success


def _perturbation(rng: np.random.Generator, joints: int, *, knock_probability: float) -> np.ndarray:
    """float64[n], rad."""
    knocked = rng.random() < knock_probability
    return rng.normal(0.0, _NOISE, joints) + knocked * rng.normal(0.0, _KNOCK, joints)
