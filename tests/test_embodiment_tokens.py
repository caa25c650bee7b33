"""A model may have a learnt token for each robot: off, all is as published; on, robots differ."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0_jax import convert
from pi0_jax.errors import InputError
from pi0_jax.models import sample
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import VARIANTS, Pi0, parameter_shapes
from pi0_jax.policy import Policy
from pi0_jax.preprocess import check_robot
from tests import policies
from tests.test_pi0 import drawn_actions, drawn_observation, moved, velocity

OFF = VARIANTS["pico"]
ON = dataclasses.replace(OFF, embodiment_tokens=3)
LEAF = "embodiment_tokens/embedding"
TOKENS = "reach_arm3", "reach_arm5"


def initial(config):
    model = Pi0(config, ComputeOptions(dtype=jnp.float32))
    return model, model.init(jax.random.key(0), method=Pi0.declare)["params"]


def test_a_token_is_one_more_leaf_and_draws_no_other():
    (_, off), (_, on) = initial(OFF), initial(ON)
    assert flatten(off).keys() == flatten(parameter_shapes(OFF)).keys()
    assert flatten(on).keys() == flatten(parameter_shapes(ON)).keys()
    assert flatten(on).keys() - flatten(off).keys() == {LEAF}
    assert flatten(on)[LEAF].shape == (3, OFF.gemma.experts[0].width)
    jax.tree.map(
        np.testing.assert_array_equal, on | {"embodiment_tokens": 0}, off | {"embodiment_tokens": 0}
    )


def test_the_model_reads_the_robots_own_token():
    """It reads no other, behind any cameras; and sampling, which runs the prefix once, too."""
    model, params = initial(ON)
    params = moved(params)
    (x_t, t), seen = drawn_actions(ON), drawn_observation(ON, tokens=7)
    given = [seen._replace(embodiment=jnp.array(numbers)) for numbers in ([0, 1], [0, 2])]
    one, other = (velocity(model, params, observation, x_t, t) for observation in given)
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[1] - other[1]).max() > 1e-3
    noise = x_t[:, 0]
    actions = jax.jit(partial(sample, model=model, num_steps=1))(params, given[0], noise)
    full = velocity(model, params, given[0], noise[:, None], jnp.ones((len(noise), 1)))
    np.testing.assert_allclose(actions, noise - full[:, 0], atol=1e-5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return policies.write_checkpoint(
        tmp_path_factory.mktemp("tokens"), TOKENS[:1], embodiment_tokens=TOKENS
    )


def acted(policy: Policy) -> dict[str, np.ndarray]:
    """Returns what the checkpoint's robot does, and one that differs from it in its name alone."""
    record = policy.robots[TOKENS[0]]
    renamed = dataclasses.replace(record.embodiment, name=TOKENS[1])
    policy.robots[TOKENS[1]] = record._replace(embodiment=renamed)
    policy._limits = policy._unused_limits()
    seen = policies.observation(TOKENS[0])
    return {name: policy.act([seen], robot=name) for name in TOKENS}


def test_a_checkpoint_opens_with_its_tokens_and_a_conversion_keeps_them(workdir, tmp_path):
    found = acted(Policy.open(workdir))
    assert np.abs(found[TOKENS[0]] - found[TOKENS[1]]).max() > 1e-3
    convert.run(workdir, tmp_path / "copy", to="ours")
    for name, actions in acted(Policy.open(tmp_path / "copy")).items():
        np.testing.assert_array_equal(actions, found[name])
    without = acted(policies.policy(TOKENS[0]))
    np.testing.assert_array_equal(without[TOKENS[0]], without[TOKENS[1]])


@pytest.mark.parametrize("to", ["openpi_jax", "openpi_pytorch", "lerobot"])
def test_others_formats_have_no_room_for_tokens(workdir, tmp_path, to):
    with pytest.raises(InputError, match=f"embodiment_tokens.*{to} has no room.*found 2"):
        convert.run(workdir, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_a_robot_without_a_token_is_refused():
    policy = policies.policy(TOKENS[0], embodiment_tokens=TOKENS)
    record = policies.robot("droid")
    with pytest.raises(
        InputError, match="droid: expected a robot of config.embodiment_tokens, reach"
    ):
        check_robot(record, policy.layout(record)._replace(action_dim=32))


def test_a_token_can_be_all_that_is_trained():
    run = policies.run_config(embodiment_tokens=TOKENS, frozen=("^(?!embodiment_tokens)",))
    assert run.embodiment_tokens == TOKENS
