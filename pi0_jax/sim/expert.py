"""Plays the scripted expert of the reach world, and records its demonstrations.

    goal point --damped least squares--> joint targets
               --proportional control--> clean command --+ noise--> executed
                                               |
                                            recorded

What is recorded is the clean command for the state that the arm is really in. Where perturbations
have pushed the arm off the straight way, the clean command is the correction. A record of what was
executed would teach the noise. The chunk that a policy learns at step t holds the clean commands of
t, t+1, ... Those after a perturbation answer a push that nobody can see at t. So large pushes are
rare and the everyday noise is small.
"""

import dataclasses

import numpy as np

from pi0_jax.observation import RawObservation
from pi0_jax.sim.reach import ReachEnv
from pi0_jax.sim.scene import ReachScene

_GAIN = 0.35  # the share of the remaining joint error that one tick commands
_MAX_STEP = 0.15  # rad per tick and joint
_NOISE = 0.01  # rad, the standard deviation of every executed command
_KNOCK_PROBABILITY = 0.05  # per tick
_KNOCK = 0.15  # rad, the standard deviation over the joints
_TICKS_AFTER_SUCCESS = 3
_MAX_ATTEMPTS = 20

_DAMPING = 0.02  # m
_IK_STEPS = 200
_IK_TOLERANCE = 5e-4  # m
_LEAN = 0.02  # the share of the way home that the redundant motions go in one IK step


def goal_joints(scene: ReachScene, point: np.ndarray) -> np.ndarray:
    """Returns joint angles that bring the fingertip to a point.

    The method is damped least squares (Levenberg-Marquardt with constant damping). It starts from
    the home posture, turned towards the point. Motion that the task leaves free leans home. So the
    answer depends on the point alone, and demonstrations agree.

        joints += J^T (J J^T + damping^2 I)^-1 error  +  lean (I - J^+ J) (home - joints)

    Args:
        scene: the arm's scene.
        point: float[3], m.

    Returns:
        float64[n], rad, within the joints' limits.
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
    """Returns the expert's clean command at `joints` on the way to `goal`: absolute joint targets.

    All are float[n], rad.
    """
    return joints + np.clip(_GAIN * (goal - joints), -_MAX_STEP, _MAX_STEP)


@dataclasses.dataclass(frozen=True)
class DemonstrationStep:
    """Holds one step: what was seen, the clean command (float32[n], rad) and the reward."""

    observation: RawObservation
    action: np.ndarray
    reward: float


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """Holds a successful episode.

    The arm stays at its goal for a few ticks more, so that the data also show how to stay.
    """

    robot: str
    seed: int
    color: str
    steps: tuple[DemonstrationStep, ...]


def demonstrate(env: ReachEnv, seed: int) -> Demonstration:
    """Returns a successful episode, decided by the robot, the image size and the seed alone.

    The episode runs in `env`. An attempt that fails is dropped, and another one is drawn.

    Raises:
        RuntimeError: 20 attempts have failed.
    """
    for attempt in range(_MAX_ATTEMPTS):
        rng = np.random.default_rng((seed, attempt))
        steps, success = _attempt(env, rng)
        if success:
            return Demonstration(env.robot, seed, env.prompt_color, tuple(steps))
    failed = f"the expert failed {_MAX_ATTEMPTS} times on end from seed {seed}"
    raise RuntimeError(f"{env.robot}: {failed}")


def _attempt(env: ReachEnv, rng: np.random.Generator) -> tuple[list[DemonstrationStep], bool]:
    env.begin(seed=int(rng.integers(2**31)))
    goal = goal_joints(env.scene, env.goal(env.prompt_color))
    steps: list[DemonstrationStep] = []
    success = truncated = False
    ticks_left = _TICKS_AFTER_SUCCESS
    while ticks_left and not truncated:
        clean = command(env.joints, goal)
        observation = env.observe()
        # There is no knock at the end. Past the end a chunk repeats the last command, and that
        # command should be one to stay at.
        executed = clean + _perturbation(
            rng, len(clean), knock_probability=0.0 if success else _KNOCK_PROBABILITY
        )
        reward, _, truncated, info = env.advance(executed)
        steps.append(DemonstrationStep(observation, clean.astype(np.float32), reward))
        success = success or info["success"]
        ticks_left -= success
    return steps, success


def _perturbation(rng: np.random.Generator, joints: int, *, knock_probability: float) -> np.ndarray:
    """Draws what is added to a command: the everyday noise and perhaps a knock, float64[n], rad."""
    knocked = rng.random() < knock_probability
    return rng.normal(0.0, _NOISE, joints) + knocked * rng.normal(0.0, _KNOCK, joints)
