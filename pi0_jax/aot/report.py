"""Says in words what was compiled: does it fit, what travels, how fast could it be."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax

from pi0_jax.aot import programs
from pi0_jax.aot.programs import Compiled, DoesNotFit
from pi0_jax.models.pi0 import parameter_shapes
from pi0_jax.policy_config import model_config
from pi0_jax.train.chips import CHIPS
from pi0_jax.train.config import RunConfig
from pi0_jax.train.placement import run_mesh

GB = 1e9


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
    mesh = run_mesh(run, devices)
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    parameters = sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(model_config(run)))
    )
    about = f"{run.variant}, {parameters:,} parameters, {len(programs.cameras(run))} cameras"
    title = f"train step on {topology}: {about}, batch {run.batch_size}, mesh {sizes}, remat {run.remat}"
    yield _report(title, partial(programs.train_step, run, devices))
    chip = CHIPS[devices[0].device_kind].name
    yield _report(
        f"sampler on one {chip} chip: {about}, batch 1, {run.sampling_steps} steps",
        partial(programs.sampler, run, devices[0]),
    )


def _report(title: str, make: Callable[[], Compiled]) -> Report:
    try:
        compiled = make()
    except DoesNotFit as error:
        return Report(f"{title}\n  does not fit: {error}", False)
    return Report(
        "\n".join([title, *_memory(compiled), *_traffic(compiled), *_prediction(compiled)]),
        fits(compiled),
    )


def fits(compiled: Compiled) -> bool:
    return compiled.used <= compiled.chip.hbm_bytes


def _memory(compiled: Compiled) -> list[str]:
    parts = f"{compiled.arguments / GB:.2f} arguments + {compiled.outputs / GB:.2f} outputs + {compiled.temporaries / GB:.2f} temporaries"
    verdict = "fits" if fits(compiled) else "does not fit"
    return [
        f"  GB a chip     {parts} = {compiled.used / GB:.2f} of {compiled.chip.hbm_bytes / GB:.2f}: {verdict}"
    ]


def _traffic(compiled: Compiled) -> list[str]:
    """Returns a line for each kind of collective in one call.

    It says how many there are, the bytes of their arrays, the largest, and what a chip sends.
    """
    lines = []
    for kind in sorted({c.kind for c in compiled.collectives}):
        mine = [c for c in compiled.collectives if c.kind == kind]
        count, total, sent = (
            sum(c.times for c in mine),
            sum(c.times * c.bytes for c in mine),
            sum(c.sent for c in mine),
        )
        largest = max(mine, key=lambda c: c.bytes)
        lines.append(
            f"  {kind:20} {count:6} times, {total / GB:7.2f} GB, sends {sent / GB:6.2f} GB; "
            f"largest {largest.bytes / 1e6:.1f} MB: {largest.shape[:60]}"
        )
    return lines


def _prediction(compiled: Compiled) -> list[str]:
    times, tera = compiled.roofline, 1e12
    again = compiled.flops / compiled.model_flops - 1.0
    return [
        f"  TFLOP         {compiled.flops / tera:.2f} on {compiled.devices} chips, of which {again:.0%} of the model's is computed again",
        f"  at peak rates {times.compute * 1e3:.1f} ms products, {times.hbm * 1e3:.1f} ms HBM ({compiled.hbm_traffic / GB:.1f} GB), "
        f"{times.ici * 1e3:.1f} ms interconnect",
        f"  predicted     {times.fastest * 1e3:.1f} ms if all of that overlaps, {times.slowest * 1e3:.1f} ms if nothing does: "
        f"utilisation {compiled.utilisation(times.slowest):.0%} to {compiled.utilisation(times.fastest):.0%}",
    ]
