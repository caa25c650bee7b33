"""docs/tpu.md says what fits which TPU slice, and what to set there.

Row           one program to compile, and its line of the table
Page          the page: rows that it has are not compiled again
best_setting  the rows that a search needs, and the best of them
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

from pi0_jax.aot import programs
from pi0_jax.aot.programs import Compiled, DoesNotFit
from pi0_jax.errors import InputError
from pi0_jax.files import replacing
from pi0_jax.models.layers import Remat
from pi0_jax.models.pi0 import VARIANTS
from pi0_jax.train.config import MeshConfig, RunConfig

_GB = 1e9

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
    the run's, with its length of prompts. A search adds what the backward pass computes again.
    """

    topology: str
    batch: int = 0
    mesh: MeshConfig | None = None
    variant: str = ""
    remat: Remat | None = None

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
            return cls(topology, int(batch), _mesh(sizes), variant)
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
        if self.remat is not None:
            flags.append(f"--config.remat={self.remat}")
        return " ".join(flags)

    def line(self, run: RunConfig) -> str:
        """Compiles the program and returns its row; at full size this takes minutes."""
        devices = programs.topology_devices(self.topology)
        model = ""
        if self.variant:
            tokens, model = VARIANTS[self.variant].max_tokens, f"{self.variant}, "
            run = dataclasses.replace(run, variant=self.variant, max_tokens=tokens)
        if self.remat:
            run = dataclasses.replace(run, remat=self.remat)
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


def _mesh(text: str) -> MeshConfig:
    """Reads DATAxFSDPxTENSOR; raises TypeError or ValueError."""
    data, fsdp, tensor = map(int, text.split("x"))
    return MeshConfig(data, fsdp, tensor)


class Page:
    """The page of a run and a compiler, which is written after every row."""

    def __init__(
        self, file: Path, head: str, run: RunConfig, rows: list[Row], said: Callable[[str], object]
    ) -> None:
        """Reads the rows that the file has, if it is there.

        Args:
            file: the page, Markdown.
            head: what `page_head` returned.
            run: the run that the rows compile, each for its slice.
            rows: the rows that come first, in this order; older ones come after them.
            said: is called with every new line.

        Raises:
            InputError: the file's rows are of another run or compiler.
        """
        self._file, self._head, self._run, self._first = file, head, run, rows
        self._lines = kept_rows(file.read_text("utf-8"), head, str(file)) if file.exists() else {}
        self._said, self._best = said, list[Setting]()

    def line_of(self, row: Row) -> str:
        """Returns a row's line. At full size compiling one that the page lacks takes minutes."""
        if row.flags not in self._lines:
            self._lines[row.flags] = row.line(self._run)
            self._said(self._lines[row.flags])
        self._write()
        return self._lines[row.flags]

    def search(self, text: str) -> None:
        """Finds the best setting of a slice, TOPOLOGY/DATAxFSDPxTENSOR, and adds it to the page.

        Raises:
            InputError: the text names no slice and mesh, or nothing fits.
        """
        topology, _, sizes = text.partition("/")
        try:
            mesh = _mesh(sizes)
        except (TypeError, ValueError) as error:
            raise InputError(f"search {text!r}: expected TOPOLOGY/DATAxFSDPxTENSOR") from error
        self._best.append(best_setting(topology, mesh, self._run.remat, self.line_of))
        self._said(self._best[-1].line)
        self._write()

    def _write(self) -> None:
        asked = [row.flags for row in self._first if row.flags in self._lines]
        lines = dict.fromkeys(asked) | self._lines
        text = self._head + "".join(f"{line}\n" for line in lines.values())
        if self._best:
            text += _RECOMMENDED + "".join(f"{setting.line}\n" for setting in self._best)
        with replacing(self._file) as temporary:
            temporary.write_text(text, encoding="utf-8")


# ---- the best setting of a slice

_RECOMMENDED = """
## Recommended settings

For each slice the remat and the batch with the best utilisation if nothing overlaps, of the rows above that `--search` tried. More chips
of the same kind take the same batch a chip.

| slice | mesh data x fsdp x tensor | remat | batch a chip | batch | GB a chip | of | utilisation if nothing overlaps |
|---|---|---|---|---|---|---|---|
"""


_FIRST = 4  # samples a chip
_REMATS: tuple[Remat, ...] = ("full", "dots", "none")  # each takes more memory than those before it


class Setting(NamedTuple):
    """Holds what a row of the page says of a training step."""

    row: Row
    remat: Remat
    gigabytes: float  # that it takes on a chip; infinite where it does not fit
    of: float  # gigabytes that a chip has; 0 where XLA did not come so far
    utilisation: float  # a share, if nothing overlaps

    @classmethod
    def parse(cls, row: Row, line: str, remat: Remat) -> Self:
        """Reads the line that `Row.line` made; `remat` is the row's or the run's."""
        memory, of, *_, utilisation = [cell.strip() for cell in line.split("|")[5:12]]
        if "does not fit" in memory + of:
            return cls(row, remat, math.inf, 0.0, 0.0)
        share = float(utilisation.split("%")[0]) / 100
        return cls(row, remat, sum(map(float, memory.split(" + "))), float(of), share)

    @property
    def fits(self) -> bool:
        return self.gigabytes < math.inf

    @property
    def line(self) -> str:
        """Returns its line of the table of recommended settings."""
        assert self.row.mesh is not None
        sizes = dataclasses.astuple(self.row.mesh)
        cells = [
            self.row.topology, " x ".join(map(str, sizes)), self.remat, self.row.batch // math.prod(sizes), self.row.batch,
            f"{self.gigabytes:.1f}", f"{self.of:.1f}", f"{self.utilisation:.0%}",
        ]  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


def best_setting(
    topology: str, mesh: MeshConfig, own: Remat, line_of: Callable[[Row], str]
) -> Setting:
    """Returns the remat and the batch that use a slice best, by the slower prediction.

    Batches are powers of two a chip. A larger one sends less for each sample; but what a chip holds
    near its cores of a small one goes through its memory. So the search begins with 4 samples, and
    goes on as long as twice as many, or else half as many, are better. Where one sample does not
    fit, less remat is not tried.

    Args:
        topology: a slice such as "v5e:2x4".
        mesh: how its chips are used; all axes are given.
        own: the run's remat, which a row need not name.
        line_of: compiles a row, or knows it, and returns its line.

    Raises:
        InputError: nothing fits; it names what comes nearest.
    """
    chips = math.prod(dataclasses.astuple(mesh))

    def setting(remat: Remat, samples: int) -> Setting:
        row = Row(topology, samples * chips, mesh, remat=None if remat == own else remat)
        return Setting.parse(row, line_of(row), remat)

    def climbed(remat: Remat) -> Setting:
        samples, best = _FIRST, setting(remat, _FIRST)
        while best.fits and (larger := setting(remat, 2 * samples)).utilisation > best.utilisation:
            samples, best = 2 * samples, larger
        while 1 < samples <= _FIRST:
            smaller = setting(remat, samples // 2)
            if best.fits and smaller.utilisation <= best.utilisation:
                break
            samples, best = samples // 2, smaller
        return best

    found: list[Setting] = []
    for remat in _REMATS:
        found.append(climbed(remat))
        if not found[-1].fits:
            break
    best = max(found, key=lambda one: one.utilisation)
    if not best.fits:  # it is one sample a chip with full remat
        raise InputError(
            f"{topology}: nothing fits; the nearest is one sample a chip, {best.row.flags}:"
            f" {line_of(best.row).split('|')[5].strip()}"
        )
    return best
