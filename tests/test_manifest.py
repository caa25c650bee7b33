"""Damage to a checkpoint is told by file, before anything is read."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pi0_jax import checkpoints, convert
from pi0_jax.errors import InputError, NotFiniteError
from pi0_jax.policy import Policy
from tests import mutate_checkpoints, policies

ROBOT = "reach_arm3"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return policies.write_checkpoint(tmp_path_factory.mktemp("run") / "run", [ROBOT])


@pytest.fixture
def run(written, tmp_path) -> Path:
    """Gives a copy to damage."""
    return shutil.copytree(written, tmp_path / "run")


def largest(folder: Path) -> Path:
    return max(
        (file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_random_mutations():
    """PI0_JAX_MUTATIONS=1000 pytest tests/test_manifest.py tries more."""
    count = int(os.environ.get("PI0_JAX_MUTATIONS", "30"))
    counts, wrong = mutate_checkpoints.run(count, seed=count)
    assert wrong == [] and sum(counts.values()) == count


def test_the_file_is_named(run):
    file = largest(run / "checkpoints" / "1" / "ema")
    flip(file)
    with pytest.raises(InputError, match=rf"^{file}: expected [\d,]+ bytes with CRC.*, found \w+$"):
        Policy.open(run)
    with pytest.raises(InputError, match=f"^{file}: expected"):
        convert.run(str(run), str(run.parent / "out"), "lerobot")
    size = file.stat().st_size
    os.truncate(file, 100)
    with pytest.raises(InputError, match=f"^{file}: expected {size:,} bytes, found 100$"):
        Policy.open(run)
    file.unlink()
    with pytest.raises(InputError, match=f"^{file}: expected {size:,} bytes, found nothing$"):
        Policy.open(run)


def test_a_policy_does_not_read_the_optimizer(run):
    flip(largest(run / "checkpoints" / "1" / "optimizer"))
    shutil.rmtree(run / "checkpoints" / "1" / "params")
    Policy.open(run)


def test_a_manifest_that_is_gone_is_missed(run):
    (run / "checkpoints" / "1" / "manifest").unlink()
    with pytest.raises(InputError, match="/1/manifest: expected the digests .*, found nothing$"):
        Policy.open(run)


def test_a_copy_that_is_not_finished_is_not_taken_for_whole(run):
    """It is copied file by file in any order, and every state before the last is refused."""
    step, copy = run / "checkpoints" / "1", run.parent / "copy"
    files = sorted(
        (file for part in ("ema", "description") for file in (step / part).rglob("*") if file.is_file()),
        key=lambda file: file.name,
    )  # fmt: skip
    for file in [step / "manifest", *files]:
        with pytest.raises(InputError):
            Policy.open(copy)
        target = copy / "checkpoints" / "1" / file.relative_to(step)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    Policy.open(copy)


def test_what_a_conversion_writes_has_a_manifest(run, tmp_path):
    convert.run(str(run), str(tmp_path / "lerobot"), "lerobot")
    convert.run(str(tmp_path / "lerobot"), str(tmp_path / "ours"), "ours")
    step = checkpoints.find(tmp_path / "ours")
    assert checkpoints.damage(step) is None
    flip(file := largest(Path(step) / "ema"))
    with pytest.raises(InputError, match=f"^{file}: expected"):
        Policy.open(tmp_path / "ours")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch, value):
    parameters = policies.parameters

    def broken(run, seed=0):
        params = parameters(run, seed)
        params["action_out_proj"]["bias"] = params["action_out_proj"]["bias"].at[1].set(value)
        return params

    monkeypatch.setattr(policies, "parameters", broken)
    policies.write_checkpoint(tmp_path, [ROBOT])
    with pytest.raises(InputError, match="action_out_proj/bias: expected .*finite.*, found 1 NaN"):
        Policy.open(tmp_path)


def test_actions_are_finite_or_refused():
    policy = policies.policy(ROBOT)
    policy.weights = {name: leaf * 1e30 for name, leaf in policy.weights.items()}
    with pytest.raises(NotFiniteError, match="^observation 0: action .*: expected finite numbers"):
        policy.act([policies.observation(ROBOT)])


# ---- what a folder is that is no checkpoint of ours


def test_other_folders_are_told_apart(run, tmp_path):
    step = run / "checkpoints" / "1"
    openpi = tmp_path / "openpi"
    (openpi / "params").mkdir(parents=True)
    (openpi / "params" / "_METADATA").write_text("{}")
    lerobot = tmp_path / "lerobot" / "pretrained_model"
    lerobot.mkdir(parents=True)
    (lerobot / "model.safetensors").write_text("")
    (lerobot / "config.json").write_text('{"input_features": {}}')
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "first")
    (tmp_path / "empty").mkdir()
    for folder, told in {
        openpi: "found a checkpoint of openpi; launch.convert makes one of ours of it$",
        openpi
        / "params": r"found a checkpoint of openpi \(the params of one step\); launch.convert",
        lerobot: "found a checkpoint of LeRobot; launch.convert",
        lerobot.parent: "found a checkpoint of LeRobot, in pretrained_model/; launch.convert",
        runs: f"found a folder of runs; name one of them, such as {runs / 'first'}$",
        step / "params": f"found a part of the step {step}; name that$",
        tmp_path / "empty": "found an empty folder$",
        tmp_path / "nothing": "found nothing there$",
        step / "manifest": "found a file; name the folder of the run or of one step$",
    }.items():
        with pytest.raises(InputError, match=f"^no checkpoint in {folder}: expected .*, {told}"):
            checkpoints.find(folder)
    for folder in (run, run / "checkpoints", step):
        assert Path(checkpoints.find(folder)) == step
