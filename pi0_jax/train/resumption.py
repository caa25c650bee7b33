"""A run resumes from the newest whole checkpoint, or from the step that the user names.

What it passes over is moved aside.

    checkpoints/4    whole      <- the run resumes from it
    checkpoints/8    damaged    -> set_aside/step_8
"""

import json
from collections.abc import Callable
from typing import TypeVar

from etils import epath

from pi0_jax import checkpoints
from pi0_jax.checkpoints import manifest
from pi0_jax.checkpoints.folder import FOLDER, steps
from pi0_jax.errors import InputError
from pi0_jax.train.distributed import Processes

ASIDE = "set_aside"
T = TypeVar("T")


def choose_step(
    workdir: epath.Path,
    processes: Processes,
    wanted: int | None,
    tell: Callable[[str], None],
    accept: Callable[[int], T],
) -> tuple[int, T] | None:
    """Returns the step to resume from, and what `accept` gives; None without a checkpoint.

    Every process calls it, and each verifies a share of the files.

    Args:
        workdir: the run's folder.
        processes: the processes that train together.
        wanted: the step that the user names; None takes the newest that is whole.
        tell: is given a line for each step that is moved aside, in process 0.
        accept: is given the step before anything is moved, and raises InputError if the run
            cannot go on from it.

    Raises:
        InputError: `wanted` is not there or damaged; or there are steps, and none is whole; or
            `accept` raises it.
    """
    everyone = steps(workdir) if processes.first else []
    known: list[int] = json.loads(processes.broadcast("steps", json.dumps(everyone)))
    if wanted is not None and wanted not in known:
        raise InputError(
            f"--step={wanted}: {workdir} has no such checkpoint; expected one of {', '.join(map(str, known)) or 'none'}"
        )
    damaged: dict[int, str] = {}
    chosen = None
    for step in [wanted] if wanted is not None else reversed(known):
        if (found := _damage(workdir, step, processes)) is None:
            chosen = step
            break
        damaged[step] = found
    if damaged and chosen is None:
        reason = next(iter(damaged.values()))
        raise InputError(
            f"--step={wanted}: {reason}"
            if wanted is not None
            else f"no checkpoint of {workdir} is whole; the newest: {reason}"
        )
    accepted = None if chosen is None else (chosen, accept(chosen))
    if processes.first and chosen is not None:
        for step in known:
            why = damaged.get(step) or _of_another_run(workdir, step, chosen)
            if why is not None:
                tell(f"{why}; moved aside to {_move_aside(workdir, step)}")
        if damaged:
            tell(f"going on from step {chosen}, the newest that is whole")
    processes.gather("moved aside", "")
    return accepted


def _damage(workdir: epath.Path, step: int, processes: Processes) -> str | None:
    """Returns the first damage that a process found in its share of a step's files, or None."""
    share = processes.index, processes.count
    mine = checkpoints.damage(workdir / FOLDER / str(step), share)
    return next(filter(None, processes.gather(f"damage of {step}", mine or "")), None)


def _of_another_run(workdir: epath.Path, step: int, chosen: int) -> str | None:
    """Says why a step beside the chosen one cannot stay; None if it can.

    The run will save the step again, or cannot read how good it was.
    """
    folder = workdir / FOLDER / str(step)
    if step > chosen:
        return f"{folder}: after step {chosen}, from which this run goes on"
    return manifest.damage(folder, parts=("metrics",)) if manifest.exists(folder) else None


def _move_aside(workdir: epath.Path, step: int) -> epath.Path:
    """Moves a step's folder to a free name below set_aside, and returns that."""
    place = workdir / ASIDE / f"step_{step}"
    number = 1
    while place.exists():
        number += 1
        place = workdir / ASIDE / f"step_{step}_{number}"
    place.parent.mkdir(exist_ok=True)
    return (workdir / FOLDER / str(step)).rename(place)
