"""Measures the time from a process's start to its first action, and what a server compiles.

cold      an empty compilation cache: imports, checkpoint, tracing, compilation, one call
warm      the same, but compilations are read from what the cold run has left in the cache
warm-up   Policy.warm_up as a server calls it, with an empty cache
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

ROUNDS = 3


class Start(NamedTuple):
    """Holds seconds since the process began, by CLOCK_MONOTONIC, which processes share."""

    imported: float
    opened: float
    acted: float


class WarmUp(NamedTuple):
    """Holds the number of programs that a server compiles, and seconds of clock and processor."""

    programs: int
    seconds: float
    processor_seconds: float


class Starts(NamedTuple):
    """Holds starts with an empty cache and with the cache that it has left, and a server's."""

    cold: Start
    warm: Start
    warm_up: WarmUp

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
        The fastest cold and warm start, and the quickest warm-up.
    """
    cold, warm, warm_ups = [], [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(_start(checkpoint, how, cache, cameras))
            warm.append(_start(checkpoint, how, cache, cameras))
        warm_ups.append(WarmUp(*_measured("warm-up", checkpoint, how, "", cameras)))
    acted, processor = attrgetter("acted"), attrgetter("processor_seconds")
    return Starts(min(cold, key=acted), min(warm, key=acted), min(warm_ups, key=processor))


def _start(checkpoint: Path, how: Mapping[str, Any], cache: str, cameras: int) -> Start:
    begin = time.monotonic()
    stamps = _measured("act", checkpoint, how, cache, cameras)
    return Start(*(stamp - begin for stamp in stamps))


def _measured(
    what: str, checkpoint: Path, how: Mapping[str, Any], cache: str, cameras: int
) -> list[Any]:
    """Runs this file in a process of its own, and returns the numbers that it prints."""
    command = [sys.executable, "-m", "benchmarks.first_action", what]
    command += [str(checkpoint), json.dumps(how), cache, str(cameras)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout)


def _warm_up(checkpoint: str, how: Mapping[str, Any], cache: str, cameras: int) -> WarmUp:
    import jax

    from benchmarks import arm
    from pi0_jax import compilation
    from pi0_jax.policy import Policy

    compilation.keep(cache)
    policy = Policy.open(checkpoint, **how)
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: events.append(event)
    )
    clock, processor = time.perf_counter(), time.process_time()
    policy.warm_up(robot=arm.ROBOTS[cameras].name, image_sizes=(arm.IMAGE_SIZE,))
    compiled = sum(event.endswith("backend_compile_duration") for event in events)
    return WarmUp(compiled, time.perf_counter() - clock, time.process_time() - processor)


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
    return {name: part._asdict() for name, part in starts._asdict().items()} | {
        "ratio": starts.ratio
    }


def table(starts: Starts) -> str:
    """Returns a Markdown table of the seconds that each phase takes."""
    lines = ["| start | imports, s | opening | first action | in all |", "|---|---|---|---|---|"]
    for name, start in (("cold", starts.cold), ("warm", starts.warm)):
        phases = f"{start.imported:.2f} | {start.opened - start.imported:.2f} | {start.acted - start.opened:.2f}"
        lines.append(f"| {name} | {phases} | {start.acted:.2f} |")
    programs, clock, processor = starts.warm_up
    lines.append(
        f"warm-up: {programs} programs, {clock:.2f} s, {processor:.2f} s of processor time"
    )
    return "\n".join([*lines, f"warm / cold: {starts.ratio:.2f}"])


if __name__ == "__main__":
    measure = {"act": _act, "warm-up": _warm_up}[sys.argv[1]]
    checkpoint, how, cache, cameras = sys.argv[2:]
    sys.stdout.write(json.dumps(measure(checkpoint, json.loads(how), cache, int(cameras))))
