"""Metrics to JSON lines and TensorBoard."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import tensorboardX

from pi0_jax.errors import InputError

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends to workdir/metrics.jsonl and workdir/tensorboard. What a resumed run will do again is taken off first."""

    def __init__(self, workdir: Path, *, start: int) -> None:
        path = workdir / METRICS_FILE
        kept = [line for line in read_metrics(workdir) if line["step"] <= start] if path.exists() else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")
        # The suffix keeps a run that resumes within the same second from overwriting the file of the one before.
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1, filename_suffix=f".{start}")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """`step` counts steps done: the first update's metrics have step 1."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics file. A last line that a killed run left unfinished is dropped."""
    path = workdir / METRICS_FILE
    if not path.exists():
        raise InputError(f"{path}: no metrics there; launch.train writes them to its workdir")
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
