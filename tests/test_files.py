"""Files appear whole, and with the permissions that the user's umask leaves."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi0_jax import convert
from pi0_jax.data.datasets import find_row
from pi0_jax.data.index import build_or_open
from pi0_jax.data.statistics import index_statistics
from pi0_jax.files import new_path, replacing
from pi0_jax.policy import Policy
from pi0_jax.report.cards import Card, write_cards
from pi0_jax.sim.evaluation import Case, Row, save
from pi0_jax.train.metrics import MetricsWriter
from tests import policies
from tests.tiny_data import write_reach


@pytest.fixture
def private(tmp_path) -> Iterator[Path]:
    """Gives a folder in a process whose group may read what it writes, and nobody else."""
    before = os.umask(0o027)
    folder = tmp_path / "private"
    folder.mkdir()
    yield folder
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Returns the files and folders in it whose modes are not those of the umask 027."""
    expected = {True: 0o750, False: 0o640}
    found = {path: path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    assert found
    return {
        f"{path.relative_to(folder)}": oct(mode)
        for path, mode in found.items()
        if mode != expected[path.is_dir()]
    }


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    with pytest.raises(UnicodeEncodeError), replacing(file) as temporary:
        temporary.write_text("half \ud800", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "new"


def test_new_paths_differ(tmp_path):
    assert len({new_path(tmp_path, ".a-") for _ in range(100)}) == 100


def test_an_index_its_statistics_and_its_page(private):
    data = private / "data"
    write_reach(data)
    index = build_or_open(find_row("reach_arm3", {}), data, progress=False)
    statistics = index_statistics(index, horizon=2, progress=False)
    write_cards([Card(index, statistics, 2, None)], private / "cards")
    assert modes(private) == {}


def test_a_run_an_export_an_evaluation_and_conversions(private):
    robot = "reach_arm3"
    run = policies.write_checkpoint(private / "run", [robot])
    metrics = MetricsWriter(run, start=0)
    metrics.write(1, {"loss": 1.0})
    metrics.close()
    Policy.open(run).export(private / "exported", image_size=(48, 64))
    evaluation = private / "evaluation"
    evaluation.mkdir()
    save(evaluation, [Row(Case(robot, "right"), "all", 1, 1)], checkpoint="run", seed=0)
    for to in convert.OUTPUTS:
        convert.run(run, private / to, to, convert.Options())
    assert modes(private) == {}
