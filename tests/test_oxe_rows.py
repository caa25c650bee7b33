"""Every row of a public dataset declares what it needs.

Its robot fits it, and its notes can be read.
"""

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.simulated import METAWORLD, REACH
from pi0_jax.embodiments import EMBODIMENTS
from tests.spec_data import SPECS, index_from_spec, spec_fields

PUBLIC = [name for name in ROWS if name not in {row.name for row in (*METAWORLD, *REACH)}]
SPEC_OF = {"bridge_dataset": "bridge_orig"}  # the same files under another name
COMPRESSED = {
    "kuka": (
        "steps/observation/clip_function_input/base_pose_tool_reached",
        "steps/observation/gripper_closed",
    )
}


def spec_of(row):
    return SPEC_OF.get(row.tfds_name, row.tfds_name)


def compressed(row):
    return COMPRESSED.get(row.tfds_name, ())


def test_every_description_belongs_to_a_row():
    assert {path.stem for path in SPECS.glob("*.json")} == {spec_of(ROWS[name]) for name in PUBLIC}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_dataset_declares_what_the_row_needs(name):
    row = ROWS[name]
    declared = spec_fields(spec_of(row))
    for path, field in row.fields.items():
        shape, dtype = (
            (tuple(declared[path]["shape"]), declared[path]["dtype"])
            if path not in compressed(row)
            else ((), "string")
        )
        assert (path, field.shape, field.dtype) == (path, shape, dtype)
        assert all(start + 4 <= field.shape[0] for start in field.quaternions)
    for path in row.views:
        assert (declared[path]["type"], declared[path]["shape"][2], declared[path]["dtype"]) == (
            "Image",
            3,
            "uint8",
        )
    for path in row.language.paths:
        assert (
            declared[path]["dtype"]
            == {"utf-8": "string", "code points": "int32"}[row.language.encoding]
        )


@pytest.mark.parametrize("name", PUBLIC)
def test_the_robot_is_a_known_one_with_a_gripper_of_one_convention(name):
    robot = ROWS[name].embodiment
    assert EMBODIMENTS[robot.name] is robot
    assert robot.control_hz > 0 and 1 <= robot.execute_steps <= robot.control_hz
    for dim in robot.actions:
        assert (dim.ends is not None) == ("gripper" in dim.name)
        if dim.ends:
            assert dim.kind == "absolute" and set(dim.ends) in ({0, 1}, {-1, 1})


@pytest.mark.parametrize("name", PUBLIC)
def test_notes_are_sentences(name):
    row = ROWS[name]
    assert row.name == name and row.versions
    for note in row.notes:
        assert note[0].isupper() and note.endswith(".") and "\n" not in note


@pytest.mark.parametrize("name", PUBLIC)
def test_an_episode_of_one_step_is_indexed(tmp_path, name):
    row = ROWS[name]
    index = index_from_spec(
        row, tmp_path, [{"steps/is_first": [True]}], spec=spec_of(row), zlib=compressed(row)
    )
    assert index.state.shape == (1, len(row.embodiment.state))
    assert index.action.shape == (1, len(row.embodiment.actions))
    assert index.frames("train").tolist() in ([], [0])
    actions, _ = index.chunks(np.array([0]), 3)
    assert np.isfinite(actions).all()
