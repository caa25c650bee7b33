"""Compiled programs are announced and kept, and a folder that cannot be used stops nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pi0_jax import compilation
from pi0_jax.files import cache_folder
from tests.own_process import python

# A command that compiles one program of its own, and speaks of all, however quick.
COMMAND = """
import sys
import jax, jax.numpy as jnp
from pi0_jax import compilation
compilation._SHORT_S = 0.0
compilation.announce()
compilation.keep(*sys.argv[1:])
def train_step(x):
    return jnp.sin(x @ x)
jax.jit(train_step)(jnp.ones((8, 8)))
"""


def run(*arguments: object, code: str = COMMAND, **environment: str) -> str:
    """Runs the command, and returns what it says on standard error."""
    usual = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_COMP", "JAX_PERS"))
    }
    return python("-c", code, *arguments, env=usual | environment).stderr


def about_the_step(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("train step: ")]


def entries(folder: Path) -> list[Path]:
    return list(folder.glob("jit_train_step-*"))


def test_the_second_start_finds_what_the_first_one_kept(tmp_path):
    (first,), (second,) = (about_the_step(run(tmp_path)) for _ in range(2))
    assert first.startswith("train step: compiled in ") and str(tmp_path) in first
    assert second.startswith("train step: found in the cache, ")
    assert len(entries(tmp_path)) == 1


def test_without_a_flag_it_is_the_users_cache_folder(tmp_path):
    (said,) = about_the_step(run(XDG_CACHE_HOME=str(tmp_path)))
    (entry,) = tmp_path.glob("pi0_jax/compiled/*/jit_train_step-*")
    assert said.endswith(f", kept in {entry.parent}")


def test_the_users_own_variable_is_respected_and_the_flag_goes_before_it(tmp_path):
    variable, flag = tmp_path / "variable", tmp_path / "flag"
    run(JAX_COMPILATION_CACHE_DIR=str(variable))
    run(flag, JAX_COMPILATION_CACHE_DIR=str(variable))
    assert len(entries(variable)) == len(entries(flag)) == 1


def test_an_empty_flag_keeps_nothing(tmp_path):
    said = run("", XDG_CACHE_HOME=str(tmp_path / "xdg"), JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert "kept" not in said and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line_and_the_command_goes_on(tmp_path):
    (tmp_path / "file").touch()
    said = run(tmp_path / "file" / "folder")
    (line,) = [line for line in said.splitlines() if "not kept" in line]
    assert str(tmp_path / "file" / "folder") in line and "--compilation_cache=DIR" in line
    assert about_the_step(said)[0].startswith("train step: compiled in ")
    assert "Warning" not in said  # JAX would warn of every program


def test_a_folder_that_cannot_be_written_is_still_read(tmp_path):
    """A robot's disk may be read-only, with programs that its maker compiled."""
    run(tmp_path)
    # A superuser, as tests in containers are, could write in spite of the folder's mode.
    refuse = "from pi0_jax import compilation; compilation._fault = lambda _: 'Read-only'\n"
    said = run(tmp_path, code=refuse + COMMAND)
    assert "not kept" in said and "Read-only" in said
    assert about_the_step(said)[0].startswith("train step: found in the cache, ")


def test_an_entry_that_was_cut_short_is_made_anew(tmp_path):
    run(tmp_path)
    (entry,) = entries(tmp_path)
    os.truncate(entry, 100)
    os.utime(entry, (0, 0))
    starts = [about_the_step(run(tmp_path))[0] for _ in range(3)]
    assert "removed a damaged copy" in starts[0]
    assert starts[1].endswith(f", kept in {tmp_path}")
    assert starts[2].startswith("train step: found in the cache, ")


def test_processes_that_start_together_share_a_folder(tmp_path):
    command = [sys.executable, "-c", COMMAND, str(tmp_path)]
    together = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(300) for process in together] == [0, 0, 0]
    assert about_the_step(run(tmp_path))[0].startswith("train step: found in the cache, ")


def test_a_program_that_fails_to_compile_is_not_said_to_be_compiled(tmp_path):
    fails = COMMAND.replace(
        "jax.jit(train_step)(",
        "jax.monitoring.register_event_listener(lambda event, **_: 1 / 0)\n"
        "try: jax.jit(train_step)(",
    )
    fails += "except ZeroDivisionError: pass\n"
    assert about_the_step(run(tmp_path, code=fails)) == []


# XLA folds this constant for seconds, and after one it says so at length.
SLOW = """
import sys
import jax, jax.numpy as jnp
from pi0_jax import compilation
if sys.argv[2:]:
    compilation.announce()
size = int(sys.argv[1])
def fold():
    return jax.lax.reduce_window(jnp.arange(1.0 * size), 0.0, jax.lax.add, (size // 2,), (1,), "SAME")
jax.jit(fold).lower().compile()
"""


def test_xla_does_not_ask_for_a_bug_report():
    shown = dict(TF_CPP_MIN_LOG_LEVEL="1")  # as for users
    # JAX 0.12 folds thirty times as fast as 0.10.
    slow = (
        size for size in (3000, 12_000, 48_000) if "file a bug" in run(size, code=SLOW, **shown)
    )
    said = run(round(1.4 * next(slow)), "announced", code=SLOW, **shown)
    assert "file a bug" not in said
    assert "program fold: compiling" in said


def test_the_log_is_as_it_was_after_a_program():
    code = COMMAND + "print(jax.config.jax_logging_level, file=sys.stderr)"
    assert run(code=code).splitlines()[-1] == "NOTSET"


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_the_users_cache_folder(monkeypatch, given):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert cache_folder() == (Path(given) if given else Path.home() / ".cache") / "pi0_jax"


def test_each_kind_of_processor_has_a_folder_of_its_own(monkeypatch):
    """A home may be on a file server, and a program for one processor may crash on another."""
    here = compilation._default_folder()
    assert here.parent == cache_folder() / "compiled"
    monkeypatch.setattr(Path, "read_text", lambda _: "flags\t: fpu sse2\n")
    assert compilation._default_folder() not in (here, here.parent)
