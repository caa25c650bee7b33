"""Of every planted fault that the files can show (tests/planted_faults.py) none is silent and none ends in a traceback."""

import pytest

from tests.planted_faults import EPISODES, LENGTH, ROW, _lines, all_faults, run, write_sound


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


def test_nothing_is_said_of_the_sound_dataset_but_that_its_gripper_is_right(tmp_path):
    write_sound(tmp_path)
    said = _lines(ROW, tmp_path)
    assert EPISODES * LENGTH == 60
    assert said == {"- gripper (gripper): the state rises as the action opens "}
