"""DROID's rows read three action spaces from the same files.

The tests also check success and idle filters, views, instructions, and the way to model units.
"""

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import Index, build_or_open
from pi0_jax.preprocess import deltas
from pi0_jax.report import card_facts
from tests.spec_data import index_from_spec, write_from_spec

OBSERVATION, COMMAND = "steps/observation", "steps/action_dict"
FILE = "episode_metadata/file_path"
SUCCESS = "/nfs/droid/ILIAD/success/2023-04-21/Fri_Apr_21/trajectory.h5"
INSTRUCTIONS = (
    "steps/language_instruction",
    "steps/language_instruction_2",
    "steps/language_instruction_3",
)
ACTIVE, IDLE = 0.01, 0.0005  # change of one joint's commanded velocity


def episode(pattern: str, file: str = SUCCESS, **fields) -> dict:
    """Returns an episode with one step for each letter: "." is active, "x" is idle."""
    velocity = np.zeros((len(pattern), 7))
    velocity[:, 3] = np.cumsum([IDLE if letter == "x" else ACTIVE for letter in pattern])
    return {f"{COMMAND}/joint_velocity": velocity.tolist(), FILE: file, **fields}


def kept(index: Index, number: int) -> list[int]:
    """Steps of the episode that may be drawn."""
    start, length = int(index.episodes["start"][number]), int(index.episodes["length"][number])
    frames = np.concatenate([index.frames("train"), index.frames("val")])
    return sorted((frames[(frames >= start) & (frames < start + length)] - start).tolist())


def steps(*ranges: tuple[int, int]) -> list[int]:
    return [step for first, end in ranges for step in range(first, end)]


FILTERS = {
    "all active: the last 10 go": ("." * 30, SUCCESS, steps((0, 20))),
    "16 active steps are enough": ("." * 16, SUCCESS, steps((0, 6))),
    "15 are not": ("." * 15, SUCCESS, []),
    "one step": (".", SUCCESS, []),
    "6 idle steps stay": ("." * 20 + "x" * 6 + "." * 20, SUCCESS, steps((0, 36))),
    "7 go, and split the episode": (
        "." * 20 + "x" * 7 + "." * 20,
        SUCCESS,
        steps((0, 10), (27, 37)),
    ),
    "idle steps that stay count as active": ("." * 8 + "x" * 6 + "." * 2, SUCCESS, steps((0, 6))),
    "a run of 15 goes beside one of 16": ("." * 15 + "x" * 7 + "." * 16, SUCCESS, steps((22, 28))),
    "the first step is not idle": ("x" * 7 + "." * 20, SUCCESS, steps((0, 17))),  # so only 6 are
    "idle at both ends": ("x" * 8 + "." * 20 + "x" * 9, SUCCESS, steps((8, 18))),
    "never active": ("x" * 40, SUCCESS, []),
    "failed": ("." * 30, "/nfs/droid/ILIAD/failure/2023-04-21/trajectory.h5", []),
    "a success elsewhere in the path": ("." * 30, "/nfs/success_lab/failure/success.h5", []),
}


@pytest.fixture(scope="module")
def filtered(tmp_path_factory) -> Index:
    """Writes an episode for each of FILTERS."""
    return index_from_spec(
        ROWS["droid"],
        tmp_path_factory.mktemp("droid"),
        [episode(pattern, file) for pattern, file, _ in FILTERS.values()],
    )


@pytest.mark.parametrize("name", FILTERS)
def test_idle_steps_and_failures_are_not_drawn(filtered, name):
    number = list(FILTERS).index(name)
    _, file, expected = FILTERS[name]
    assert kept(filtered, number) == expected
    assert filtered.episodes["success"][number] == (file == SUCCESS)


def test_a_step_is_idle_only_if_every_joint_is():
    """If one joint of seven speeds up by 0.001 or more, in either direction, that is movement."""
    rule = ROWS["droid"].standardise
    columns = {path: np.zeros((40, *field.shape)) for path, field in ROWS["droid"].fields.items()}
    columns[FILE] = np.array(SUCCESS.encode(), object)
    speeds = columns[f"{COMMAND}/joint_velocity"]
    speeds[1::2, 6] = -0.002
    assert rule(columns).keep.sum() == 30
    speeds[1::2, 6] = -0.0009
    assert rule(columns).keep.sum() == 0


JOINTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
TARGET = [0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0]
SPEED = [0.5, -0.5, 0, 0, 0, 0, 0.25]
POSE = [0.4, 0.1, 0.3, 3.1, 0.1, -0.2]
POSE_SPEED = [0.3, 0, -0.3, 0.1, 0, 0.2]
# A row -> state, action columns with 1 = open, the same in DROID's own units with 1 = closed.
COLUMNS = {
    "droid": ([*JOINTS, 0.25], [*TARGET, 0.125], [*TARGET, 0.875]),
    "droid_velocity": ([*JOINTS, 0.25], [*SPEED, 0.125], [*SPEED, 0.875]),
    "droid_cartesian": ([*POSE, 0.25], [*POSE_SPEED, 0.125], [*POSE_SPEED, 0.875]),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Writes one dataset, version 1.0.0, for all three rows.

    It has two episodes, and the second one has no instruction.
    """
    one_step = {
        f"{OBSERVATION}/joint_position": JOINTS,
        f"{OBSERVATION}/gripper_position": [0.25],
        f"{OBSERVATION}/cartesian_position": POSE,
        f"{OBSERVATION}/exterior_image_1_left": (255, 0, 0),
        f"{OBSERVATION}/exterior_image_2_left": (0, 255, 0),
        f"{OBSERVATION}/wrist_image_left": (0, 0, 255),
        f"{COMMAND}/joint_position": TARGET,
        f"{COMMAND}/cartesian_velocity": POSE_SPEED,
        f"{COMMAND}/gripper_position": [0.875],
    }
    said = dict(zip(INSTRUCTIONS, ("move the cup", "", "put the cup away"), strict=True))
    speeds = [SPEED if step % 2 else [0] * 7 for step in range(20)]  # always moving
    first = {path: [value] * 20 for path, value in one_step.items()} | {
        f"{COMMAND}/joint_velocity": speeds[::-1],
        FILE: SUCCESS,
        **said,
    }
    folder = tmp_path_factory.mktemp("droid")
    episodes = [first, episode("." * 20, **dict.fromkeys(INSTRUCTIONS, ""))]
    write_from_spec(folder, "droid", episodes, tfds_name="droid", version="1.0.0")
    return folder


@pytest.mark.parametrize("name", COLUMNS)
def test_three_action_spaces(data_dir, name):
    state, action, robot_units = COLUMNS[name]
    index = build_or_open(ROWS[name], data_dir, progress=False)
    np.testing.assert_allclose(index.state[0], state, atol=1e-6)
    np.testing.assert_allclose(index.action[0], action, atol=1e-6)
    np.testing.assert_allclose(index.chunk(0, 1)[0], [robot_units], atol=1e-6)
    assert kept(index, 0) == steps((0, 10))


def test_joint_targets_are_learnt_from_the_current_joints_and_the_gripper_is_not(data_dir):
    index = build_or_open(ROWS["droid"], data_dir, progress=False)
    chunk, valid = index.chunk(19, 2)  # the last step, and past the end
    delta = deltas.to_delta(chunk, index.state[19], index.embodiment)
    np.testing.assert_allclose(delta, [[0.1, 0, 0, 0, 0, 0, 0.3, 0.875]] * 2, atol=1e-6)
    assert valid.tolist() == [True, False]


def test_past_the_end_velocities_are_zero_and_the_gripper_stays(data_dir):
    velocities = build_or_open(ROWS["droid_velocity"], data_dir, progress=False)
    np.testing.assert_allclose(
        velocities.chunk(18, 3)[0][2], [0, 0, 0, 0, 0, 0, 0, 0.875], atol=1e-6
    )
    cartesian = build_or_open(ROWS["droid_cartesian"], data_dir, progress=False)
    np.testing.assert_allclose(cartesian.chunk(19, 2)[0][1], [0, 0, 0, 0, 0, 0, 0.875], atol=1e-6)


def test_views_and_instructions_are_drawn_and_an_empty_instruction_is_not(data_dir):
    index = build_or_open(ROWS["droid"], data_dir, progress=False)
    seen, said = set(), set()
    for choice in range(12):
        observation = index.observation(0, choice)
        colours = {
            camera: int(image.mean(axis=(0, 1)).argmax())
            for camera, image in observation["images"].items()
        }
        assert colours["wrist"] == 2  # blue
        seen.add(colours["exterior"])
        said.add(observation["prompt"])
    assert seen == {0, 1}  # red and green
    assert said == {"move the cup", "put the cup away"}


def test_a_card_counts_all_three_instructions(tmp_path):
    said = dict(
        zip(INSTRUCTIONS, ("move the cup", "the cup, move it", "put the cup away"), strict=True)
    )
    index = index_from_spec(
        ROWS["droid"],
        tmp_path,
        [episode("." * 20, **said), episode("." * 20, **dict.fromkeys(INSTRUCTIONS, ""))],
    )
    prompts = card_facts.count_prompts(index)
    assert prompts.counts == [(text, 1) for text in said.values()]
    assert (prompts.episodes, prompts.empty) == (2, 1)


def test_an_episode_without_any_instruction_is_not_drawn(data_dir):
    assert kept(build_or_open(ROWS["droid"], data_dir, progress=False), 1) == []
