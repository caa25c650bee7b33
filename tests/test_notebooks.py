"""The notebooks of docs/ run from their first cell to their last; `make docs` draws the figures."""

import os
import re
from pathlib import Path

import pytest

from tests.own_process import python
from tests.training import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
_CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def code(notebook: Path) -> str:
    """Returns the cells as one program; a cell's options are left out."""
    cells = _CELL.findall(notebook.read_text("utf-8"))
    return "\n".join(re.sub(r"\A(:.*\n)+", "", cell) for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path):
    program = tmp_path / f"{notebook.stem}.py"
    program.write_text(code(notebook), encoding="utf-8")
    env = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    python(program, cwd=tmp_path, env=env, timeout=600)


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["arrays", "inside"]
    assert all(code(path) for path in NOTEBOOKS)
