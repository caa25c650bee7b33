"""Says what was compiled or counted ahead: does it fit, what travels, how fast could it be.

compile_only    a report on one run, for launch.train --compile_only
memory_table    docs/memory.md: what weights and training states take, from shapes alone
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax

from pi0_jax.aot import programs
from pi0_jax.aot.programs import Compiled, DoesNotFit
from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import parameter_shapes
from pi0_jax.models.sampling import storage_dtype
from pi0_jax.policy_config import model_config
from pi0_jax.train.chips import CHIPS
from pi0_jax.train.config import RunConfig
from pi0_jax.train.state import footprint, run_mesh

_GB, _TERA = 1e9, 1e12


class Report(NamedTuple):
    """Holds the report on one program, and whether the program fits its chips."""

    text: str
    fits: bool


def compile_only(run: RunConfig, topology: str) -> Iterator[Report]:
    """Reports on the train step on a slice, and then on the sampler on one of its chips.

    Args:
        run: the run's config.
        topology: a slice such as "v5e:4x4".

    Raises:
        InputError: libtpu does not know the slice, or the mesh or the batch does not fit it.
    """
    devices = programs.topology_devices(topology)
    mesh = " x ".join(f"{axis} {size}" for axis, size in run_mesh(run, devices).shape.items())
    leaves = jax.tree.leaves(parameter_shapes(model_config(run)))
    parameters = sum(math.prod(leaf.shape) for leaf in leaves)
    about = f"{run.variant}, {parameters:,} parameters, {len(programs.cameras(run))} cameras"
    yield _report(
        f"train step on {topology}: {about}, batch {run.batch_size}, mesh {mesh}, remat {run.remat}",
        partial(programs.train_step, run, devices),
    )
    chip = CHIPS[devices[0].device_kind].name
    yield _report(
        f"sampler on one {chip} chip: {about}, batch 1, {run.sampling_steps} steps",
        partial(programs.sampler, run, devices[0]),
    )


def _report(title: str, make: Callable[[], Compiled]) -> Report:
    try:
        c = make()
    except DoesNotFit as error:
        return Report(f"{title}\n  does not fit: {error}", False)
    times = c.roofline
    lines = [
        title,
        f"  GB a chip     {c.arguments / _GB:.2f} arguments + {c.outputs / _GB:.2f} outputs"
        f" + {c.temporaries / _GB:.2f} temporaries = {c.used / _GB:.2f} of"
        f" {c.chip.hbm_bytes / _GB:.2f}: {'fits' if c.fits else 'does not fit'}",
        *_traffic(c),
        f"  TFLOP         {c.flops / _TERA:.2f} on {c.devices} chips, of which"
        f" {c.flops / c.model_flops - 1:.0%} of the model's is computed again",
        f"  at peak rates {times.compute * 1e3:.1f} ms products, {times.hbm * 1e3:.1f} ms HBM"
        f" ({c.hbm_traffic / _GB:.1f} GB), {times.ici * 1e3:.1f} ms interconnect",
        f"  predicted     {times.fastest * 1e3:.1f} ms if all of that overlaps,"
        f" {times.slowest * 1e3:.1f} ms if nothing does: utilisation"
        f" {c.utilisation(times.slowest):.0%} to {c.utilisation(times.fastest):.0%}",
    ]
    return Report("\n".join(lines), c.fits)


def _traffic(compiled: Compiled) -> Iterator[str]:
    """Yields a line for each kind of collective: how many, their bytes, the largest, and sent."""
    for kind in sorted({c.kind for c in compiled.collectives}):
        same = [c for c in compiled.collectives if c.kind == kind]
        total, sent = sum(c.times * c.bytes for c in same), sum(c.sent for c in same)
        largest = max(same, key=lambda c: c.bytes)
        yield (
            f"  {kind:20} {sum(c.times for c in same):6} times, {total / _GB:7.2f} GB, sends"
            f" {sent / _GB:6.2f} GB; largest {largest.bytes / 1e6:.1f} MB: {largest.shape[:60]}"
        )


# ---- docs/memory.md

_COLUMNS = ("parameters", "gradients", "optimizer state", "moving average", "sum")


def policy_bytes(run: RunConfig, dtype: str) -> int:
    """Returns the bytes of a policy's weights when it computes in a dtype."""
    shapes = flatten(parameter_shapes(model_config(run)))
    return sum(
        math.prod(leaf.shape) * storage_dtype(path, dtype).itemsize for path, leaf in shapes.items()
    )


def memory_table(policy: RunConfig, training: Mapping[str, RunConfig]) -> str:
    """Returns a Markdown table of what one device holds.

    Args:
        policy: the run whose model is used for inference, in float32 and in bfloat16.
        training: the name of a run -> the run.
    """
    titles = ["what", "parameters trained", *(f"{part}, GB" for part in _COLUMNS)]
    rows = [titles, ["---"] * len(titles)]
    for dtype in ("float32", "bfloat16"):
        held = f"{policy_bytes(policy, dtype) / _GB:.1f}"
        rows.append([f"inference, {dtype}", "none", held, "", "", "", held])
    for name, run in training.items():
        state = footprint(run, run_mesh(run, jax.devices()[:1]))
        parts = (state.weights, state.gradients, state.optimizer, state.moving_average, state.total)
        rows.append([name, f"{state.trained:,}", *(f"{part / _GB:.1f}" for part in parts)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
