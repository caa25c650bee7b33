"""Runs commands and programs in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run(
    command: Sequence[object], *, status: int | None = 0, timeout: float = 300, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository, and checks that it ends with this status.

    Args:
        command: its words.
        status: the exit status to expect; None allows any.
        timeout: seconds.
        how: of subprocess.run, such as env.
    """
    words = [str(word) for word in command]
    how = {"cwd": ROOT, "capture_output": True, "text": True} | how
    done = subprocess.run(words, timeout=timeout, **how)
    assert status in (None, done.returncode), f"{done.stdout}\n{done.stderr}"
    return done


def python(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Runs this Python with arguments such as "-c" and a program; `how` is of `run`."""
    return run([sys.executable, *arguments], **how)


def loaded_by(program: str, *packages: str) -> list[str]:
    """Returns those of the packages that a new process has loaded after the program."""
    asked = f"\nimport sys; print(*(name for name in {packages} if name in sys.modules))"
    return python("-c", program + asked).stdout.split()


def run_tests(file: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest on a file of the repository, with these variables beside the usual ones."""
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", file)
    return python(*pytest, status=None, timeout=3000, env=os.environ | environment)
