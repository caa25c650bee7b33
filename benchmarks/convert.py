"""Measures the conversion of a full-size random π0 to another format and back.

It reports wall time and peak memory, and checks that every bit is the same. Each conversion is the
command in a process of its own, as a user runs it. The random checkpoint is made layer by layer,
and made again for the comparison, so nothing ever holds the whole model. In float32 it needs about
40 GB of disk.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks import arm
from benchmarks.random_checkpoint import random_source
from pi0_jax import convert
from pi0_jax.convert import ours
from pi0_jax.convert.source import compare
from pi0_jax.models.pi0 import VARIANTS

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class Measurement(NamedTuple):
    """Holds what one conversion took; memory is the peak of what is resident."""

    conversion: str
    dtype: str
    seconds: float
    peak_gib: float
    written_gib: float


def benchmark_convert(folder: Path, *, to: str, dtype: str, variant: str) -> list[Measurement]:
    """Converts from our format to another and back, in a folder.

    Args:
        folder: where files are made. Only the directory in the other format stays there.
        to: the other format.
        dtype: the weights' dtype, a name in DTYPES.
        variant: the model's size.

    Raises:
        AssertionError: a bit of some leaf differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, there = (
        random_source(VARIANTS[variant], lambda path: DTYPES[dtype], [arm.ROBOTS[3]]),
        folder / f"{to}_{dtype}",
    )
    with tempfile.TemporaryDirectory(dir=folder) as begin:
        ours.write(source, Path(begin))
        forth = _measured(Path(begin), there, to, dtype)
    with tempfile.TemporaryDirectory(dir=folder) as parent:
        back = Path(parent, "back")
        measurements = [forth, _measured(there, back, ours.NAME, dtype)]
        differing = [
            comparison.path
            for comparison in compare(source, convert.open(str(back)))
            if comparison.differing
        ]
    assert not differing, differing
    return measurements


def _measured(source: Path, output: Path, to: str, dtype: str) -> Measurement:
    command = [
        sys.executable,
        "-m",
        "launch.convert",
        f"--input={source}",
        f"--output={output}",
        f"--to={to}",
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(command)}: status {os.waitstatus_to_exitcode(status)}")
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return Measurement(f"-> {to}", dtype, seconds, used.ru_maxrss / 2**20, size / 2**30)


def report(folder: Path, *, to: str, dtype: str, variant: str) -> tuple[str, list[dict[str, Any]]]:
    """Measures, and returns a table and its numbers."""
    measurements = benchmark_convert(folder, to=to, dtype=dtype, variant=variant)
    return table(measurements), [m._asdict() for m in measurements]


def table(measurements: list[Measurement]) -> str:
    """Returns the measurements as a Markdown table."""
    lines = [
        "| conversion | dtype | seconds | peak resident memory, GiB | written, GiB |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {m.conversion} | {m.dtype} | {m.seconds:.0f} | {m.peak_gib:.1f} | {m.written_gib:.1f} |"
        for m in measurements
    ]
    return "\n".join(lines)
