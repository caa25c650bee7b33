"""Rules that several public datasets share. Gripper actions: 1 = open, 0 = closed."""

import numpy as np

from pi0_jax.data.rows import Standardised

GRIPPER_OPEN = 0.95
GRIPPER_CLOSED = 0.05


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """The same angles in (-pi, pi], rad: the short way round, so that a step from 179° to -179° is 2° and not -358°."""
    return angle - 2 * np.pi * np.ceil((angle - np.pi) / (2 * np.pi))


def binarize_gripper(opening: np.ndarray) -> np.ndarray:
    """float[T] openings as commands: above 0.95 open (1), below 0.05 closed (0), between the two what is reached next.

    opening   1.0  0.7  0.3  0.0  0.4  0.6
    command    1    0    0    0   0.6  0.6      an unfinished movement at the end keeps the last value
    """
    steps = np.arange(len(opening))
    settled = (opening > GRIPPER_OPEN) | (opening < GRIPPER_CLOSED)
    settled[-1:] = True
    reached = np.minimum.accumulate(np.where(settled, steps, len(steps))[::-1])[::-1]  # the next settled step
    value = np.where(opening > GRIPPER_OPEN, 1.0, np.where(opening < GRIPPER_CLOSED, 0.0, opening))
    return value[reached].astype(opening.dtype)


def all_steps(state: np.ndarray, action: np.ndarray) -> Standardised:
    """An episode whose every step has an action and may be drawn."""
    return Standardised(state, action, np.ones(len(state), bool), stop=len(state))
