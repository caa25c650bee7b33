"""This file holds the function that a policy compiles, and draws the noise that it starts from.

Axes: B observations, H action horizon, D dimensions of the model.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, UInt32

from pi0_jax import preprocess
from pi0_jax.errors import InputError
from pi0_jax.models import sampling
from pi0_jax.models.pi0 import Pi0
from pi0_jax.observation import RawBatch, RawObservation, prompt_text
from pi0_jax.preprocess import Layout
from pi0_jax.preprocess.tokenizer import Tokenizer

# A prompt may be padded to one of these lengths, or to the run's max_tokens.
PROMPT_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256)
# A length gets a program of its own where it makes the prefix so much shorter than the next one
# does, in share. So a prefix has at most a seventh more tokens than if each length had one.
WORTH_A_PROGRAM = 1 / 8


class Prepared(NamedTuple):
    """Holds the host's half of a call: what the compiled function takes beside the weights."""

    batch: RawBatch
    dims: Bool[np.ndarray, "B D"]  # the dimensions that the robot has
    noise: Float32[Array | np.ndarray, "B H D"]
    layout: Layout  # static
    robot: str  # the name of its dataset
    states: Float32[np.ndarray, "B n"]  # in the robot's units


def robot_name(robots: Collection[str], name: str | None) -> str:
    """Returns the name of a policy's robot; None stands for its only one.

    Raises:
        InputError: there is no robot of that name, or several and none is named.
    """
    if name is None and len(robots) == 1:
        return next(iter(robots))
    if name is None:
        raise InputError(f"no robot is named: the checkpoint has several, {', '.join(robots)}")
    if name not in robots:
        raise InputError(f"robot {name!r}: the checkpoint has statistics for {', '.join(robots)}")
    return name


def prompt_lengths(longest: int, images: int) -> tuple[int, ...]:
    """Returns the lengths, in tokens, to which a prompt may be padded: ascending to `longest`.

    Behind many image tokens a shorter prompt saves little, so few lengths have a program.

    Args:
        longest: the most tokens that a prompt may have.
        images: the tokens of the images before the prompt.
    """
    lengths = [longest]
    for length in reversed(PROMPT_LENGTHS):
        if images + length <= (1 - WORTH_A_PROGRAM) * (images + lengths[-1]):
            lengths.append(length)
    return tuple(reversed(lengths))


def prompt_length(
    observations: Sequence[RawObservation],
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    state_dims: int | None,
) -> int:
    """Returns the first of the lengths that holds all prompts.

    It is the longest where none does, or where a prompt is missing or is no text. Of a state of so
    many dimensions in the prompt it holds any numbers, so it does not change while a robot moves.
    """
    prompts = [prompt_text(o["prompt"]) for o in observations if "prompt" in o]
    counts = [tokenizer.most_pieces(text, state_dims) for text in prompts if text is not None]
    needed = max(counts, default=0)
    return next((length for length in lengths if needed <= length), lengths[-1])


def start(
    seeds: Sequence[int] | np.ndarray | None,
    noise: np.ndarray | None,
    shape: tuple[int, int, int],
) -> Float32[Array | np.ndarray, "B H D"]:
    """Returns the noise of a call, float32[B, H, D].

    Args:
        seeds: one for each observation; None is all zeros.
        noise: float32[B, H, D], to be taken instead.
        shape: B, H and D.

    Raises:
        InputError: there is not one seed for each observation, a seed is no uint32, or the noise
            has another shape.
    """
    count = shape[0]
    if seeds is not None and len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds for {count} observations; expected one each")
    if seeds is not None and not all(
        isinstance(seed, int | np.integer) and 0 <= seed < 2**32 for seed in seeds
    ):
        raise InputError(f"seeds: expected whole numbers in [0, 2^32), found {list(seeds)}")
    if noise is None:
        return _noise(np.asarray(np.zeros(count) if seeds is None else seeds, np.uint32), shape[1:])
    if noise.shape != shape:
        raise InputError(f"noise has shape {list(noise.shape)}; expected {list(shape)}")
    return noise


@partial(jax.jit, static_argnames="shape")
def _noise(
    seeds: UInt32[Array | np.ndarray, " B"], shape: tuple[int, int]
) -> Float32[Array, "B H D"]:
    """Draws standard normal noise, for each observation from its own seed."""
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


def sample(
    weights: sampling.Packed,
    batch: RawBatch,
    dims: Bool[Array, "B D"],
    noise: Float32[Array, "B H D"],
    *,
    layout: Layout,
    model: Pi0,
    num_steps: int,
    real_dims_only: bool,
    unroll_steps: bool = False,
) -> Float32[Array, "B H D"]:
    """Samples action chunks from what the host has prepared; all of it is one program.

    Args:
        weights: see sampling.pack.
        batch: the observations.
        dims: bool[B, D], the dimensions that each robot has.
        noise: float32[B, H, D].
        layout: which camera slots there are, and how images and state are read; static.
        model, num_steps, unroll_steps: see sampling.sample.
        real_dims_only: whether the model was trained on the dimensions in `dims` alone.

    Returns:
        float32[B, H, D], in model units.
    """
    observation = preprocess.device(batch, layout)
    return sampling.sample(
        weights,
        observation,
        noise,
        model=model,
        num_steps=num_steps,
        dim_mask=dims if real_dims_only else None,
        unroll_steps=unroll_steps,
    )
