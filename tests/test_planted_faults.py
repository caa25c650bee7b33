"""No planted fault that the files can show is silent or ends in a traceback.

The faults are those of tests/planted_faults.py.
"""

import dataclasses

import pytest

from pi0_jax.data.index import build_or_open
from pi0_jax.data.index.findings import index_findings
from tests.planted_faults import ROW, all_faults, printed_lines, run, turned_round, write_sound


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run(all_faults(), tmp_path_factory.mktemp("planted"))


def test_nothing_is_silent(results):
    assert len(results) >= 100 and len({r.fault.name for r in results}) == len(results)
    # what the files cannot show is listed with the reason, and is indeed silent
    expected = {True: {"silent"}, False: {"refused", "told"}}
    assert [r for r in results if r.answer not in expected[bool(r.fault.unknowable)]] == []


def test_a_refusal_names_the_dataset_or_the_file(results):
    for result in results:
        if result.answer == "refused":
            assert (
                "planted" in result.line and "expected" in result.line
            ) or "corrupted" in result.line


def test_training_says_that_a_gripper_is_inverted(tmp_path):
    write_sound(tmp_path)
    row = dataclasses.replace(ROW, standardise=turned_round)
    said = index_findings(build_or_open(row, tmp_path, progress=False))
    assert said[0].level == "wrong" and said[0].text.startswith("gripper (gripper): INVERTED")


def test_nothing_is_said_of_the_sound_dataset_but_that_its_gripper_is_right(tmp_path):
    write_sound(tmp_path)
    assert printed_lines(ROW, tmp_path) == {
        "- gripper (gripper): the state rises as the action opens "
    }
