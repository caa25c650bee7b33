"""A full-size random π0 from ours to another format and back: wall time, peak memory, and whether every bit is the same.

Each conversion is the command of its own process, as a user runs it. The random checkpoint is made layer by layer, and made again to
compare with, so nothing ever holds the model. Needs about 40 GB of disk in float32.
"""

import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from pi0_jax import convert, normalize
from pi0_jax.convert import check, ours, tree
from pi0_jax.convert.metadata import Metadata, RobotRecord
from pi0_jax.convert.source import Leaf, is_stacked
from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.models.pi0 import VARIANTS
from pi0_jax.tokenizer import SMALL_MODEL

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_ROBOT = "reach_arm3"  # any: a checkpoint has one


class Measurement(NamedTuple):
    conversion: str
    dtype: str
    seconds: float
    peak_gib: float  # of resident memory
    written_gib: float


def random_source(variant: str, dtype: np.dtype) -> convert.Source:
    """Every leaf normal with standard deviation 0.02; the same numbers whenever a leaf or a layer is read."""
    config = VARIANTS[variant]
    sizes = tree.sizes_of_config(config)
    leaves = {path: Leaf(shape, dtype) for path, shape in tree.expected_shapes(sizes).items()}

    def draw(shape: tuple[int, ...], *seed: int) -> np.ndarray:
        return (0.02 * np.random.default_rng(seed).standard_normal(shape, np.float32)).astype(dtype)

    def fetch(path: str, layer: int | None) -> np.ndarray:
        shape, seed = leaves[path].shape, zlib.crc32(path.encode())
        if not is_stacked(path):
            return draw(shape, seed)
        return draw(shape[1:], seed, layer) if layer is not None else np.stack([fetch(path, i) for i in range(shape[0])])

    embodiment = EMBODIMENTS[_ROBOT]
    state, actions = (
        normalize.accumulate([np.random.default_rng(0).normal(size=(50, len(dims)))]) for dims in (embodiment.state, embodiment.actions)
    )
    metadata = Metadata(
        robots={_ROBOT: RobotRecord(normalize.Statistics(state, actions), embodiment)},
        horizon=config.horizon, max_tokens=config.max_tokens, normalization="zscore", tokenizer=SMALL_MODEL.read_bytes(), sizes=sizes,
    )  # fmt: skip
    return convert.Source("random", "random", leaves, sizes, fetch, metadata)


def benchmark_convert(folder: Path, *, to: str, dtype: str, variant: str) -> list[Measurement]:
    """Ours -> `to` -> ours, in `folder`, which keeps the `to` directory alone. Raises AssertionError if a bit of any leaf differs."""
    source, there = random_source(variant, DTYPES[dtype]), folder / f"{to}_{dtype}"
    with tempfile.TemporaryDirectory(dir=folder) as begin:
        ours.write(source, Path(begin))
        forth = _measured(Path(begin), there, to, dtype)
    with tempfile.TemporaryDirectory(dir=folder) as parent:
        back = Path(parent, "back")
        measurements = [forth, _measured(there, back, ours.NAME, dtype)]
        differing = [comparison.path for comparison in check.compare(source, convert.open(str(back))) if comparison.differing]
    assert not differing, differing
    return measurements


def _measured(source: Path, output: Path, to: str, dtype: str) -> Measurement:
    command = [sys.executable, "-m", "launch.convert", f"--input={source}", f"--output={output}", f"--to={to}"]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(command)}: status {os.waitstatus_to_exitcode(status)}")
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return Measurement(f"-> {to}", dtype, seconds, used.ru_maxrss / 2**20, size / 2**30)


def table(measurements: list[Measurement]) -> str:
    """Markdown."""
    lines = ["| conversion | dtype | seconds | peak resident memory, GiB | written, GiB |", "|---|---|---|---|---|"]
    lines += [f"| {m.conversion} | {m.dtype} | {m.seconds:.0f} | {m.peak_gib:.1f} | {m.written_gib:.1f} |" for m in measurements]
    return "\n".join(lines)
