"""A trace of some steps for TensorBoard or Perfetto: workdir/profile."""

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
    start: int  # steps done before the first one that is traced
    steps: int

    @classmethod
    def parse(cls, text: str) -> Self:
        found = re.fullmatch(r"(\d+):([1-9]\d*)", text)
        if not found:
            raise InputError(f"--profile={text}: expected START:STEPS, as in 20:5")
        return cls(int(found[1]), int(found[2]))


class Tracer(contextlib.AbstractContextManager["Tracer"]):
    """Traces the steps that a Profile names; each process its own devices."""

    def __init__(self, profile: Profile | None, workdir: epath.Path) -> None:
        self._profile = profile
        self._target = workdir / "profile"
        self._local: Path | None = None  # of a trace that is running

    def before(self, step: int) -> None:
        """Call it before the step that has number `step`, from 0."""
        if self._profile is not None and step == self._profile.start:
            self._local = Path(tempfile.mkdtemp(prefix="pi0_jax_profile_"))
            jax.profiler.start_trace(self._local)

    def after(self, done: int, result: object) -> None:
        """Call it with the steps done and what the last of them returned."""
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
        """Traces are written locally and copied: the workdir may be behind a URL."""
        assert self._local is not None
        jax.profiler.stop_trace()
        for file in (path for path in self._local.rglob("*") if path.is_file()):
            target = self._target / file.relative_to(self._local).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        shutil.rmtree(self._local)
        self._local = None
