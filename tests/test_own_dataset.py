"""A user's own robot and dataset work; test_readme.py runs the README's example of one."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from pi0_jax.data.datasets import find_row
from pi0_jax.data.index import Index, build_or_open, open_index
from pi0_jax.data.rows import Standardised, as_recorded, row_from_mapping
from pi0_jax.data.rule_source import source_hash
from pi0_jax.data.write import ArrayFeature, ImageFeature, TextFeature, write_rlds
from pi0_jax.errors import InputError
from pi0_jax.train import config
from tests import my_robot
from tests.own_process import python
from tests.tiny_data import solid

ROOT = Path(__file__).parent.parent
STEPS = {
    "observation": {
        "image": ImageFeature(16, 24),
        "wrist_image": ImageFeature(16, 24),
        "state": ArrayFeature((7,), np.float32),
    },
    "action": ArrayFeature((7,), np.float32),
    "language_instruction": TextFeature(),
}


@pytest.fixture(scope="module")
def record() -> dict:
    return my_robot.MY_ROBOT


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    def step(t: int) -> dict:
        images = {"image": solid((200, 0, 0)), "wrist_image": solid((0, 0, 200))}
        # closes at step 11
        action = np.array([*[0.01 * t] * 6, 1.0 if t >= 11 else 0.0], np.float32)
        return {
            "observation": {**images, "state": np.zeros(7, np.float32)},
            "action": action,
            "language_instruction": "open the drawer",
        }

    folder = tmp_path_factory.mktemp("data")
    write_rlds(
        folder,
        "my_robot",
        "1.0.0",
        steps=STEPS,
        metadata={},
        splits={"train": [{"steps": [step(t) for t in range(13)]}]},
    )
    return folder


@pytest.fixture(scope="module")
def index(record, data_dir) -> Index:
    return build_or_open(find_row("my_robot", {"my_robot": record}), data_dir, progress=False)


def test_the_rule_decides_what_is_drawn_and_the_record_what_the_robot_gets(index):
    assert index.frames("train").tolist() == [10, 11, 12]  # not the first second
    assert index.action[:, 6].tolist() == [1] * 11 + [0, 0]  # 1 is open
    chunk, valid = index.chunk(10, horizon=4)
    np.testing.assert_allclose(chunk[:, 0], [0.10, 0.11, 0.12, 0.12], rtol=1e-6)
    assert chunk[:, 6].tolist() == [0, 1, 1, 1]  # the robot's own: 1 is closed
    assert valid.tolist() == [True, True, True, False]


def test_without_a_rule_the_first_field_is_the_state_after_a_config_too(record, data_dir, tmp_path):
    """A ConfigDict sorts the keys of mappings."""
    plain = {field: value for field, value in record.items() if field != "standardise"}
    own = ConfigDict({"own_datasets": {"my_robot": plain}}).to_dict()["own_datasets"]
    index = build_or_open(find_row("my_robot", own), data_dir, tmp_path, progress=False)
    assert not index.state.any() and index.action[12, 0] == np.float32(0.12)


def test_silent_frames_are_kept_where_the_config_says_so(record):
    own = {"my_robot": record}
    assert not find_row("my_robot", own).keep_empty_language
    assert find_row("my_robot", own, keep_empty_language=("my_robot",)).keep_empty_language


def test_colours_come_in_the_order_that_the_row_says(index):
    images = index.observation(10)["images"]
    assert np.abs(images["front"].astype(int) - (200, 0, 0)).max() < 4
    assert np.abs(images["wrist"].astype(int) - (200, 0, 0)).max() < 4  # recorded as BGR


def test_a_checkpoint_keeps_the_record_as_plain_data_and_of_the_rule_its_hash(
    record, data_dir, index
):
    values = config_values(
        own_datasets={"my_robot": record}, datasets=("my_robot",), weights=(1.0,)
    )
    stored = config.to_json(config.from_mapping(values))["own_datasets"]["my_robot"]
    assert (
        stored["standardise"].keys() == {"rule", "sha256"}
        and stored["standardise"]["rule"] == "without_homing"
    )
    row = row_from_mapping("my_robot", stored)
    # enough to open the index that the rule made
    assert open_index(row, data_dir).path == index.path
    with pytest.raises(InputError, match="rule without_homing is known by its hash alone"):
        build_or_open(row, data_dir, data_dir / "elsewhere", progress=False)


def test_the_command_takes_a_config(data_dir, tmp_path):
    """It indexes what a run of that config reads, by its own rule, and cards say the shares."""
    row = Path(my_robot.__file__).read_text()
    own = 'c.own_datasets = {"my_robot": MY_ROBOT}'
    chosen = f'    {own}; c.datasets = c.statistics_only = ("my_robot",); c.weights = (2.0,)\n    return c'
    config_file = tmp_path / "mine.py"
    config_file.write_text(
        f"{row}\n\n{(ROOT / 'configs' / 'reach.py').read_text().replace('    return c', chosen)}"
    )
    flags = [
        f"--config={config_file}",
        f"--config.data_dir={data_dir}",
        f"--config.index_dir={tmp_path / 'index'}",
    ]
    done = python("-m", "launch.index", *flags, f"--report={tmp_path / 'cards'}")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("my_robot: 1 episodes, 13 steps, kept frames 3 train, 0 val")
    assert "100.00%" in (tmp_path / "cards" / "my_robot" / "index.html").read_text()


def test_a_changed_rule_is_another_run(record):
    def everything(columns):
        return record["standardise"](columns)._replace(keep=np.ones(13, bool))

    before, after = (
        config.from_mapping(
            config_values(own_datasets={"my_robot": row}, datasets=("my_robot",), weights=(1.0,))
        )
        for row in (record, {**record, "standardise": everything})
    )
    (difference,) = config.differing_fields(after, before)
    assert difference.startswith("own_datasets: ")


RULES = """
import numpy as np

GAINS = [1.0, 2.0]
TABLE = {"gripper": np.zeros(2)}

def with_globals(columns):
    return GAINS[0] * TABLE["gripper"]

def with_default(columns, gain=GAINS[0]):
    return gain

def scaled(gain):
    def rule(columns):
        return gain * columns["steps/action"]
    return rule

RULES = [with_globals, with_default, scaled(GAINS[0])]
"""


@pytest.mark.parametrize("rule", [0, 1, 2])
@pytest.mark.parametrize(
    ("old", "new"), [("[1.0, 2.0]", "[1.5, 2.0]"), ("np.zeros(2)", "np.array([0, 0.5])")]
)
def test_what_a_rule_uses_is_part_of_its_hash(tmp_path, rule, old, new):
    """This is so of lists, dicts and arrays of its file, of defaults and of bound values."""

    def written(folder: str, text: str) -> str:
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "config.py"
        path.write_text(text)
        names: dict = {}
        exec(compile(text, str(path), "exec"), names)
        return source_hash(names["RULES"][rule], "row")

    before = written("before", RULES)
    assert written("same", RULES) == before
    assert (written("changed", RULES.replace(old, new)) != before) == (
        rule == 0 or "zeros" not in old
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"camera": {}},
            "dataset row my_robot: field 'camera' is unknown; expected some of cameras, embodiment, fields",
        ),
        ({"embodiment": "my_arm"}, "embodiment 'my_arm' is unknown; expected one of "),
        (
            {"cameras": {"front": {"path": "steps/observation/image"}}},
            r"expected cameras \['front', 'wrist'\] as embodiment my_robot declares",
        ),
        ({"language": {"path": "steps/text"}}, "dataset row my_robot: .*path"),
        (
            {"language": {"paths": "steps/text"}},
            "dataset row my_robot: expected several values, found the text 'steps/text'",
        ),
        (
            {"versions": "1.0.0"},
            "dataset row my_robot: expected several values, found the text '1.0.0'",
        ),
        ({"versions": ()}, "dataset row my_robot: expected at least one version"),
        (
            {"versions": (1.0,)},
            "dataset row my_robot: tfds_name and versions: expected text, found 1.0$",
        ),
        (
            {"keep_empty_language": "no"},
            "dataset row my_robot: keep_empty_language: expected True or False, found 'no'$",
        ),
        (
            {"held_out": "0.1"},
            r"dataset row my_robot: held_out: expected a share in \[0, 1\), found '0.1'$",
        ),
        (
            {"language": {"paths": ("steps/text",), "encoding": "latin-1"}},
            "language: expected encoding utf-8 or code points, found 'latin-1'$",
        ),
        (
            {
                "standardise": as_recorded,
                "fields": [{"path": "gripper", "shape": (), "dtype": "int64"}],
            },
            "expected fields of the steps, found gripper$",
        ),
        (
            {"fields": {"steps/action": {"shape": (7,), "dtype": "float32"}}},
            "fields: expected a sequence of records, each with its path",
        ),
    ],
)
def test_mistakes_are_named(record, change, message):
    with pytest.raises(InputError, match=message):
        row_from_mapping("my_robot", {**record, **change})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (lambda columns: columns["steps/action"], "expected a Standardised, found ndarray$"),
        (
            lambda columns: Standardised(*[np.zeros((13, 7))] * 2, np.arange(13), 13),
            r"expected keep as bool\[13\], found int64\[13\]$",
        ),
        (
            lambda columns: Standardised(*[np.zeros((13, 7))] * 2, np.arange(13) > 10, stop=12),
            r"expected kept steps below 12 of 13, found \[11, 12\]$",
        ),
        (
            lambda columns: Standardised([[0] * 7] * 13, np.zeros((13, 7)), np.ones(13, bool), 13),
            "state: expected an array of numbers, found list$",
        ),
        (
            lambda columns: Standardised(*[np.zeros((13, 7))] * 2, np.ones(13, bool), 13.0),
            "stop: expected a whole number, found 13.0$",
        ),
        (
            lambda columns: Standardised(
                *[np.zeros((13, 7))] * 2, np.ones(13, bool), 13, success="failed"
            ),
            "success: expected True, False or None, found 'failed'$",
        ),
    ],
)
def test_what_a_rule_gives_is_checked(record, data_dir, tmp_path, rule, expected):
    where = r"split train episode 0 \(my_robot-train.* record 0\): the rule of row my_robot: "
    with pytest.raises(InputError, match=where + expected):
        build_or_open(
            row_from_mapping("my_robot", {**record, "standardise": rule}),
            data_dir,
            tmp_path,
            progress=False,
        )


def test_what_a_rule_raises_says_where(record, data_dir, tmp_path):
    def rule(columns):
        return columns["steps/stat"]

    row = row_from_mapping("my_robot", {**record, "standardise": rule})
    with pytest.raises(KeyError, match="steps/stat") as raised:
        build_or_open(row, data_dir, tmp_path, progress=False)
    (note,) = raised.value.__notes__
    assert note.startswith(
        "dataset my_robot: split train episode 0 (my_robot-train"
    ) and note.endswith("raised by the rule of row my_robot")


def test_missing_parts_are_named():
    with pytest.raises(InputError, match="expected versions, .*language, embodiment, .* missing"):
        row_from_mapping("mine", {"versions": ("1.0.0",), "fields": [], "language": {"paths": ()}})


def test_a_name_that_the_package_has_is_refused(record):
    with pytest.raises(InputError, match="reach_arm3: the config's .* and the package another"):
        find_row("reach_arm3", {"reach_arm3": record})


def config_values(**changes) -> dict:
    names: dict = {}
    exec((ROOT / "configs" / "reach.py").read_text(), names)
    return {**names["get_config"]().to_dict(), **changes}
