"""Runs a test file in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_tests(file: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest on a file of the repository, with these variables beside the usual ones."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
