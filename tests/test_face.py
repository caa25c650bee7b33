"""The public face is as design and docs show it: what `import pi0_jax` promises."""

import dataclasses
import json
import pydoc
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import pi0_jax
from pi0_jax.data.datasets import find_row
from pi0_jax.models.pi0 import VARIANTS
from pi0_jax.train.config import to_json
from tests import policies, training
from tests.checkpoints_of_others import random_parameters, write_openpi
from tests.own_process import loaded_by, python
from tests.training import ROOT, TINY, saved_steps

data_dir = training.data_dir

# OpenGL, and TensorFlow at once: they never share a process. And vla-eval has its own environment.
APART = (
    "pi0_jax.sim.scene",
    "pi0_jax.sim.reach",
    "pi0_jax.sim.expert",
    "pi0_jax.serve.vla_eval",
)


def test_importing_it_is_cheap():
    assert loaded_by("import pi0_jax", "jax", "numpy", "tensorflow", "mujoco", "torch") == []


def test_every_name_is_what_it_was_after_all_submodules_are_imported():
    modules = sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in (ROOT / "pi0_jax").rglob("*.py")
    )
    program = f"""
import importlib, sys, types, pi0_jax
first = {{name: getattr(pi0_jax, name) for name in pi0_jax.__all__}}
for name in {[name for name in modules if name not in APART]}:
    importlib.import_module(name)
print([name for name in first if getattr(pi0_jax, name) is not first[name]])
print([name for name in first if getattr(pi0_jax, name) is not first[name]])
hidden = [name for name, module in sys.modules.items() if name.startswith("pi0_jax.")
          and name.count(".") == 1 and vars(pi0_jax)[name[8:]] is not module]
print(hidden)
print([callable(call) for call in (pi0_jax.Policy.open, pi0_jax.train.run, pi0_jax.convert.run,
       pi0_jax.models.Pi0, pi0_jax.models.sample, pi0_jax.flow.integrate)])
"""
    said = python("-c", program).stdout
    assert said.splitlines() == ["[]", "[]", "[]", str([True] * 6)]


def test_the_version_stands_in_one_place():
    assert pi0_jax.__version__ == version("pi0_jax")
    assert f'"{pi0_jax.__version__}"' not in (ROOT / "setup.py").read_text()


def test_help_begins_as_a_first_page():
    page = pydoc.plain(pydoc.render_doc(pi0_jax))
    first = page[: page.index("PACKAGE CONTENTS")]
    assert all(name in first for name in (*pi0_jax.__all__[:1], "Policy.open", "train.run"))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'Polcy'"):
        pi0_jax.Polcy  # noqa: B018
    assert set(pi0_jax.__all__) <= set(dir(pi0_jax))


def test_every_public_name_has_a_page():
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    modules = {
        "convert": pi0_jax.convert,
        "flow": pi0_jax.flow,
        "models": pi0_jax.models,
        "train": pi0_jax.train,
    }
    public = [f"pi0_jax.{name}" for name in pi0_jax.__all__ if name not in modules]
    public += [
        f"pi0_jax.{name}.{member}"
        for name in ("convert", "models", "train")
        for member in modules[name].__all__
    ]
    assert [name for name in public if not re.search(rf"{re.escape(name)}\b", pages)] == []
    assert re.search(r"automodule:: pi0_jax\.flow\n +:members:", pages)


# ---- a released π0, opened as it is

SIZES = dataclasses.replace(VARIANTS["pico"], action_dim=32)
NAMED = dict(robot="droid", embodiment="droid", tokenizer="small", sizes=dict(horizon=4))


@pytest.fixture(scope="module")
def openpi(tmp_path_factory) -> Path:
    weights = {path: 0.1 * array for path, array in random_parameters(SIZES).items()}
    return write_openpi(tmp_path_factory.mktemp("openpi"), weights)


def test_a_released_policy_is_the_converted_one(openpi, tmp_path):
    with pytest.warns(UserWarning, match="max_tokens shows in no file"):
        direct = pi0_jax.Policy.open(openpi, dtype="float32", **NAMED)
    options = pi0_jax.convert.Options(**NAMED)
    pi0_jax.convert.run(openpi, tmp_path / "ours", to="ours", options=options)
    converted = pi0_jax.Policy.open(tmp_path / "ours", dtype="float32")
    assert direct.config == converted.config and direct.robots.keys() == {"droid"}
    observation = policies.observation("droid")
    np.testing.assert_array_equal(direct(observation)["actions"], converted(observation)["actions"])


def test_a_record_of_ones_own_may_be_given_itself(openpi):
    record = dataclasses.replace(policies.EMBODIMENTS["droid"], name="mine")
    with pytest.warns(UserWarning, match="max_tokens"):
        policy = pi0_jax.Policy.open(openpi, **{**NAMED, "embodiment": record})
    assert policy.robot(None).embodiment == record


def test_lerobots_directory_needs_no_name_where_ours_wrote_it(openpi, tmp_path):
    options = pi0_jax.convert.Options(**NAMED)
    pi0_jax.convert.run(openpi, tmp_path / "lerobot", to="lerobot", options=options)
    with pytest.warns(UserWarning, match="not part of π0"):
        policy = pi0_jax.Policy.open(tmp_path / "lerobot", dtype="float32")
    assert policy.config.horizon == 4 and policy.robots.keys() == {"droid"}


@pytest.mark.parametrize(
    ("lacking", "message"), [("embodiment", "embodiment"), ("tokenizer", "tokenizer")]
)
def test_what_a_released_policy_lacks_is_named(openpi, lacking, message):
    named = {name: value for name, value in NAMED.items() if name != lacking}
    with pytest.raises(pi0_jax.InputError, match=message):
        pi0_jax.Policy.open(openpi, **named)


def test_a_released_policy_computes_in_no_other_dtype(openpi):
    with pytest.raises(pi0_jax.InputError, match="expected float32 or bfloat16, found 'float16'"):
        pi0_jax.Policy.open(openpi, dtype="float16", **NAMED)


def test_a_checkpoint_of_ours_takes_no_record(tmp_path):
    policies.write_checkpoint(tmp_path / "run", ["reach_arm3"])
    with pytest.raises(pi0_jax.InputError, match="a checkpoint of ours"):
        pi0_jax.Policy.open(tmp_path / "run", tokenizer="small")


def test_a_damaged_step_of_ours_is_not_taken_for_a_released_policy(tmp_path):
    policies.write_checkpoint(tmp_path / "run", ["reach_arm3"])
    step = tmp_path / "run" / "checkpoints" / "1"
    shutil.rmtree(step / "description")
    for opened in (pi0_jax.Policy.open, pi0_jax.convert.open):
        with pytest.raises(pi0_jax.InputError, match="1/description/.*: expected .*found nothing"):
            opened(step)


def test_an_unknown_format_to_write_is_named(openpi, tmp_path):
    with pytest.raises(pi0_jax.InputError, match="openpi_jax.*found 'lerbot'"):
        pi0_jax.convert.run(openpi, tmp_path / "out", to="lerbot")


# ---- training, with typed records


def own_dataset(name: str = "mine") -> pi0_jax.Dataset:
    """Writes the arm's data under a name, a robot and a record of one's own."""
    vector = pi0_jax.RawField(shape=(3,), dtype="float32")
    return dataclasses.replace(
        find_row("reach_arm3"),
        name=name,
        embodiment=pi0_jax.Embodiment(
            name="mine",
            robot="an arm",
            cameras={"base_0_rgb": "base", "left_wrist_0_rgb": "wrist"},
            state=tuple(pi0_jax.StateDim(f"joint_{i}", "rad") for i in range(3)),
            actions=tuple(
                pi0_jax.ActionDim(f"joint_{i}", "rad", kind="absolute", delta=True)
                for i in range(3)
            ),
            control_hz=10.0,
            execute_steps=5,
        ),
        fields={"steps/observation/state": vector, "steps/action": vector},
        language=pi0_jax.Language(("steps/language_instruction",)),
    )


def fields(data_dir: Path, dataset: pi0_jax.Dataset) -> dict:
    tiny = {
        **TINY,
        "steps": 2,
        "warmup_steps": 1,
        "save_every": 2,
        "validate_every": 2,
        "sampling_steps": 2,
    }
    page = pi0_jax.train.load("reach").to_dict()
    own = dict(own_datasets={"mine": dataset}, datasets=("mine",), statistics_only=(), weights=())
    return {**page, **tiny, **own, "data_dir": str(data_dir)}


def test_a_typed_dataset_is_its_plain_data(data_dir):
    typed, named = own_dataset(), own_dataset("other")
    plain = find_row("mine", {"mine": typed.to_mapping()})
    assert plain == typed
    gripper = pi0_jax.ActionDim("gripper", "1", "absolute", one_means="closed")
    robot = dataclasses.replace(
        typed.embodiment, actions=(*typed.embodiment.actions[:2], gripper), name="grips"
    )
    closing = {"gripper": pi0_jax.RecordedGripper(open=-1.0, closed=1.0, overshoot=0.1)}
    grips = dataclasses.replace(typed, embodiment=robot, grippers=closing)
    run = pi0_jax.train.RunConfig(data_dir="d", datasets=("mine",), own_datasets={"mine": grips})
    kept = json.loads(json.dumps(to_json(run)["own_datasets"]))  # as a checkpoint has it
    assert find_row("mine", kept) == grips
    with pytest.raises(pi0_jax.InputError, match="found 'other'"):
        find_row("mine", {"mine": named})


@pytest.mark.slow
def test_a_typed_config_trains_resumes_and_acts(data_dir, tmp_path):
    config = pi0_jax.train.RunConfig(**fields(data_dir, own_dataset()))
    pi0_jax.train.run(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [2]
    pi0_jax.train.run(config, tmp_path / "run")  # nothing to do, and no refusal
    policy = pi0_jax.Policy.open(tmp_path / "run")
    observation = policies.observation("reach_arm3", size=(64, 64))
    assert policy(observation)["actions"].shape == (policy.config.horizon, 3)


def test_a_typed_config_is_checked_like_any_other(data_dir, tmp_path):
    config = pi0_jax.train.RunConfig(**{**fields(data_dir, own_dataset()), "warmup_steps": 9})
    with pytest.raises(pi0_jax.InputError, match="warmup_steps is 9"):
        pi0_jax.train.run(config, tmp_path / "run")
    with pytest.raises(pi0_jax.InputError, match="expected a file or a recipe"):
        pi0_jax.train.run("rech", tmp_path / "run")
