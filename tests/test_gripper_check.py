"""The data tell which way grippers count.

The episodes are made up for every row that records a gripper, at several speeds, right and swapped.
"""

import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.grippers import to_openings
from pi0_jax.data.index import build_or_open
from pi0_jax.data.index.gripper_check import declared_way, follow, gripper_lines, grippers, trends
from pi0_jax.data.index.validate import is_gripper
from tests.test_bridge import REAL

POSE = "base_pose_tool_reached"
OBSERVATION = "steps/observation"
CLOSING = "steps/action/gripper_closedness_action"
VECTOR, STATE = "steps/action", f"{OBSERVATION}/state"


def presses(opening):
    """Returns a button's value: 1 when it is told to close, -1 to open, 0 otherwise."""
    return -np.diff(opening, prepend=1.0)


def signed(opening):
    """Returns -1 for open and +1 for closed."""
    return 1 - 2 * opening


def closed(opening):
    return 1 - opening


def width(opening):
    return 0.08 * opening


def same(opening):
    return opening


def packed(opening):
    return np.array([zlib.compress(np.float32(1 - o).tobytes()) for o in opening], object)


# A row -> where the files hold commands and states, and what they hold for an opening: (field,
# places, function).
AUSTIN = ((VECTOR, (6,), signed), (STATE, (7,), width))
NAMED = ((VECTOR, (6,), signed), (f"{OBSERVATION}/state_gripper", (0,), width))
BRIDGE = ((VECTOR, (6,), same), (STATE, (6,), same))
DROID = (
    ("steps/action_dict/gripper_position", (0,), closed),
    (f"{OBSERVATION}/gripper_position", (0,), closed),
)
FMB = ((VECTOR, (6,), same), (f"{OBSERVATION}/state_gripper_pose", (), same))
GOOGLE = ((CLOSING, (0,), presses), (f"{OBSERVATION}/gripper_closed", (0,), closed))
CONVENTIONS = {
    "bridge_dataset": BRIDGE,
    "bridge_orig": BRIDGE,
    "bridge": (("steps/action/open_gripper", (), same), (STATE, (6,), same)),
    "fractal20220817_data": GOOGLE,
    "kuka": ((CLOSING, (0,), presses), (f"{OBSERVATION}/gripper_closed", None, packed)),
    "bc_z": (
        ("steps/action/future/target_close", (0,), closed),
        (f"{OBSERVATION}/present/sensed_close", (0,), lambda o: 1 - 0.8 * o),
    ),
    "taco_play": (
        ("steps/action/rel_actions_world", (6,), lambda o: 2 * o - 1),
        (f"{OBSERVATION}/robot_obs", (6,), width),
    ),
    "viola": ((CLOSING, (), signed), (f"{OBSERVATION}/gripper_states", (0,), width)),
    "berkeley_autolab_ur5": ((CLOSING, (), presses), (f"{OBSERVATION}/robot_state", (13,), closed)),
    "aloha_mobile": ((VECTOR, (6, 13), same), (STATE, (6, 13), same)),
    "dlr_edan_shared_control_converted_externally_to_rlds": (
        (VECTOR, (6,), closed),
        (STATE, (6,), closed),
    ),
    "berkeley_fanuc_manipulation": (None, (STATE, (6,), closed)),  # the state is the command
    "cmu_stretch": ((VECTOR, (6,), same), (STATE, (3,), same)),
    "dobbe": ((VECTOR, (6,), same), (STATE, (6,), same)),
    "austin_buds_dataset_converted_externally_to_rlds": AUSTIN,
    "austin_sailor_dataset_converted_externally_to_rlds": NAMED,
    "austin_sirius_dataset_converted_externally_to_rlds": NAMED,
    "utaustin_mutex": AUSTIN,
    "droid": DROID,
    "droid_velocity": DROID,
    "droid_cartesian": DROID,
    "stanford_hydra_dataset_converted_externally_to_rlds": (
        (VECTOR, (6,), closed),
        (STATE, (24,), width),
    ),
    "furniture_bench_dataset_converted_externally_to_rlds": (
        (VECTOR, (7,), signed),
        (STATE, (34,), width),
    ),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": (
        (VECTOR, (7,), same),
        (STATE, (7,), same),
    ),
    "fmb": FMB,
    "fmb_dataset": FMB,
    **{
        f"libero_{suite}_no_noops": (
            (VECTOR, (6,), signed),
            (STATE, (6, 7), lambda o: 0.04 * o[:, None] * [1, -1]),
        )
        for suite in ("spatial", "object", "goal", "10")
    },
}


def even_beat(rng, hertz):
    """Returns openings that change every few steps, as tests make them."""
    beat = int(rng.integers(3, 7))
    steps = int(rng.integers(10, 25))
    return ((np.arange(steps) // beat) % 2 == 0).astype(float)


def every_second(rng, hertz):
    """Opens and closes in as much time as a slow gripper takes."""
    beat = max(2, round(hertz))
    return ((np.arange(7 * beat) // beat) % 2 == 0).astype(float)


def pick_and_place(rng, hertz):
    """Returns openings: open, closed for some seconds, and open."""
    parts = [int(rng.uniform(1.5, 6) * hertz) + 2 for _ in range(3)]
    return np.repeat([1.0, 0.0, 1.0], parts)


def after_steps(opening, hertz):
    return np.concatenate([opening[:1], opening[:-1]])


def after_a_while(opening, hertz):
    """Follows 0.8 s later, over half a second, and not quite to the end."""
    delay, ramp = max(1, round(0.55 * hertz)), max(1, round(0.5 * hertz))
    late = np.concatenate([np.full(delay + ramp - 1, opening[0]), opening])[
        : len(opening) + ramp - 1
    ]
    return 0.15 + 0.8 * np.convolve(late, np.ones(ramp) / ramp, "valid")[: len(opening)]


def at_once(opening, hertz):
    return opening


MOVEMENTS = (
    (even_beat, at_once),
    (even_beat, after_steps),
    (every_second, at_once),
    (every_second, after_steps),
    (pick_and_place, at_once),
    (pick_and_place, after_steps),
    (pick_and_place, after_a_while),
)


def raw_columns(row, command, state):
    """Returns the row's fields for an episode with these openings, float[T] each.

    Other numbers are 0, and quaternions are the identity.
    """
    steps, columns = len(command), {}
    for path, field in row.fields.items():
        leading = (steps,) if path.startswith("steps/") else ()
        if field.dtype == "string":
            filler = zlib.compress(np.array([0, 0, 0, 0, 0, 0, 1], "<f4").tobytes())
            one = filler if POSE in path else b"/success/"
            columns[path] = np.full(leading, None, object)
            columns[path][...] = one
        else:
            columns[path] = np.zeros((*leading, *field.shape), field.dtype)
            for start in field.quaternions:
                columns[path][..., start + 3] = 1
    for place, values in zip(CONVENTIONS[row.name], (command, state), strict=True):
        if place is not None:
            path, at, recorded = place
            if at is None:
                columns[path] = recorded(values)
            elif at == ():
                columns[path][...] = recorded(values)
            else:
                made = recorded(values)
                columns[path][..., list(at)] = made if made.ndim == 2 else made[:, None]
    if "steps/observation/episode_success" in columns:
        columns["steps/observation/episode_success"][...] = 1
    if "success" in columns:
        columns["success"] = np.array(True)
    if f"{VECTOR}_dict/joint_velocity" in columns:  # DROID's idle steps are not drawn
        columns[f"{VECTOR}_dict/joint_velocity"][:] = 0.1 * (np.arange(steps) % 2)[:, None]
    if row.name.startswith("bridge"):
        columns[STATE][:, 0] = 0.01 * np.arange(steps)
    return columns


def made_up(row, opening, answer, *, command=lambda o: o, turned=lambda a: a, episodes=12):
    """Returns what `trends` reads of an index, for made-up episodes through the row's rule."""
    rng, hertz = np.random.default_rng(0), row.embodiment.control_hz
    results = []
    for _ in range(episodes):
        openings = opening(rng, hertz)
        columns = raw_columns(row, command(openings), answer(openings, hertz))
        result = row.standardise(columns)
        names = dict(enumerate(dim.name for dim in row.embodiment.actions))
        action = to_openings(
            np.float32(result.action),
            row.recorded_grippers,
            read=result.stop,
            where=row.name,
            names=names,
        )
        results.append(result._replace(action=action))
    lengths = np.array([len(result.state) for result in results])
    start = np.cumsum(lengths) - lengths
    kept = np.concatenate([result.keep for result in results])
    return SimpleNamespace(
        embodiment=row.embodiment,
        state=np.concatenate([result.state for result in results]),
        action=turned(np.concatenate([result.action for result in results])),
        episodes={
            "start": start,
            "length": lengths,
            "stop": np.array([result.stop for result in results]),
            "split": np.zeros(episodes, int),
            "kept": np.add.reduceat(kept, start),
        },
        frames=lambda split: np.flatnonzero(kept) if split == "train" else np.empty(0, np.int64),
    )


def other_way(row):
    """Turns all gripper actions round, as a mistake in a rule does."""
    places = [i for i, dim in enumerate(row.embodiment.actions) if dim.larger_is]

    def turned(action):
        action = action.copy()
        action[:, places] = 1 - action[:, places]
        return action

    return turned


def verdicts(index):
    return {
        trend.finding.level if "INVERTED" not in trend.finding.text else "INVERTED"
        for trend in trends(index)
    }


@pytest.fixture(scope="module")
def answers():
    """Returns (row, movement, swapped) -> finding, for all rows that record a gripper's state."""
    found = {}
    for name in CONVENTIONS:
        row = ROWS[name]
        for opening, answer in MOVEMENTS:
            found[name, opening, answer, False] = verdicts(made_up(row, opening, answer))
            found[name, opening, answer, True] = verdicts(
                made_up(row, opening, answer, turned=other_way(row))
            )
    return found


def test_every_row_with_a_gripper_in_its_state_is_tried():
    recorded = {
        name
        for name, row in ROWS.items()
        if any(gripper.action is not None and gripper.states for gripper in grippers(row))
        and not name.startswith("metaworld")  # whose action is a force, of which all sizes occur
    }
    assert set(CONVENTIONS) == recorded and len(recorded) == 30


def test_no_false_alarm_and_every_swap_found(answers):
    counts = {False: {}, True: {}}
    for (name, opening, answer, swapped), found in answers.items():
        verdict = found.pop() if len(found) == 1 else "several"
        counts[swapped].setdefault(verdict, []).append((name, opening.__name__, answer.__name__))
    for swapped, verdict in ((False, "fine"), (True, "INVERTED")):
        cannot_tell = counts[swapped].pop("look", [])
        print(
            f"swapped {swapped}: {len(counts[swapped].get(verdict, []))} {verdict}, {len(cannot_tell)} cannot tell"
        )
        print(cannot_tell)
        assert set(counts[swapped]) == {verdict}, counts[swapped]
        assert len(cannot_tell) <= 0.2 * len(answers) / 2


@pytest.mark.parametrize("name", [n for n, (command, _) in CONVENTIONS.items() if command])
def test_commands_that_the_files_hold_the_wrong_way_are_found(name):
    row = ROWS[name]
    wrong = verdicts(made_up(row, pick_and_place, after_steps, command=lambda o: 1 - o))
    declared = all(declared_way(dim) for dim in row.embodiment.state if is_gripper(dim))
    assert wrong == ({"INVERTED"} if declared else {"look"})


def test_a_state_that_does_not_follow_cannot_be_told():
    rng = np.random.default_rng(0)
    noise = [(rng.integers(0, 2, 50).astype(float), rng.normal(size=50)) for _ in range(20)]
    assert follow(noise, 10.0).way == 0
    assert follow([(np.ones(20), np.zeros(20))], 10.0).way == 0
    assert follow([], 10.0).way == 0


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real Bridge V2 episodes in {REAL}")
def test_real_bridge_episodes(tmp_path):
    index = build_or_open(ROWS["bridge_dataset"], REAL.parents[1], tmp_path, progress=False)
    (line,) = gripper_lines(index)
    assert line.level == "fine" and "as declared" in line.text
    index.action = 1 - np.array(index.action)
    assert "INVERTED" in gripper_lines(index)[0].text
