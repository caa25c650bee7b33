"""Writes a page of what fits which TPU slice: one row per compiled program, with its command."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from pi0_jax.aot import programs
from pi0_jax.aot.programs import Compiled, DoesNotFit
from pi0_jax.aot.report import GB, fits
from pi0_jax.errors import InputError
from pi0_jax.train.config import MeshConfig, RunConfig

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


@dataclasses.dataclass(frozen=True)
class Row:
    """Names one program to compile.

    TOPOLOGY/BATCH/DATAxFSDPxTENSOR is a training step. TOPOLOGY/sampler is the sampler on one chip
    of the slice; it has no batch and no mesh.
    """

    topology: str
    batch: int | None
    mesh: MeshConfig | None

    @classmethod
    def parse(cls, text: str) -> "Row":
        try:
            topology, *rest = text.split("/")
            if rest == ["sampler"]:
                return cls(topology, None, None)
            batch, sizes = rest
            data, fsdp, tensor = map(int, sizes.split("x"))
            return cls(topology, int(batch), MeshConfig(data, fsdp, tensor))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"row {text!r}: expected TOPOLOGY/BATCH/DATAxFSDPxTENSOR or TOPOLOGY/sampler"
            ) from error

    @property
    def flags(self) -> str:
        """Returns the flags of launch.train, without the run's own and --compile_only."""
        if self.mesh is None:
            return f"--topology={self.topology}"
        sizes = [
            f"--config.mesh.{axis}={size}" for axis, size in dataclasses.asdict(self.mesh).items()
        ]
        return " ".join(
            [f"--topology={self.topology}", f"--config.batch_size={self.batch}", *sizes]
        )

    def line(self, run: RunConfig) -> str:
        """Compiles the program and returns its row; at full size this takes minutes."""
        devices = programs.topology_devices(self.topology)
        if self.mesh is None or self.batch is None:
            return self._line(
                [f"one chip of {self.topology}: sampler", "1", "1", "–"],
                partial(programs.sampler, run, devices[0]),
            )
        run = dataclasses.replace(run, batch_size=self.batch, mesh=self.mesh)
        sizes = " x ".join(map(str, dataclasses.astuple(self.mesh)))
        return self._line(
            [self.topology, str(len(devices)), str(self.batch), sizes],
            partial(programs.train_step, run, devices),
        )

    def _line(self, what: Sequence[str], make: Callable[[], Compiled]) -> str:
        try:
            cells = _cells(make())
        except DoesNotFit as error:
            cells = [f"does not fit: {error}", *[""] * 6]
        return " | ".join(["", *what, *cells, f"`{self.flags}`", ""]).strip()


def _cells(compiled: Compiled) -> list[str]:
    def total(*kinds: str) -> str:
        return f"{sum(c.times * c.bytes for c in compiled.collectives if c.kind in kinds) / GB:.1f}"

    times = compiled.roofline
    verdict = "" if fits(compiled) else " (does not fit)"
    return [
        f"{compiled.arguments / GB:.1f} + {(compiled.temporaries + compiled.outputs) / GB:.1f}",
        f"{compiled.chip.hbm_bytes / GB:.1f}{verdict}",
        total("all-gather", "ring all-gather"),
        total("reduce-scatter", "ring reduce-scatter"),
        total("all-reduce"),
        f"{times.fastest * 1e3:.0f} to {times.slowest * 1e3:.0f}",
        f"{compiled.utilisation(times.slowest):.0%} to {compiled.utilisation(times.fastest):.0%}",
    ]


def markdown(lines: Sequence[str], about: str) -> str:
    """Returns the page; `about` is what `head` says of how it was made."""
    return about + "\n".join(lines) + "\n"


def head(*, command: str, run_flags: str, jax: str, libtpu: str) -> str:
    return _HEAD.format(command=command, run_flags=run_flags, jax=jax, libtpu=libtpu)


def kept_lines(text: str, about: str, where: str) -> dict[str, str]:
    """Returns the rows of a page, by their flags.

    Args:
        text: the page.
        about: what `head` says of how the page is made now.
        where: the page's name in an error.

    Raises:
        InputError: the page is of another run, or of another compiler, than `about` says.
    """
    of, expected = (
        [line for line in page.splitlines() if line.startswith(_MADE_WITH)]
        for page in (text, about)
    )
    if of != expected:
        raise InputError(
            f"{where}: its rows are of another run or compiler; expected {expected}, found {of}; remove it to make it anew"
        )
    return {line.split("`")[-2]: line for line in text.splitlines() if line.endswith("` |")}
