"""Damages a checkpoint's files at random, and opens each with what reads it.

python -m tests.mutate_checkpoints [COUNT] [SEED]

    flip     one bit of a file          description, ema       -> a policy must refuse it, naming
    cut      its end                                              the file
    delete   the file                   params, optimizer,     -> a resumption must say so, naming
    swap     with another file          metrics, and all          the file, and go on from the step
    drop     a folder with its files    others                    before, to the bit

All happens in one process, because what is opened holds nothing between two openings. What is
written to the file descriptor of stderr counts too. Orbax writes two files of a step when all is
done, and nobody reads them for what they hold: damaged, they must change nothing.
"""

import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0_jax import checkpoints
from pi0_jax.checkpoints import RunCheckpoints
from pi0_jax.errors import InputError
from pi0_jax.policy import Policy
from pi0_jax.train.distributed import Processes
from pi0_jax.train.workdir import choose_step
from tests import policies

ROBOT = "reach_arm3"
BEFORE, DAMAGED = 4, 8
READ_BY_NOBODY = ("_CHECKPOINT_METADATA", "commit_success.txt")
READ_BY_A_POLICY = ("description", "ema", "manifest")
HANG_SECONDS = 60.0


def state_at(step: int) -> Any:
    """Returns a TrainState of a policy's parameters."""
    params = policies.parameters(policies.run_config(), step)
    counters = dict(step=jnp.int32(step), skipped=jnp.int32(0))
    moments = {"mu": jax.tree.map(lambda leaf: leaf * 2, params)}
    return State(params=params, ema=params, factors={}, opt_state=moments, **counters)


class State(SimpleNamespace):
    def _replace(self, **changes: Any) -> "State":
        return State(**(vars(self) | changes))


def write_run(workdir: Path) -> None:
    """Writes a run of two steps."""
    saved = RunCheckpoints(workdir, keep=2)
    robots = {ROBOT: policies.robot(ROBOT)}
    for step in (BEFORE, DAMAGED):
        description = policies.description(policies.run_config(), robots, step)
        saved.save(state_at(step), description, {"validation/loss": 0.5})
    saved.close()


def mutate(step: Path, rng: random.Random) -> tuple[str, set[str]]:
    """Damages a step's folder.

    Returns:
        What was done, and the paths of the files that have changed; no paths if nothing changed.
    """
    files = sorted(path for path in step.rglob("*") if path.is_file())
    kind = rng.choices(["flip", "cut", "delete", "swap", "drop"], [5, 2, 2, 2, 1])[0]
    file = rng.choice(files)
    name = str(file.relative_to(step))
    data = file.read_bytes()
    if kind == "flip":
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        file.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
        return f"flip bit {bit} of byte {place} of {name}", {name}
    if kind == "cut":
        length = rng.randrange(len(data))
        file.write_bytes(data[:length])
        return f"cut {name} to {length}", {name}
    if kind == "delete":
        file.unlink()
        return f"delete {name}", {name}
    if kind == "swap":
        other = rng.choice(files)
        theirs = other.read_bytes()
        file.write_bytes(theirs)
        other.write_bytes(data)
        changed = {name, str(other.relative_to(step))} if theirs != data else set()
        return f"swap {name} and {other.relative_to(step)}", changed
    folder = rng.choice(sorted(path for path in step.rglob("*") if path.is_dir()))
    gone = {str(path.relative_to(step)) for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder)
    return f"drop {folder.relative_to(step)}", gone


def outcome(workdir: Path, changed: set[str]) -> str:
    """Opens a damaged run; "refused" or "unharmed", or what is wrong with that."""
    names = [name for name in changed if name not in READ_BY_NOBODY]
    by_policy = any(name.split("/")[0] in READ_BY_A_POLICY for name in names)
    lines: list[str] = []
    try:
        if by_policy:
            Policy.open(workdir)
        else:
            resume(workdir, lines)
    except InputError as error:
        lines.append(str(error))
    except Exception:
        return f"traceback: {' '.join(traceback.format_exc().split())[-600:]}"
    if not names:
        return "unharmed" if not lines else f"said without need: {lines}"
    if not lines:
        return "silent"
    named = any(name in lines[0] for name in names) or "manifest: expected" in lines[0]
    return "refused" if named and "\n" not in lines[0] else f"not named: {lines[0]}"


def resume(workdir: Path, lines: list[str]) -> None:
    """Does what a run does before it trains.

    Raises:
        AssertionError: the run would go on from other numbers than were saved.
    """
    place, accept = checkpoints.locate(workdir), partial(checkpoints.read_resumable, workdir)
    step, _ = choose_step(place, Processes(), None, lines.append, accept)
    saved = RunCheckpoints(workdir, keep=2)
    wanted = state_at(step)
    found = saved.restore(step, wanted)
    saved.close()
    for ours, theirs in zip(*map(jax.tree.leaves, (vars(found), vars(wanted))), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Sends all of stderr to a file, also what libraries in C++ write."""
    sys.stderr.flush()
    before = os.dup(2)
    with path.open("w") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)


def run(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Returns how many of `count` mutations ended how, and a line for each that went wrong."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        whole, damaged = Path(folder) / "whole", Path(folder) / "damaged"
        write_run(whole)
        Policy.open(whole)
        while sum(counts.values()) < count:
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(whole, damaged)
            what, changed = mutate(damaged / "checkpoints" / str(DAMAGED), rng)
            if not changed:
                continue
            # a hang cannot be ended from here: it ends all, saying where
            watch = threading.Timer(HANG_SECONDS, _end, [what])
            watch.start()
            noise = Path(folder) / "stderr"
            with stderr_to(noise):
                found = outcome(damaged, changed)
            watch.cancel()
            if text := noise.read_text().strip():
                wrong.append(f"{what}: printed {text[:300]}")
            counts[found.split(":")[0]] += 1
            if found not in ("refused", "unharmed"):
                wrong.append(f"{what}: {found}")
    return counts, wrong


def _end(what: str) -> None:
    os.write(2, f"hang: {what}\n".encode())
    os._exit(1)


def main() -> int:
    count, seed = (int(text) for text in (sys.argv[1:] + ["1000", "0"][len(sys.argv) - 1 :]))
    start = time.monotonic()
    counts, wrong = run(count, seed)
    print(f"{count} mutations in {time.monotonic() - start:.0f} s:", dict(counts))
    print("\n".join(wrong) or "none silent, no traceback, no hang, nothing else printed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
