"""Plays Meta-World's scripted experts, in the simulator's environment: a process of its own.

    python -m pi0_jax.sim.metaworld.demonstrations    jobs on stdin, their episodes on stdout

What is recorded is the expert's clean action for the state that the arm is really in. A perturbed
episode executes that action with noise added, so that the data also show how to come back. An
attempt that fails is dropped, and another one is drawn.
"""

import contextlib
import dataclasses
import functools
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pi0_jax.data.write import ArrayFeature, Features, ImageFeature, TextFeature, serialised
from pi0_jax.errors import InputError
from pi0_jax.sim import gl
from pi0_jax.sim.benchmark.families import opened, stream
from pi0_jax.sim.metaworld import CAMERA, FAMILIES, HELD, LEROBOT, Protocol, Sawyer

PROTOCOLS = {protocol.name: protocol for protocol in (LEROBOT, HELD)}
MOST_ATTEMPTS = 100
# So long an episode goes on after its success, in ticks: a chunk's end then shows how to stay.
_TICKS_AFTER_SUCCESS = 10
METADATA_FEATURES: Features = {
    "task": TextFeature(),
    "seed": ArrayFeature((), np.int64),
    "attempts": ArrayFeature((), np.int64),
    "perturbed": ArrayFeature((), np.bool_),
}


class Job(NamedTuple):
    """Asks for some episodes of a task.

    Every second episode is perturbed: normal noise of standard deviation `noise` is added to each
    number of its actions. `side` is the images' height and width; 0 takes the protocol's.
    """

    protocol: str
    task: str
    split: int
    episodes: range
    seed: int
    noise: float
    side: int


class Done(NamedTuple):
    """Holds a job's episodes as serialised records, or None where the expert failed too often."""

    records: list[bytes]
    attempts: int
    failed: str | None = None


def step_features(side: int) -> Features:
    """Returns the features of a step, with images of so many pixels a side."""
    numbers = ArrayFeature((4,), np.float32)
    flag, number = ArrayFeature((), np.bool_), ArrayFeature((), np.float32)
    return {
        "observation": {CAMERA: ImageFeature(side, side), "state": numbers},
        "action": numbers,
        "language_instruction": TextFeature(),
        **dict.fromkeys(("is_first", "is_last", "is_terminal"), flag),
        **dict.fromkeys(("reward", "discount"), number),
    }


def run(job: Job) -> Done:
    """Plays a job's episodes; each depends on the job's seed, task, split and its number alone."""
    protocol = PROTOCOLS[job.protocol]
    if job.side:
        protocol = dataclasses.replace(protocol, side=job.side)
    simulator, expert = _opened(job.task, protocol)
    records, attempts = [], 0
    for episode in job.episodes:
        noise = job.noise if episode % 2 else 0.0
        for attempt in range(MOST_ATTEMPTS):
            random = stream(job.seed, job.task, job.split, episode, attempt)
            steps = _attempt(simulator, expert, protocol, random, noise)
            attempts += 1
            if steps:
                about = {
                    "task": job.task, "seed": job.seed, "attempts": attempt + 1,
                    "perturbed": bool(noise),
                }  # fmt: skip
                found = {
                    "steps": _as_rlds(steps, FAMILIES[job.protocol].tasks[job.task]),
                    "episode_metadata": about,
                }
                records.append(serialised(step_features(protocol.side), METADATA_FEATURES, found))
                break
        else:
            failed = (
                f"{job.task}: the expert failed {MOST_ATTEMPTS} times on end, episode {episode}"
            )
            return Done(records, attempts, failed)
    return Done(records, attempts)


@functools.lru_cache(maxsize=4)
def _opened(task: str, protocol: Protocol) -> tuple[Sawyer, Any]:
    own = dataclasses.replace(
        FAMILIES[protocol.name], open=functools.partial(Sawyer, protocol=protocol)
    )
    simulator = opened(own, task)
    assert isinstance(simulator, Sawyer)
    with gl.importing_mujoco():
        from metaworld.policies import ENV_POLICY_MAP
    return simulator, ENV_POLICY_MAP[f"{task}-v3"]()


def _attempt(
    simulator: Sawyer, expert: Any, protocol: Protocol, random: np.random.Generator, noise: float
) -> list[tuple[Mapping[str, Any], np.ndarray]]:
    """Returns (observation, clean action) for every step; none if the expert does not succeed."""
    simulator.reset(int(random.integers(2**31)))
    steps: list[tuple[Mapping[str, Any], np.ndarray]] = []
    left, success = protocol.most_actions, False
    while left:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experts say that their gains may be too high
            clean = np.clip(expert.get_action(simulator.seen), -1, 1).astype(np.float32)
        steps.append((simulator.observe(), clean))
        executed = clean + noise * random.standard_normal(4) if noise else clean
        now, left = simulator.step(executed), left - 1
        if now and not success:
            success, left = True, min(left, _TICKS_AFTER_SUCCESS // protocol.ticks)
    return steps if success else []


def _as_rlds(
    steps: list[tuple[Mapping[str, Any], np.ndarray]], instruction: str
) -> list[dict[str, Any]]:
    last = len(steps) - 1
    return [
        {
            "observation": {CAMERA: seen["images"][CAMERA], "state": seen["state"]},
            "action": action,
            "language_instruction": instruction,
            "is_first": i == 0,
            "is_last": i == last,
            "is_terminal": i == last,
            "reward": float(i == last),
            "discount": 1.0,
        }
        for i, (seen, action) in enumerate(steps)
    ]


def main() -> None:
    """Answers jobs until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            job = pickle.load(sys.stdin.buffer)
            try:
                done = run(Job(*job))
            except InputError as error:
                done = Done([], 0, str(error))
            pickle.dump(tuple(done), answers)
            answers.flush()


if __name__ == "__main__":
    main()
