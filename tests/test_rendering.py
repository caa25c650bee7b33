"""Runs tests/rendering, each file in a process of its own: OpenGL and TensorFlow share none."""

import pytest

from tests.own_process import ROOT, run_tests

FILES = sorted(path.name for path in (ROOT / "tests" / "rendering").glob("test_*.py"))


@pytest.mark.parametrize("file", FILES)
def test_rendering(file):
    done = run_tests(f"tests/rendering/{file}")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
