"""The policy hands out what the robot's `step` takes: for every row and every record.

The data are made up. `python -m pytest tests/test_conventions.py -s` prints one table of them all.

    recorded   the numbers of the dataset's action, written by hand
    served     the same frames all the way: files -> index -> chunk -> deltas -> model units, which
               a policy without error says, and back to robot units

The two are equal. Where the robot of a row takes other numbers than its files hold, the difference
has its reason in DIFFERS, and `recorded` is what the reason says.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pi0_jax import preprocess
from pi0_jax.data.datasets import ROWS
from pi0_jax.data.grippers import RecordedGripper
from pi0_jax.data.index import Index, build_or_open
from pi0_jax.data.rows import CameraField, Dataset, Standardised
from pi0_jax.data.statistics import compute
from pi0_jax.data.write import ArrayFeature
from pi0_jax.embodiments import EMBODIMENTS, ActionDim, Embodiment, StateDim
from pi0_jax.observation import CAMERA_SLOTS, Sample
from pi0_jax.preprocess import Layout, Robot
from tests.spec_data import index_from_spec
from tests.test_oxe_rows import compressed, spec_of
from tests.tiny_data import REACH_STEPS, solid, write_metaworld, write_reach

HORIZON = 3
STATE, ACTION, OBSERVATION = "steps/observation/state", "steps/action", "steps/observation"
COMMAND = "steps/action_dict"
TRANSLATION, ROTATION = "steps/action/world_vector", "steps/action/rotation_delta"
CLOSE, OPEN = "steps/action/gripper_closedness_action", "steps/action/open_gripper"
CONVERTED = "_converted_externally_to_rlds"

STEPS = 4
MOVE = np.array([[0.01, -0.02, 0.03, 0.04, -0.05, 0.06]]) * (1 + np.arange(STEPS))[:, None]
JOINTS = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]]) + 0.1 * np.arange(STEPS)[:, None]
POINTS = np.array([[0.4, 0.1, 0.3]]) + 0.01 * np.arange(STEPS)[:, None]
ROLL = np.array([3.1, -3.1, 3.0, -3.0])  # of a gripper that points down
ANGLES = np.column_stack([ROLL, [0.1] * STEPS, [-0.2] * STEPS])
MOTION = {TRANSLATION: MOVE[:, 0:3], ROTATION: MOVE[:, 3:6]}
SHUT = np.array([0.0, 1.0, 0.25, 0.75])  # closed is 1, and numbers between
OVERSHOT = np.array([0.0, 1.02, 0.25, 0.75])
PLUS_MINUS = np.array([-1.0, 1.0, 0.5, -0.25])  # one end is -1, the other +1
OPENED = np.array([True, False, False, True])
HELD, TOLD = np.array([0, 1, 0, -1]), np.array([-1, 1, 1, -1])  # +1 close, -1 open, 0 hold
REACHED = np.array([[0.1, 0, 0, 0, 0, 2 * np.pi - 6.2], [0, 0.3, 0, 0, 0, 0.1], [0] * 6, [0] * 6])
POSES = [[0.1, 0, 0, 0, 0, 3.1, 1], [0.2, 0, 0, 0, 0, -3.1, 1], *[[0.2, 0.3, 0, 0, 0, -3.0, 0]] * 2]

DIFFERS = {
    "reached": "arm: the change of pose that was reached, not the command",
    "told": "gripper: of close, open and hold what was last told (hold would repeat it)",
    "turn": "rotation: roll, pitch, yaw of what the files hold as an axis-angle vector",
    "quaternion": "rotation: roll, pitch, yaw of what the files hold as a quaternion",
    "units": "pose: m and rad of what the files hold in mm and degrees",
    "state": "gripper: no command was recorded; the state's",
    "cut": "gripper: an overshoot of an arm led by hand counts as the end",
}


class Case(NamedTuple):
    raw: dict[str, Any]  # path -> a value for each step
    recorded: np.ndarray  # float[T, A]
    differs: tuple[str, ...] = ()  # keys of DIFFERS


def beside(*columns: Any) -> np.ndarray:
    return np.column_stack([np.asarray(column, float) for column in columns])


def nines(count: int) -> np.ndarray:
    """Returns values that no rule may read."""
    return np.full((STEPS, count), 9.0)


def quaternions(axis: int, angles: np.ndarray) -> np.ndarray:
    """Returns x y z w of turns about one axis."""
    return np.where(np.arange(4) == axis, np.sin(angles / 2)[:, None], 0) + np.where(
        np.arange(4) == 3, np.cos(angles / 2)[:, None], 0
    )


def plain(action: np.ndarray, *differs: str, raw: dict[str, Any] | None = None) -> Case:
    """Returns a case in which the field steps/action holds just what the robot takes."""
    return Case({ACTION: action} | (raw or {}), action, differs)


def rtx(gripper: np.ndarray, *differs: str, raw: dict[str, Any]) -> Case:
    return Case(MOTION | raw, beside(MOVE, gripper), differs)


def droid(action: str, numbers: np.ndarray) -> Case:
    """Returns twenty steps; something moves in all of them."""
    steps = 20
    many = np.resize(numbers, (steps, numbers.shape[1]))
    gripper = np.linspace(0, 1, steps)
    raw = {
        f"{COMMAND}/joint_velocity": np.resize([[0.1], [0.5]], (steps, 7)),
        f"{OBSERVATION}/joint_position": np.resize(JOINTS, (steps, 7)),
        f"{OBSERVATION}/cartesian_position": np.resize(beside(POINTS, ANGLES), (steps, 6)),
        f"{COMMAND}/gripper_position": gripper[:, None],
        "episode_metadata/file_path": "/nfs/success/x.h5",
    }
    return Case(raw | {f"{COMMAND}/{action}": many}, beside(many, gripper))


UP = np.deg2rad([0.0, 30.0, -20.0, 90.0])
CASES: dict[str, Case] = {
    **{
        name: Case(
            {STATE: POSES, ACTION: beside(nines(6), OPENED)}, beside(REACHED, OPENED), ("reached",)
        )
        for name in ("bridge_dataset", "bridge_orig")
    },
    "bridge": Case({STATE: POSES, OPEN: OPENED} | MOTION, beside(REACHED, OPENED), ("reached",)),
    "fractal20220817_data": rtx(TOLD, "told", raw={CLOSE: HELD[:, None]}),
    "kuka": rtx(TOLD, "told", raw={CLOSE: HELD[:, None], "success": True}),
    "bc_z": Case(
        {
            f"{OBSERVATION}/present/axis_angle": np.zeros((STEPS, 3)),
            "steps/action/future/xyz_residual": beside(MOVE[:, 0:3], nines(27)),
            "steps/action/future/axis_angle_residual": beside(UP, np.zeros((STEPS, 2)), nines(27)),
            "steps/action/future/target_close": beside(~OPENED, nines(9)).astype(int),
        },
        beside(MOVE[:, 0:3], UP, np.zeros((STEPS, 2)), ~OPENED),
        ("turn",),
    ),
    "language_table": plain(MOVE[:, 0:2]),
    "taco_play": Case(
        {"steps/action/rel_actions_world": beside(MOVE, -PLUS_MINUS)}, beside(MOVE, -PLUS_MINUS)
    ),
    "jaco_play": Case(
        {TRANSLATION: MOVE[:, 0:3], CLOSE: HELD[:, None]},
        beside(MOVE[:, 0:3], np.zeros((STEPS, 3)), TOLD),
        ("told",),
    ),
    "berkeley_cable_routing": Case(MOTION, MOVE),
    "roboturk": rtx(PLUS_MINUS, raw={CLOSE: PLUS_MINUS[:, None]}),
    "nyu_door_opening_surprising_effectiveness": rtx(TOLD, "told", raw={CLOSE: HELD[:, None]}),
    "viola": rtx(PLUS_MINUS, raw={CLOSE: PLUS_MINUS}),
    "berkeley_autolab_ur5": rtx(TOLD, "told", raw={CLOSE: HELD}),
    "toto": Case(
        {TRANSLATION: POINTS, ROTATION: ANGLES, OPEN: OPENED}, beside(POINTS, ANGLES, OPENED)
    ),
    "aloha_mobile": Case(
        {
            STATE: beside(JOINTS[:, 0:6], SHUT, JOINTS[:, 1:7], SHUT),
            ACTION: beside(JOINTS[:, 1:7], SHUT, JOINTS[:, 0:6], OVERSHOT, MOVE[:, 0:2]),
        },
        beside(JOINTS[:, 1:7], SHUT, JOINTS[:, 0:6], SHUT, MOVE[:, 0:2]),
        ("cut",),
    ),
    f"ucsd_kitchen_dataset{CONVERTED}": Case(
        {ACTION: beside(1000 * POINTS, np.rad2deg(ANGLES), SHUT, nines(1))},
        beside(POINTS, ANGLES, SHUT),
        ("units",),
    ),
    f"dlr_edan_shared_control{CONVERTED}": plain(beside(MOVE, SHUT)),
    "berkeley_fanuc_manipulation": Case(
        {STATE: beside(JOINTS[:, 0:6], SHUT, nines(6)), ACTION: MOVE},
        beside(MOVE, SHUT),
        ("state",),
    ),
    "cmu_stretch": Case({ACTION: beside(MOVE, SHUT, nines(1))}, beside(MOVE, SHUT)),
    "dobbe": plain(beside(MOVE, SHUT)),
    f"austin_buds_dataset{CONVERTED}": plain(beside(MOVE, PLUS_MINUS)),
    f"austin_sailor_dataset{CONVERTED}": plain(beside(MOVE, PLUS_MINUS)),
    f"austin_sirius_dataset{CONVERTED}": plain(beside(MOVE, PLUS_MINUS)),
    "utaustin_mutex": plain(beside(MOVE, PLUS_MINUS)),
    "droid": droid("joint_position", JOINTS),
    "droid_velocity": droid("joint_velocity", np.array([[0.1] * 7, [0.5] * 7])),
    "droid_cartesian": droid("cartesian_velocity", MOVE),
    f"stanford_hydra_dataset{CONVERTED}": plain(beside(MOVE, SHUT)),
    f"nyu_franka_play_dataset{CONVERTED}": Case(
        {ACTION: beside(nines(7), MOVE, -PLUS_MINUS, nines(1))}, beside(MOVE, -PLUS_MINUS)
    ),
    f"furniture_bench_dataset{CONVERTED}": Case(
        {ACTION: beside(MOVE[:, 0:3], quaternions(2, UP), PLUS_MINUS)},
        beside(MOVE[:, 0:3], np.zeros((STEPS, 2)), UP, PLUS_MINUS),
        ("quaternion",),
    ),
    f"iamlab_cmu_pickup_insert{CONVERTED}": Case(
        {ACTION: beside(POINTS, quaternions(0, ROLL), SHUT)},
        beside(POINTS, ROLL, np.zeros((STEPS, 2)), SHUT),
        ("quaternion",),
    ),
    "fmb": plain(beside(MOVE, SHUT)),
    "fmb_dataset": plain(beside(MOVE, SHUT)),
    **{
        f"libero_{suite}_no_noops": plain(beside(MOVE, PLUS_MINUS))
        for suite in ("spatial", "object", "goal", "10")
    },
}


def one_arm(columns):
    """Keeps both arms of ALOHA and drops the base."""
    state, action = columns[STATE], columns[ACTION][:, 0:14]
    return Standardised(state, action, np.ones(len(state), bool), stop=len(state))


def aloha(name: str) -> Dataset:
    """Returns a row with a record of ALOHA that no public row has."""
    embodiment = EMBODIMENTS[name]
    cameras = {
        camera: CameraField(f"{OBSERVATION}/{camera}") for camera in embodiment.cameras.values()
    }
    return dataclasses.replace(
        ROWS["aloha_mobile"], name=name, embodiment=embodiment, cameras=cameras, standardise=one_arm
    )


def own(name: str, gripper: ActionDim, recorded: dict[str, Any] | None = None) -> Dataset:
    """Returns the row of a robot of one's own that is indexed without a rule.

    The action names its joints in another order than the state.
    """
    joints = ("shoulder", "elbow", "wrist", "hand", "thumb", "neck")
    turns = {"wrist"}
    embodiment = Embodiment(
        name=name,
        robot="an arm",
        cameras={"left_wrist_0_rgb": "wrist"},
        state=(
            *(StateDim(joint, "rad", periodic=joint in turns) for joint in joints),
            StateDim("gripper", "1", one_means="closed"),
        ),
        actions=(
            *(
                ActionDim(joint, "rad", "absolute", delta=True, periodic=joint in turns)
                for joint in reversed(joints)
            ),
            gripper,
        ),
        control_hz=10.0,
        execute_steps=1,
    )
    grippers = {"gripper": RecordedGripper(**recorded)} if recorded else {}
    return dataclasses.replace(ROWS["dobbe"], name=name, embodiment=embodiment, grippers=grippers)


# state: the wrist, third of six, turns through pi; action: the third from the end
OWN_STATE = beside(JOINTS[:, 0:2], ROLL, JOINTS[:, 3:6], SHUT)
OWN_TARGETS = beside(JOINTS[:, 0:3], np.roll(ROLL, -1), JOINTS[:, 4:6])


def own_case(recorded: np.ndarray, served: np.ndarray) -> Case:
    raw = {STATE: OWN_STATE, ACTION: beside(OWN_TARGETS, recorded)}
    return Case(raw, beside(OWN_TARGETS, served))


WIDTH = 0.08 * SHUT
FURTHER: dict[str, tuple[Dataset, Case]] = {
    "aloha": (aloha("aloha"), CASES["aloha_mobile"]),
    "aloha_sim": (aloha("aloha_sim"), CASES["aloha_mobile"]),
    "own: 1 = closed": (
        own("closed", ActionDim("gripper", "1", "absolute", one_means="closed")),
        own_case(SHUT, SHUT),
    ),
    "own: 1 = open, recorded as 1 = closed": (
        own(
            "turned",
            ActionDim("gripper", "1", "absolute", one_means="open"),
            {"open": 0, "closed": 1},
        ),
        own_case(SHUT, 1 - SHUT),
    ),
    "own: -1 open, +1 closed": (
        own("signed", ActionDim("gripper", "1", "absolute", open=-1.0, closed=1.0)),
        own_case(PLUS_MINUS, PLUS_MINUS),
    ),
    "own: a width in m": (
        own("width", ActionDim("gripper", "m", "absolute", open=0.08, closed=0.0)),
        own_case(WIDTH, WIDTH),
    ),
    "own: 255 = closed, recorded as a width in m": (
        own(
            "bytes",
            ActionDim("gripper", "1", "absolute", open=0.0, closed=255.0),
            {"open": 0.08, "closed": 0},
        ),
        own_case(WIDTH, 255 * (1 - SHUT)),
    ),
}


def reach_case(name: str, folder: Path) -> tuple[Index, np.ndarray]:
    """Returns a case of the reach world's arms, whose files the package writes itself."""
    joints = len(EMBODIMENTS[name].state)
    steps = {
        "observation": REACH_STEPS["observation"] | {"state": ArrayFeature((joints,), np.float32)},
        "action": ArrayFeature((joints,), np.float32),
        "language_instruction": REACH_STEPS["language_instruction"],
    }
    targets = JOINTS[:, 1 : joints + 1].astype(np.float32)
    grey = solid((9, 9, 9))
    episode = [
        {
            "observation": {
                "base": grey,
                "wrist": grey,
                "state": JOINTS[i, 0:joints].astype(np.float32),
            },
            "action": targets[i],
            "language_instruction": "reach",
        }
        for i in range(STEPS)
    ]
    write_reach(folder, name=name, steps=steps, episodes=[{"steps": episode}], per_shard=1)
    return build_or_open(ROWS[name], folder, progress=False), targets


def metaworld_case(name: str, folder: Path) -> tuple[Index, np.ndarray]:
    """Returns a case of Meta-World's arm, as launch.make_metaworld_data writes it."""
    rng = np.random.default_rng(0)
    states, actions = rng.uniform(0, 1, (STEPS, 4)), rng.uniform(-1, 1, (STEPS, 4))
    write_metaworld(folder, name, (states, actions))
    return build_or_open(ROWS[name], folder, progress=False), actions.astype(np.float32)


class Result(NamedTuple):
    index: Index
    error: float  # largest difference between served and recorded, in the robot's units
    reasons: tuple[str, ...]


def served(index: Index, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the actions after the way to the model and back.

    Returns:
        float32[H, A] in robot units, and bool[H] whether the episode has them.
    """
    robot = Robot(index.embodiment, compute(index, HORIZON, progress=False))
    layout = Layout(
        preprocess.used_slots([index.embodiment]), 32, 32, 48, "zscore", normalization_clip=0.0
    )
    preprocess.check_robot(robot, layout)
    chunk, valid = index.chunk(frame, HORIZON)
    seen = index.observation(frame)
    batch = preprocess.host_actions([Sample(seen, chunk, valid, 0, 0, frame)], [robot], layout)
    return preprocess.to_robot(batch.actions[0], seen["state"], robot, "zscore"), valid


def compared(index: Index, recorded: np.ndarray, differs: tuple[str, ...] = ()) -> Result:
    errors = []
    for frame in index.frames("train").tolist():
        actions, valid = served(index, frame)
        count = int(valid.sum())
        expected = recorded[frame : frame + count, : actions.shape[1]]
        errors.append(np.abs(actions[:count] - expected).max())
    return Result(index, max(errors), tuple(DIFFERS[reason] for reason in differs))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Result]:
    found = {}
    for name in ROWS:
        folder = tmp_path_factory.mktemp("data")
        row = ROWS[name]
        if name.startswith("reach_"):
            found[name] = compared(*reach_case(name, folder))
        elif name.startswith("metaworld"):
            found[name] = compared(*metaworld_case(name, folder))
        else:
            case = CASES[name]
            index = index_from_spec(
                row, folder, [case.raw], spec=spec_of(row), zlib=compressed(row)
            )
            found[name] = compared(index, case.recorded, case.differs)
    for name, (row, case) in FURTHER.items():
        index = index_from_spec(
            row, tmp_path_factory.mktemp("data"), [case.raw], spec=row.tfds_name
        )
        found[name] = compared(index, case.recorded, case.differs)
    print_table(found)
    return found


def print_table(found: dict[str, Result]) -> None:
    head = (
        "row",
        "record",
        "recorded open, closed",
        "served",
        "angles that turn",
        "deltas",
        "off by",
    )
    lines = [head, *(cells(name, result) for name, result in found.items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    print()
    for line, reasons in zip(
        lines, [(), *(result.reasons for result in found.values())], strict=True
    ):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
        for reason in reasons:
            print(f"    {reason}")


def cells(name: str, result: Result) -> tuple[str, ...]:
    robot = result.index.embodiment
    recorded = {f"{g.open:g}, {g.closed:g}" for g in result.index.row.recorded_grippers.values()}
    ends = {f"{dim.ends[0]:g}, {dim.ends[1]:g}" for dim in robot.actions if dim.ends}
    turning = [
        f"{part} {dim.name}"
        for part, dims in (("state", robot.state), ("action", robot.actions))
        for dim in dims
        if dim.periodic
    ]
    deltas = [
        f"{dim.name}" if place == i else f"{dim.name} of state {place}"
        for i, (dim, place) in enumerate(zip(robot.actions, robot.delta_states, strict=True))
        if place is not None
    ]
    short = [
        text if len(text) <= 44 else f"{text[:40]} ..."
        for text in (", ".join(turning), ", ".join(deltas))
    ]
    none = "none"
    return (
        name.replace(CONVERTED, "..."),
        robot.name,
        "; ".join(recorded) or none,
        "; ".join(ends) or none,
        short[0] or none,
        short[1] or none,
        f"{result.error:.0e}",
    )


def test_every_row_and_every_record_has_its_case(results):
    assert results.keys() == ROWS.keys() | FURTHER.keys()
    assert EMBODIMENTS.keys() <= {result.index.embodiment.name for result in results.values()}


@pytest.mark.parametrize("name", [*ROWS, *FURTHER])
def test_what_is_served_is_what_was_recorded(results, name):
    """Both agree in the robot's own units, to the rounding of float32."""
    robot = results[name].index.embodiment
    largest = max([1.0, *(abs(end) for dim in robot.actions for end in dim.ends or ())])
    assert results[name].error < 1e-5 * largest


def test_libero_opens_at_minus_one_as_its_simulator_does():
    gripper = EMBODIMENTS["libero"].actions[6]
    assert gripper.ends == (-1.0, 1.0)  # open, closed
    assert EMBODIMENTS["libero"].image_rotation == 180
    assert CAMERA_SLOTS[0] in EMBODIMENTS["libero"].cameras
