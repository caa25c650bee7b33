"""Says what was compiled or counted ahead: does it fit, what travels, how fast could it be.

compile_only    a report on one run, for launch.train --compile_only
Row, page_head  docs/tpu.md: a table of many slices, one row per compiled program
memory_table    docs/memory.md: what weights and training states take, from shapes alone
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, Self

import jax

from pi0_jax.aot import programs
from pi0_jax.aot.programs import Compiled, DoesNotFit
from pi0_jax.errors import InputError
from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import VARIANTS, parameter_shapes
from pi0_jax.models.sampling import storage_dtype
from pi0_jax.policy_config import model_config
from pi0_jax.train.chips import CHIPS
from pi0_jax.train.config import MeshConfig, RunConfig
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


# ---- docs/tpu.md

_HEAD = """# What fits which TPU slice

Made by `{command}`, on a machine without a TPU: every row is compiled by XLA for its slice.

Compiled with JAX {jax}, libtpu {libtpu}.

A row's command, in a shell that has this function, is `compiles` and the flags in its last column. It also lists every kind of
collective, and ends with status 1 where the program does not fit.

    compiles() {{ python -m launch.train --compile_only {run_flags} "$@"; }}

- GB are 10⁹ bytes on one chip: arguments (for a training step the state: parameters, EMA, two moments) + temporaries, of what XLA has.
- ms are a prediction, not a measurement: the longest of three times at the chip's peak rates (all overlap) to their sum (nothing does).
  The three: matrix products, counted in the traced program with what is computed again in the backward pass; bytes through HBM, counted in
  the compiled program; bytes that a chip sends, counted there too, around a ring along one axis of the torus.
- Utilisation counts the model's own products only, against peak bfloat16 rate; at the slower and at the faster prediction.
- Gathered, scattered and summed are GB of weights and gradients a chip takes part in, per step.

| slice | chips | batch | mesh data x fsdp x tensor | GB a chip | of | gathered | scattered | summed | ms | utilisation | flags |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""
# The lines of a page that say which run and which compiler its rows are of.
_MADE_WITH = ("Compiled with", "    compiles()")


def page_head(*, command: str, run_flags: str, jax: str, libtpu: str) -> str:
    """Returns what stands above the rows of the page, and says how they are made."""
    return _HEAD.format(command=command, run_flags=run_flags, jax=jax, libtpu=libtpu)


def kept_rows(text: str, head: str, where: str) -> dict[str, str]:
    """Returns the rows of a page by their flags, if they are of the run and compiler of `head`.

    Raises:
        InputError: they are not; `where` names the page.
    """
    found, expected = (
        [line for line in page.splitlines() if line.startswith(_MADE_WITH)] for page in (text, head)
    )
    if found != expected:
        raise InputError(
            f"{where}: its rows are of another run or compiler; expected {expected}, found {found};"
            " remove it to make it anew"
        )
    return {line.split("`")[-2]: line for line in text.splitlines() if line.endswith("` |")}


@dataclasses.dataclass(frozen=True)
class Row:
    """Names one program to compile.

    TOPOLOGY/BATCH/DATAxFSDPxTENSOR is a training step. TOPOLOGY/sampler is the sampler on one chip
    of the slice; it has no batch and no mesh. VARIANT@ before either is for another variant than
    the run's, with its length of prompts.
    """

    topology: str
    batch: int = 0
    mesh: MeshConfig | None = None
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a row's name; raises InputError if it is none."""
        try:
            variant, at, program = text.rpartition("@")
            if at and variant not in VARIANTS:
                raise ValueError(variant)
            topology, *rest = program.split("/")
            if rest == ["sampler"]:
                return cls(topology, variant=variant)
            batch, sizes = rest
            data, fsdp, tensor = map(int, sizes.split("x"))
            return cls(topology, int(batch), MeshConfig(data, fsdp, tensor), variant)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"row {text!r}: expected TOPOLOGY/BATCH/DATAxFSDPxTENSOR or TOPOLOGY/sampler, with"
                f" VARIANT@ before it for one of {', '.join(VARIANTS)}"
            ) from error

    @property
    def flags(self) -> str:
        """Returns the flags of launch.train, without the run's own and --compile_only."""
        flags = [f"--topology={self.topology}"]
        if self.variant:
            tokens = VARIANTS[self.variant].max_tokens
            flags += [f"--config.variant={self.variant}", f"--config.max_tokens={tokens}"]
        if self.mesh is not None:
            flags.append(f"--config.batch_size={self.batch}")
            sizes = dataclasses.asdict(self.mesh)
            flags += [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
        return " ".join(flags)

    def line(self, run: RunConfig) -> str:
        """Compiles the program and returns its row; at full size this takes minutes."""
        devices = programs.topology_devices(self.topology)
        model = ""
        if self.variant:
            tokens, model = VARIANTS[self.variant].max_tokens, f"{self.variant}, "
            run = dataclasses.replace(run, variant=self.variant, max_tokens=tokens)
        try:
            if self.mesh is None:
                what = [f"{model}one chip of {self.topology}: sampler", "1", "1", "–"]
                cells = _cells(programs.sampler(run, devices[0]))
            else:
                sizes = " x ".join(map(str, dataclasses.astuple(self.mesh)))
                what = [model + self.topology, str(len(devices)), str(self.batch), sizes]
                run = dataclasses.replace(run, batch_size=self.batch, mesh=self.mesh)
                cells = _cells(programs.train_step(run, devices))
        except DoesNotFit as error:
            cells = [f"does not fit: {error}", *[""] * 6]
        return " | ".join(["", *what, *cells, f"`{self.flags}`", ""]).strip()


def _cells(compiled: Compiled) -> list[str]:
    def total(*kinds: str) -> str:
        same = [c for c in compiled.collectives if c.kind in kinds]
        return f"{sum(c.times * c.bytes for c in same) / _GB:.1f}"

    times = compiled.roofline
    return [
        f"{compiled.arguments / _GB:.1f} + {(compiled.temporaries + compiled.outputs) / _GB:.1f}",
        f"{compiled.chip.hbm_bytes / _GB:.1f}{'' if compiled.fits else ' (does not fit)'}",
        total("all-gather", "ring all-gather"),
        total("reduce-scatter", "ring reduce-scatter"),
        total("all-reduce"),
        f"{times.fastest * 1e3:.0f} to {times.slowest * 1e3:.0f}",
        f"{compiled.utilisation(times.slowest):.0%} to {compiled.utilisation(times.fastest):.0%}",
    ]


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
