"""The right checkpoints stay in the right place, and their reader refuses damaged ones."""

import json
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pi0_jax import checkpoints
from pi0_jax.checkpoints import Description, RunCheckpoints
from pi0_jax.errors import InputError
from pi0_jax.train import config
from tests import policies


class State(NamedTuple):
    """Is the state of a model with two parameters."""

    step: jnp.ndarray
    params: dict
    ema: dict
    opt_state: dict
    skipped: jnp.ndarray
    factors: dict


def state_at(step: int) -> State:
    weights = {"w": jnp.full(2, step, jnp.float32)}
    return State(
        jnp.int32(step), weights, weights, {"momentum": jnp.float32(0.5)}, jnp.int32(1), {}
    )


def description_at(step: int) -> Description:
    return policies.description(policies.run_config(), {}, step, reach_arm3="0123456789abcdef")


def save(manager: RunCheckpoints, losses: dict[int, float | None]) -> None:
    for step, loss in losses.items():
        manager.save(
            state_at(step), description_at(step), {} if loss is None else {"validation/loss": loss}
        )


def steps(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_the_latest_the_regular_and_the_best_stay(tmp_path):
    """Across two lives of the run. Step 5 was saved and not validated, as on SIGTERM."""
    kept = dict(keep=2, keep_every=4, keep_best=2, metric="validation/loss")
    first = RunCheckpoints(tmp_path, **kept)
    save(first, {1: 0.5, 2: 0.3, 3: 0.9, 4: 0.8, 5: None})
    first.close()
    assert steps(tmp_path) == [1, 2, 4, 5]
    second = RunCheckpoints(tmp_path, **kept)
    save(second, {6: 0.4, 7: 0.7, 8: 0.6, 9: 0.7, 10: 0.7})
    second.close()
    assert steps(tmp_path) == [2, 4, 6, 8, 9, 10]
    assert checkpoints.latest_step(tmp_path) == 10 and checkpoints.find(tmp_path).name == "10"
    metrics = json.loads((tmp_path / "checkpoints" / "6" / "metrics" / "metrics").read_text())
    assert metrics == {"validation/loss": 0.4}


def test_only_the_latest_by_default(tmp_path):
    manager = RunCheckpoints(tmp_path, keep=1)
    save(manager, {1: 0.1, 2: 0.2})
    save(manager, {2: 0.3})  # is there already
    manager.wait()
    assert steps(tmp_path) == [2]
    restored = manager.restore(2, state_at(0))
    manager.close()
    assert (
        int(restored.step) == 2
        and int(restored.skipped) == 1
        and float(restored.opt_state["momentum"]) == 0.5
    )
    np.testing.assert_array_equal(restored.ema["w"], [2, 2])
    assert checkpoints.read_description(tmp_path / "checkpoints" / "2").digests == {
        "reach_arm3": "0123456789abcdef"
    }


@pytest.mark.parametrize(
    ("field", "item"),
    [("params", "params"), ("ema", "ema"), ("opt_state", "optimizer"), ("factors", "lora")],
)
def test_leaves_that_are_missing_or_extra_are_named(tmp_path, field, item):
    ours, theirs = ({"w": jnp.zeros(2), name: jnp.zeros(3)} for name in ("new", "old"))
    manager = RunCheckpoints(tmp_path, keep=1)
    manager.save(state_at(1)._replace(**{field: theirs}), description_at(1), {})
    manager.wait()
    with pytest.raises(InputError, match=rf"/1/{item} is of .*new: expected \(3,\), .*old: "):
        manager.restore(1, state_at(0)._replace(**{field: ours}))
    manager.close()


def test_arrays_that_are_not_there_are_named(tmp_path):
    manager = RunCheckpoints(tmp_path, keep=1)
    save(manager, {1: None})
    manager.wait()
    with pytest.raises(InputError, match=r"checkpoints/1: expected lora, found .*ema, .*params"):
        manager.restore(1, state_at(0)._replace(factors={"w": jnp.zeros(2)}))
    manager.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "run/1: expected checkpoint format 3, or 2, found 1$"),
        ({"format": 2}, "run/1: expected .* of format 2, found nothing called 'config'$"),
        ({"format": 2, "config": 3}, "run/1: expected .* of format 2, found 'int' object"),
        ({"format": 4}, "run/1: expected checkpoint format 3, or 2, found 4; .* newer version"),
        ({"colour": "red"}, "run/1: checkpoint format 3: colour is unknown; .* newer version"),
        (
            {"policy": {"variant": "pico", "heads": 2}},
            r"run/1: checkpoint format 3: policy\.heads is unknown; .* newer version",
        ),
        (
            {"policy": {"dtype": "float8", "horizon": 0}},
            r"run/1: checkpoint format 3: policy\.horizon is 0; .*\n.*policy\.dtype is 'float8'; expected one of",
        ),
    ],
)
def test_what_a_newer_version_wrote_or_nobody_is_refused_by_name(changes, message):
    record = description_at(1).to_json() | changes
    with pytest.raises(InputError, match=f"^{message}"):
        Description.from_json(record, "run/1")


def test_a_description_survives_json():
    description = description_at(1)
    record = json.loads(json.dumps(description.to_json()))
    again = Description.from_json(record, "run/1")
    assert (again.policy, again.digests) == (description.policy, description.digests)
    run = config.from_halves(again.policy, again.training, "run/1")
    assert run == policies.run_config()


def test_a_policy_does_not_read_how_its_model_was_trained():
    record = description_at(1).to_json()
    del record["training"]["skip_nonfinite"]
    record["training"]["option_of_a_newer_version"] = 1
    again = Description.from_json(record, "run/1")
    with pytest.raises(InputError, match=r"^run/1\.option_of_a_newer_version is unknown; .* newer"):
        config.from_halves(again.policy, again.training, "run/1")
    del again.training["option_of_a_newer_version"]
    assert config.from_halves(again.policy, again.training, "run/1") == policies.run_config()


def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoints.locate("run") == epath.Path(tmp_path / "run")
    assert (
        str(checkpoints.locate("gs://bucket/run") / "checkpoints") == "gs://bucket/run/checkpoints"
    )
    with pytest.raises(InputError, match="^https://server/run: expected a local folder or .*gs://"):
        checkpoints.locate("https://server/run")
    assert checkpoints.latest_step(tmp_path / "nothing") is None
