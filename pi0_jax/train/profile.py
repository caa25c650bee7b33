"""A trace of some steps, for TensorBoard or Perfetto, is written to workdir/profile."""

import contextlib
import re
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import jax
from etils import epath

from pi0_jax.errors import InputError


class Profile(NamedTuple):
    """Says which steps are traced.

    Attributes:
        start: the steps done before the first one that is traced.
        steps: the number of steps that are traced.
    """

    start: int
    steps: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads START:STEPS, as in 20:5; raises InputError if the text is something else."""
        found = re.fullmatch(r"(\d+):([1-9]\d*)", text)
        if not found:
            raise InputError(f"--profile={text}: expected START:STEPS, as in 20:5")
        return cls(int(found[1]), int(found[2]))


class Tracer(contextlib.AbstractContextManager["Tracer"]):
    """Traces the steps that a Profile names; each process traces its own devices."""

    def __init__(self, profile: Profile | None, workdir: epath.Path) -> None:
        self._profile = profile
        self._target = workdir / "profile"
        self._local: Path | None = None  # the folder of a trace that is running

    def before(self, step: int) -> None:
        """Starts the trace where it is due. Call it before the step with number `step`, from 0."""
        if self._profile is not None and step == self._profile.start:
            self._local = Path(tempfile.mkdtemp(prefix="pi0_jax_profile_"))
            jax.profiler.start_trace(self._local)

    def after(self, done: int, result: object) -> None:
        """Ends the trace where it is due. Call it after each step.

        Args:
            done: the number of steps done.
            result: what the last of them returned.
        """
        if (
            self._local is not None
            and self._profile is not None
            and done == self._profile.start + self._profile.steps
        ):
            jax.block_until_ready(result)
            self._stop()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._local is not None:
            self._stop()

    def _stop(self) -> None:
        """Ends the trace and copies it from a local folder: the workdir may be behind a URL."""
        assert self._local is not None
        jax.profiler.stop_trace()
        for file in (path for path in self._local.rglob("*") if path.is_file()):
            target = self._target / file.relative_to(self._local).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        shutil.rmtree(self._local)
        self._local = None
