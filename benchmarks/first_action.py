"""Measures the time from a process's start to its first action.

cold    an empty compilation cache: imports, checkpoint, tracing, compilation, one call
warm    the same, but compilations are read from what the cold run has left in the cache
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROUNDS = 3


class Start(NamedTuple):
    """Holds seconds since the process began, by CLOCK_MONOTONIC, which processes share."""

    imported: float
    opened: float
    acted: float


class Starts(NamedTuple):
    """Holds a start with an empty cache, and one with the cache that it has left."""

    cold: Start
    warm: Start

    @property
    def ratio(self) -> float:
        return self.warm.acted / self.cold.acted


def benchmark_starts(checkpoint: Path, how: Mapping[str, Any], cameras: int = 3) -> Starts:
    """Starts processes that open a checkpoint and ask it for one chunk.

    Args:
        checkpoint: the checkpoint of random_checkpoint.
        how: arguments of Policy.open.
        cameras: the robot's number of cameras.

    Returns:
        The fastest cold and the fastest warm start.
    """
    rounds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            rounds.append([_start(checkpoint, how, cache, cameras) for _ in Starts._fields])
    return Starts(
        *(min(starts, key=lambda start: start.acted) for starts in zip(*rounds, strict=True))
    )


def _start(checkpoint: Path, how: Mapping[str, Any], cache: str, cameras: int) -> Start:
    begin = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "benchmarks.first_action",
        str(checkpoint),
        json.dumps(how),
        cache,
        str(cameras),
    ]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Start(*(stamp - begin for stamp in json.loads(process.stdout)))


def _act(checkpoint: str, how: Mapping[str, Any], cache: str, cameras: int) -> list[float]:
    from benchmarks import arm
    from pi0_jax import compilation
    from pi0_jax.policy import Policy

    imported = time.monotonic()
    compilation.keep(cache)
    policy = Policy.open(checkpoint, **how)
    opened = time.monotonic()
    policy(arm.observation(cameras), robot=arm.ROBOTS[cameras].name)
    return [imported, opened, time.monotonic()]


def to_json(starts: Starts) -> dict[str, Any]:
    """Returns the seconds since each process began, for JSON."""
    return {"cold": starts.cold._asdict(), "warm": starts.warm._asdict(), "ratio": starts.ratio}


def table(starts: Starts) -> str:
    """Returns a Markdown table of the seconds that each phase takes."""
    lines = ["| start | imports, s | opening | first action | in all |", "|---|---|---|---|---|"]
    for name, start in starts._asdict().items():
        phases = f"{start.imported:.2f} | {start.opened - start.imported:.2f} | {start.acted - start.opened:.2f}"
        lines.append(f"| {name} | {phases} | {start.acted:.2f} |")
    return "\n".join([*lines, f"warm / cold: {starts.ratio:.2f}"])


if __name__ == "__main__":
    sys.stdout.write(
        json.dumps(_act(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
    )
