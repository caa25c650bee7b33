"""Other people's models run beside ours, on the same weights and the same input.

Their packages are installed by whoever compares: LeRobot, or torch with transformers.
"""

import platform
from typing import NamedTuple

import jax
import numpy as np


class Comparison(NamedTuple):
    """Holds how far an output of ours (a) is from the other's (b)."""

    output: str
    absolute: float  # max|a-b|
    relative: float  # max|a-b| / max|b|


def compare(output: str, ours: np.ndarray, theirs: np.ndarray) -> Comparison:
    """Compares two outputs."""
    assert ours.shape == theirs.shape, (output, ours.shape, theirs.shape)
    error = float(np.abs(ours - theirs).max())
    return Comparison(output, error, error / float(np.abs(theirs).max()))


def environment() -> str:
    """Says in a sentence what the comparisons ran on."""
    import torch
    import transformers

    jax_, torch_, theirs = (module.__version__ for module in (jax, torch, transformers))
    before = f"float32 on a CPU, Python {platform.python_version()}"
    return f"{before}, JAX {jax_}, torch {torch_}, transformers {theirs}."
