"""Keeps compiled programs in a folder for the next start, and says what is compiled.

JAX reads and writes the folder itself: it is JAX's persistent compilation cache. JAX tells of every
program by the events of jax.monitoring, and this file listens to nothing else:
    start   scalar    backend_compile_duration   fun_name
            event     cache_hits                 it was in the folder
            duration  cache_retrieval_time_sec, compile_time_saved_sec
            event     cache_misses               it is being written to the folder
    end     duration  backend_compile_duration   fun_name

Several processes may use one folder. An entry's name is a digest of the program, its options, the
devices and JAX's version. An entry is written once and never changed.
"""

import contextlib
import glob
import hashlib
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax

from pi0_jax.files import cache_folder, new_path
from pi0_jax.progress import clock

_COMPILE = "/jax/core/compile/backend_compile_duration"
_HIT = "/jax/compilation_cache/cache_hits"
_READ = "/jax/compilation_cache/cache_retrieval_time_sec"
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"
_WRITTEN = "/jax/compilation_cache/cache_misses"

# Nothing is said of programs that take less than this.
_SHORT_S = 1.0
# The name of a jitted function -> what people call it.
_NAMES = {
    "init_state": "initial state",
    "train_step": "train step",
    "validation_step": "validation step",
    "sample": "policy",
    "_noise": "noise",
    "embeddings": "embeddings",
    "training_outputs": "loss and gradients",
    "<lambda>": "a program",
}
# How far a file's time and the process's clock may differ.
_CLOCKS_DIFFER_S = 1.0
# TF_CPP_MIN_LOG_LEVEL counts the levels in this order, from 0.
_LEVELS = ("INFO", "WARNING", "ERROR", "CRITICAL")


def keep(folder: str | None = None) -> None:
    """Keeps this process's compiled programs in a folder, and uses those that are there.

    A folder that cannot be written is no error: a line on standard error says so, and programs are
    compiled at every start. The folder must be trusted, because JAX runs what is in it.

    Args:
        folder: the folder's path, or a URL, which JAX opens. "" means no folder. None takes
            $JAX_COMPILATION_CACHE_DIR. Where that is not set, None takes a folder in the user's
            cache, or no folder in a run of several processes.
    """
    given = jax.config.values["jax_compilation_cache_dir"] if folder is None else folder
    if given is None and jax.distributed.is_initialized() and jax.process_count() > 1:
        # Only process 0 writes. Where the other processes do not see its folder, they would compile
        # alone; but on GPUs the processes tune kernels together.
        given = ""
        _say("compiled programs are not kept; --compilation_cache=DIR keeps them in a folder that"
             " all processes share")  # fmt: skip
    place = str(_default_folder()) if given is None else os.path.expanduser(given)
    fault = None if not place or "://" in place else _fault(Path(place))
    if fault:
        _say(f"compiled programs are not kept: {place}: {fault}; --compilation_cache=DIR names"
             " another folder, and --compilation_cache= none")  # fmt: skip
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
        # JAX can still read what is there.
        place = place if Path(place).is_dir() else ""
    elif "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_dir", place or None)


def announce() -> None:
    """Says on standard error, from now on, what is compiled, for how long, and if it is kept.

    Of several processes only the first one speaks. While a program is compiled, XLA's own log shows
    fatal errors only: after two minutes it would ask the user to file a bug. The other errors of
    XLA's compiler are exceptions. With TF_CPP_MIN_LOG_LEVEL=0 the log stays as it is.
    """
    # The programs that are being compiled, by the thread that waits for each.
    programs: dict[int, _Program] = {}

    def began(event: str, value: float, **about: Any) -> None:
        if event == _COMPILE and jax.process_index() == 0:
            if not programs:
                _limit_log("CRITICAL")
            programs[threading.get_ident()] = _Program(about["fun_name"])

    def happened(event: str, **_: Any) -> None:
        if threading.get_ident() in programs:
            programs[threading.get_ident()].events[event] = 0.0

    def took(event: str, duration_secs: float, **_: Any) -> None:
        if threading.get_ident() not in programs:
            return
        programs[threading.get_ident()].events[event] = duration_secs
        if event == _COMPILE:
            programs.pop(threading.get_ident()).end()
            if not programs:
                _limit_log(None)

    jax.monitoring.register_scalar_listener(began)
    jax.monitoring.register_event_listener(happened)
    jax.monitoring.register_event_duration_secs_listener(took)


class _Program:
    """Follows one program from the start of its compilation to its end.

    Attributes:
        events: the events between them: name -> seconds.
    """

    def __init__(self, function: str) -> None:
        self._function = function.removeprefix("jit(").removesuffix(")")
        self._name = _NAMES.get(self._function, f"program {self._function}")
        self._start, self._clock = time.time(), contextlib.ExitStack()
        self._clock.enter_context(clock(f"{self._name}: compiling"))
        self.events: dict[str, float] = {}

    def end(self) -> None:
        self._clock.close()
        seconds = self.events[_COMPILE]
        # The compilation failed, and its exception is on the way.
        if sys.exc_info()[0] is not None:
            return
        if _HIT in self.events:
            # The time to compile it without the cache. JAX gives the saved time in whole seconds.
            if self.events[_SAVED] + self.events[_READ] >= _SHORT_S:
                _say(f"{self._name}: found in the cache, {seconds:.1f} s")
            return
        kept = ""
        if _WRITTEN in self.events:
            place = jax.config.values["jax_compilation_cache_dir"]
            damaged = "://" not in place and self._remove_damaged(Path(place))
            kept = f"; removed a damaged copy from {place}" if damaged else f", kept in {place}"
        if seconds >= _SHORT_S:
            _say(f"{self._name}: compiled in {seconds:.1f} s{kept}")

    def _remove_damaged(self, folder: Path) -> bool:
        """Removes an entry that is in the way of the new one, and returns whether there was one.

        A full disk or a killed process leaves such an entry. JAX can neither read it nor write over
        it. Only the part of the entry's name that is the function's is known, so all entries with
        that part are removed.
        """
        entries = list(folder.glob(f"jit_{glob.escape(self._function)}-*"))
        try:
            if any(entry.stat().st_mtime > self._start - _CLOCKS_DIFFER_S for entry in entries):
                return False
            for entry in entries:
                entry.unlink()
        # Another process has just removed an entry, or an entry belongs to another user.
        except OSError:
            return False
        return bool(entries)


def _limit_log(level: str | None) -> None:
    """Sets the lowest level that JAX's and XLA's logs show; None takes that of the environment."""
    # JAX sets the variable if the user did not.
    usual = _LEVELS[int(os.environ["TF_CPP_MIN_LOG_LEVEL"])]
    if usual != "INFO":
        jax.config.update("jax_logging_level", level or usual)
    if level is None:
        # This resets Python's loggers, which the line above has set too, and not XLA's log.
        jax.config.update("jax_logging_level", "NOTSET")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _default_folder() -> Path:
    """Returns a folder of its own for each kind of processor, because machines may share a home.

    JAX's names of entries leave the processor out. A program for one kind may have instructions
    that another kind lacks.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = [line for line in lines if line.startswith(("flags", "Features"))][:1]
        digest = hashlib.sha256("".join(features).encode()).hexdigest()[:8]
        return cache_folder() / "compiled" / f"{platform.machine()}-{digest}"
    return cache_folder() / "compiled" / platform.machine()


def _fault(folder: Path) -> str | None:
    """Makes the folder if need be, and returns why nothing can be written to it, or None."""
    probe = new_path(folder, ".probe-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return error.strerror
    return None
