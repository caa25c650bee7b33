"""A checkpoint of every format that ever was opens, serves, converts and resumes.

They are in golden/format_<number>, with their data.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from pi0_jax import checkpoints, convert
from pi0_jax.errors import InputError
from pi0_jax.policy import Policy
from pi0_jax.serve.client import Client
from pi0_jax.train import config
from pi0_jax.train.loop import train
from tests.numpy_server import serving
from tests.tiny_data import write_reach
from tests.training import losses
from tests.write_golden_checkpoint import OBSERVATION, SAVED, STEPS, act, ema_norm

GOLDEN = Path(__file__).parent / "golden"
FORMATS = (2, 3)
# On another machine than the one that wrote them.
ROUNDING = dict(rtol=1e-4, atol=1e-4)

every_format = pytest.mark.parametrize("number", FORMATS)


@pytest.fixture
def golden(number, tmp_path) -> Path:
    """Gives a copy that a test may write to."""
    return shutil.copytree(GOLDEN / f"format_{number}", tmp_path / "golden")


def expected(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "expected.npz") as file:
        return dict(file)


def stored_config(golden: Path, data_dir: Path) -> config.RunConfig:
    """Returns the run's own config, for data that lie elsewhere now."""
    step = checkpoints.find(golden / "run")
    description = checkpoints.read_description(step)
    run = config.from_halves(description.policy, description.training, str(step))
    return dataclasses.replace(run, data_dir=str(data_dir))


def description_file(golden: Path) -> Path:
    return golden / "run" / "checkpoints" / str(SAVED) / "description" / "metadata"


def test_the_newest_format_is_among_them():
    assert max(FORMATS) == checkpoints.FORMAT
    for number in FORMATS:
        record = json.loads(description_file(GOLDEN / f"format_{number}").read_text())
        assert record["format"] == number


@every_format
def test_it_opens(golden):
    np.testing.assert_allclose(act(golden / "run"), expected(golden)["actions"], **ROUNDING)


@every_format
def test_it_says_that_nothing_is_verified(golden, caplog):
    act(golden / "run")
    (said,) = [line for line in caplog.messages if "manifest" in line]
    assert said.startswith(f"{golden}/run/checkpoints/{SAVED} has no manifest")


@every_format
def test_it_serves(golden):
    with (
        serving(golden / "run", "--image_sizes=16x24") as address,
        Client(address) as client,
    ):
        actions = client.act([OBSERVATION], [5])
    np.testing.assert_allclose(actions, expected(golden)["actions"], **ROUNDING)


@every_format
def test_it_converts_and_comes_back(golden, tmp_path):
    """What it froze and adapted comes back merged."""
    convert.run(str(golden / "run"), str(tmp_path / "lerobot"), "lerobot")
    convert.run(str(tmp_path / "lerobot"), str(tmp_path / "again"), "ours")
    np.testing.assert_allclose(act(tmp_path / "again"), expected(golden)["actions"], **ROUNDING)
    before, after = (Policy.open(place) for place in (golden / "run", tmp_path / "again"))
    assert after.config == dataclasses.replace(before.config, frozen=(), lora=())
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert after.robots.keys() == before.robots.keys()


@every_format
def test_it_resumes(golden, capsys):
    wanted = expected(golden)
    train(stored_config(golden, golden / "data"), golden / "run")
    found = losses(golden / "run")
    assert list(found) == [*range(1, STEPS + 1)]
    np.testing.assert_allclose([*found.values()], wanted["losses"], **ROUNDING)
    assert ema_norm(golden / "run") == pytest.approx(wanted["ema_norm_8"], rel=1e-5)
    assert f"all {STEPS} steps are done" in capsys.readouterr().out
    # The workdir of a format that kept no config has it now.
    assert (golden / "run" / "config.json").exists()


@every_format
def test_it_does_not_resume_on_data_that_changed(golden, tmp_path):
    write_reach(tmp_path / "other", lengths=(7,) * 4)
    with pytest.raises(InputError, match=rf"^dataset reach_arm3: the digest .* step {SAVED}"):
        train(stored_config(golden, tmp_path / "other"), golden / "run")


@every_format
def test_a_training_option_that_it_lacks_is_filled_in(golden):
    """An option that came after the checkpoint was written looks like this."""
    place = description_file(golden)
    record = json.loads(place.read_text())
    training = record["config" if record["format"] == 2 else "training"]
    before = stored_config(golden, golden / "data")
    del training["skip_nonfinite"], training["keep_best_metric"]
    place.write_text(json.dumps(record))
    np.testing.assert_allclose(act(golden / "run"), expected(golden)["actions"], **ROUNDING)
    assert stored_config(golden, golden / "data") == before


@every_format
def test_what_a_newer_version_wrote_is_refused(golden):
    place = description_file(golden)
    record = json.loads(place.read_text())
    place.write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(InputError, match=rf"/{SAVED}: expected checkpoint format .*, found 99"):
        Policy.open(golden / "run")
    (record["config"] if record["format"] == 2 else record["training"])["volume"] = 11
    place.write_text(json.dumps(record))
    assert len(act(golden / "run"))  # a policy does not read how its model was trained
    with pytest.raises(InputError, match=rf"/{SAVED}\.volume is unknown; a newer version"):
        stored_config(golden, golden / "data")
