"""Runs that are killed at random instants end as those that are left alone.

python -m tests.kill_soak [--kills=60] [--seed=0]

    one        one process, one device
    four       one process, four virtual devices
    two        two processes on loopback, two devices each

For each kind one run is left alone. Others get SIGKILL while they start, train or save, and are
started again until they are done. Then parameters, average and optimizer state must have the same
bytes. The metrics must have the same lines, but for times and speeds.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.train.metrics import METRICS_FILE, read_metrics
from tests import training
from tests.tiny_data import write_reach
from tests.training import Process, saved_steps, start, start_two

SHARES = {"one": 0.4, "four": 0.3, "two": 0.3}  # of the kills
STEPS = 60
LONGER = dict(save_every=2, validate_every=5)
# JAX says this where a machine is too busy for two processes to find each other in time. The next
# life of the run goes on.
_TOO_BUSY = "Gloo context initialization failed: DEADLINE_EXCEEDED"
OF_TIME = {"time", "steps_per_second", "samples_per_second", "data_wait_share"}


class Soak:
    """Kills runs of one kind. `counts`: lives by how they began and ended."""

    def __init__(self, kind: str, folder: Path, data_dir: Path, seed: int, steps: int) -> None:
        self._kind, self._folder, self._data = kind, folder, data_dir
        self._rng = random.Random(f"{kind} {seed}")
        self._steps = steps
        self._config = dict(LONGER, steps=steps)
        self._log = 0
        self.counts: Counter[str] = Counter()
        self.alone = folder / f"{kind}_alone"
        self.killed = 0
        self._to_the_end(self.alone)

    def run(self, kills: int) -> list[str]:
        """Runs and kills until so many kills have hit.

        Returns what differs from the run that was left alone.
        """
        wrong: list[str] = []
        number = 0
        while self.killed < kills:
            workdir = self._folder / f"{self._kind}_{number}"
            number += 1
            while self.killed < kills and self._life(workdir):
                pass
            self._to_the_end(workdir)  # what is done already stays as it is
            wrong += [
                f"{workdir.name}: {text}" for text in differences(workdir, self.alone, self._steps)
            ]
            shutil.rmtree(workdir)
        return wrong

    def _life(self, workdir: Path) -> bool:
        """Starts the run and kills it; False if it was done before."""
        saved = steps_of(workdir)
        processes = self._start(workdir)
        moment = self._rng.choices(["start", "train", "save"], [1, 5, 5])[0]
        if moment == "start":
            time.sleep(self._rng.uniform(0, 4))
        else:
            goal = max(saved, default=0) + self._rng.randrange(3, 10)
            self._until(processes, lambda: done(workdir) >= goal)
            if moment == "save":
                self._until(processes, lambda: any(workdir.glob("checkpoints/*tmp*")))
            time.sleep(self._rng.uniform(0, 0.15))
        if any(process.ended() for process in processes):
            if not self._finish(processes):
                return True
            self.counts["done before the kill"] += 1
            return False
        for process in self._rng.sample(processes, len(processes)):
            process.send(signal.SIGKILL)
            time.sleep(self._rng.choice([0, 0.5]) if len(processes) > 1 else 0)
        # the second may have ended by itself: it has lost the first
        if -signal.SIGKILL not in [process.wait() for process in processes]:
            self.counts["done before the kill"] += 1
            return False
        self.killed += 1
        self.counts[f"killed at {moment}"] += 1
        print(
            f"{self._kind}: kill {self.killed} at {moment}, begun from {max(saved, default=0)}",
            flush=True,
        )
        self.counts["begun from a checkpoint" if saved else "begun anew"] += 1
        return True

    def _start(self, workdir: Path) -> list[Process]:
        self._log += 1
        log = self._folder / f"{workdir.name}_{self._log}"
        if self._kind == "two":
            return start_two(
                [self._data, self._data],
                workdir,
                devices=2,
                log=log,
                **self._config,
            )
        devices = 1 if self._kind == "one" else 4
        return [start(self._data, workdir, devices=devices, log=log, **self._config)]

    def _until(self, processes: list[Process], what: Any) -> None:
        while not what() and not any(process.ended() for process in processes):
            time.sleep(0.002)

    def _to_the_end(self, workdir: Path) -> None:
        while not self._finish(self._start(workdir)):
            pass

    def _finish(self, processes: list[Process]) -> bool:
        """Waits for all processes, and returns False if the machine was too busy for them.

        Raises:
            RuntimeError: a run fails otherwise.
        """
        # one by one: where one has failed, the others end when they miss it
        statuses = [process.wait(600) for process in processes]
        if not any(statuses):
            return True
        texts = [process.text for process in processes]
        if any(_TOO_BUSY in text for text in texts):
            self.counts["too busy to begin"] += 1
            return False
        raise RuntimeError(f"{self._kind}: statuses {statuses}: {texts[-1][-3000:]}")


def steps_of(workdir: Path) -> list[int]:
    return saved_steps(workdir) if (workdir / "checkpoints").exists() else []


def done(workdir: Path) -> int:
    """Steps that are in the metrics."""
    if not (workdir / METRICS_FILE).exists():
        return 0
    return max((line["step"] for line in read_metrics(workdir)), default=0)


def differences(workdir: Path, alone: Path, steps: int) -> list[str]:
    """Returns arrays of the last checkpoint with another byte, and metrics with another value."""
    found = []
    for item in ("params", "ema", "optimizer"):
        ours, theirs = (training.arrays(place, steps, item) for place in (workdir, alone))
        if ours.keys() != theirs.keys():
            found.append(f"{item}: other arrays")
        found += [
            f"{item}: {path}"
            for path in ours.keys() & theirs.keys()
            if np.ascontiguousarray(ours[path]).tobytes()
            != np.ascontiguousarray(theirs[path]).tobytes()
        ]
    lines = [timeless(place) for place in (workdir, alone)]
    if lines[0] != lines[1]:
        first = [pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]][:1]
        found.append(f"metrics: {first}, {len(lines[0])} and {len(lines[1])} lines")
    if (workdir / "set_aside").exists():
        found.append("a checkpoint was moved aside")
    return found


def timeless(workdir: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name not in OF_TIME and "flop" not in name}
        for line in read_metrics(workdir)
    ]


def soak(kills: int, seed: int, folder: Path, kinds: list[str], steps: int = STEPS) -> list[str]:
    """Prints a line for each kind. Returns what differs."""
    data_dir = folder / "data"
    data_dir.mkdir()
    write_reach(data_dir, lengths=(6,) * 8)
    wrong: list[str] = []
    shares = sum(SHARES[kind] for kind in kinds)
    for kind in kinds:
        begin = time.monotonic()
        runs = Soak(kind, folder, data_dir, seed, steps)
        wrong += runs.run(round(kills * SHARES[kind] / shares))
        print(f"{kind}: {runs.killed} kills in {time.monotonic() - begin:.0f} s, {dict(runs.counts)}", flush=True)  # fmt: skip
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--kinds", default=",".join(SHARES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        wrong = soak(given.kills, given.seed, Path(folder), given.kinds.split(","), given.steps)
    print("\n".join(wrong) or "no byte and no metric differs")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
