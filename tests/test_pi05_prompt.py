"""π0.5 reads the state in its prompt: the text, its length, and what does not fit."""

import json
import logging
import re

import numpy as np
import pytest

from pi0_jax import checkpoints, policy_config, preprocess
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import parameter_shapes
from pi0_jax.policy import Policy
from pi0_jax.policy.limits import Limits
from pi0_jax.preprocess.tokenizer import BOS_ID, state_bins
from pi0_jax.train import config, weights
from tests import policies, training
from tests.policies import TOKENIZER, observation
from tests.test_train import tiny_config

ROBOT = "droid"  # eight numbers in its state
PI05 = dict(variant="pi05_pico", max_tokens=128, normalization="quantile", state_in_prompt=True)
TASK = "pick up the_red block \n"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return policies.policy(ROBOT, num_steps=2, **PI05)


# ---- the text


def test_a_number_is_named_by_the_last_left_edge_that_is_not_above_it():
    """There are 256 equal bins from -1 to 1; below is -1, above is the last one."""
    left_edges = np.linspace(-1, 1, 257)[:-1]
    numbers = np.float32([-7, -1.001, -1, -0.9922, -1e-9, 0, 0.5, 0.9999, 1, 7])
    expected = [sum(left_edges <= number) - 1 for number in numbers.astype(np.float64)]
    assert state_bins(numbers).tolist() == expected == [-1, -1, 0, 0, 127, 128, 192, 255, 255, 255]


def test_the_prompt_names_task_and_state_and_asks_for_the_action():
    text = "Task: pick up the red block, State: -1 128 255;\nAction: "
    pieces = TOKENIZER.pieces(TASK, [-1, 128, 255])
    assert pieces[0] == BOS_ID and TOKENIZER._pieces.decode(pieces[1:]).strip() == text.strip()
    assert pieces[1:] == TOKENIZER._pieces.encode(text)


def test_the_host_tells_the_robots_own_numbers_normalised_and_not_padded(policy):
    """Bins are of quantiles: the first percentile is bin 0, and what lies below it is bin -1."""
    record = policy.robot(None)
    low, high = record.statistics.state.ranges.q01, record.statistics.state.ranges.q99
    state = np.where(np.arange(8) % 2, low, high + 1).astype(np.float32)
    state[0], state[1] = (low[0] + high[0]) / 2 + 1e-3, low[1] - 1
    seen = observation(ROBOT) | {"state": state}
    wanted = policy.layout(record)
    batch = preprocess.host([seen], [record], wanted, policy.tokenizer)
    bins = state_bins(preprocess.state_to_model(state, record, "quantile")).tolist()
    assert bins[:3] == [128, -1, 255] and len(bins) == 8
    pieces = TOKENIZER.pieces(seen["prompt"], bins)
    assert batch.tokens[0, batch.token_mask[0]].tolist() == pieces


def test_without_the_state_in_it_the_prompt_is_that_of_pi0():
    """So is LIBERO's: that π0.5 reads no state at all."""
    blind = policies.policy(ROBOT, num_steps=1, **PI05 | {"state_in_prompt": False})
    record, seen = blind.robot(None), observation(ROBOT)
    batch = preprocess.host([seen], [record], blind.layout(record), TOKENIZER)
    assert batch.tokens[0, batch.token_mask[0]].tolist() == TOKENIZER.pieces(seen["prompt"])
    still = seen | {"state": record.statistics.state.mean.astype(np.float32)}
    noise = np.ones((10, 16), np.float32)
    chunks = [blind(o, noise=noise)["actions"] for o in (seen, still)]
    deltas = [dim.delta for dim in record.embodiment.actions]
    moved = np.float32(seen["state"] - still["state"]) * np.float32(deltas)
    np.testing.assert_allclose(chunks[0] - chunks[1], np.tile(moved, (10, 1)), atol=1e-5)


# ---- policies


def test_the_state_moves_the_actions(policy):
    seen = observation(ROBOT)
    noise = np.ones((10, 16), np.float32)
    first = policy(seen, noise=noise)["actions"]
    again = policy(seen | {"state": seen["state"] + np.float32(0.3)}, noise=noise)["actions"]
    assert np.isfinite(first).all() and np.abs(first - again).max() > 1e-3


def test_the_compiled_length_depends_on_the_prompt_and_not_on_the_state(policy, monkeypatch):
    """What `warm_up` has compiled serves every state: digits come and go while a robot moves."""
    policy.warm_up(image_sizes=((48, 64),))
    compiled = policy._sample._cache_size()
    states = policy.robot(None).statistics.state
    for state in (states.mean, states.ranges.q01 - 1, states.ranges.q99 + 1):
        policy(observation(ROBOT) | {"state": state.astype(np.float32)})
    assert policy._sample._cache_size() == compiled


def test_what_the_bins_cut_off_is_counted_and_told_in_the_log_alone(policy, caplog):
    record = policy.robot(None)
    ranges = record.statistics.state.ranges
    inside = ((ranges.q01 + ranges.q99) / 2).astype(np.float32)
    beyond = np.where(np.arange(8) == 2, ranges.q99 + 0.01, inside).astype(np.float32)
    limits = Limits(record, "refuse", binned=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            assert limits.check_states(np.stack([inside, beyond])) == [[], []]
    name = record.embodiment.state[2].name
    assert limits.counts == {("bins", name): 20}
    told = [r.getMessage() for r in caplog.records if "bins" in r.getMessage()]
    assert len(told) == 2 and name in told[0] and "10 so far" in told[1]
    assert Limits(record, "refuse").check_states(beyond[None]) == [[]]


def test_an_export_says_how_the_state_gets_into_the_prompt(tmp_path):
    """By offset and scale, angles that turn being put near their mean first."""
    policy = policies.policy("widowx", num_steps=2, **PI05)
    policy.export(tmp_path / "exported", image_size=(48, 64))
    description = json.loads((tmp_path / "exported" / "policy.json").read_text())
    prompt = {
        name: np.array(value) if isinstance(value, list) else value
        for name, value in description["inputs"]["tokens"]["prompt"].items()
    }
    record, state = policy.robot(None), observation("widowx")["state"].copy()
    angles = np.flatnonzero(prompt["turns"])
    np.testing.assert_allclose(prompt["turns"][angles], 2 * np.pi, rtol=1e-6)
    assert [record.embodiment.state[i].name for i in angles] == ["roll", "pitch", "yaw"]
    state[angles] += 2 * np.pi  # as after one more turn of the wrist
    turns = np.where(prompt["turns"], prompt["turns"], 1)
    near = state - prompt["turns"] * np.round((state - prompt["middle"]) / turns)
    normalised = (near - prompt["offset"]) / prompt["scale"]
    expected = preprocess.state_to_model(state, record, "quantile")
    np.testing.assert_allclose(normalised, expected, atol=1e-6)
    assert prompt["bins"] == 256
    assert prompt["text"] == "Task: {prompt}, State: {state};\nAction: "


def test_a_checkpoint_opens_by_its_own_word(tmp_path):
    workdir = policies.write_checkpoint(tmp_path / "run", [ROBOT], **PI05)
    opened = Policy.open(workdir)
    assert opened.config.variant == "pi05_pico" and opened.config.state_in_prompt
    noise = np.ones((10, 16), np.float32)
    expected = policies.policy(ROBOT, **PI05)(observation(ROBOT), noise=noise)["actions"]
    np.testing.assert_array_equal(opened(observation(ROBOT), noise=noise)["actions"], expected)


# ---- what does not fit


def test_a_prompt_that_is_too_long_says_what_the_state_takes():
    bins = [255] * 8
    needed = len(TOKENIZER.pieces(TASK, bins))
    own = needed - len(TOKENIZER.pieces(TASK, []))
    # It is never cut: it would lose numbers.
    with pytest.raises(InputError, match=rf"has {needed} .*, {own} of .*limit is {needed - 1}"):
        TOKENIZER.encode(TASK, needed - 1, bins, cut=True)
    tokens, mask = TOKENIZER.encode(TASK, needed, bins)
    assert mask.all() and tokens.tolist() == TOKENIZER.pieces(TASK, bins)


def test_a_limit_below_what_the_state_alone_takes():
    alone = len(TOKENIZER.pieces("", [255] * 8))
    with pytest.raises(InputError, match=rf"^the state alone takes {alone} tokens, .* is 16$"):
        TOKENIZER.encode(TASK, 16, [255] * 8)


def test_statistics_without_quantiles(policy):
    record = policy.robot(None)
    state = record.statistics.state._replace(q01=None, q99=None)
    lacking = record._replace(statistics=record.statistics._replace(state=state))
    with pytest.raises(InputError, match="expected state statistics with q01 and q99, found none"):
        preprocess.check_robot(lacking, policy.layout(record))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(variant="pico"), "config.state_in_prompt is True, variant pico has a token"),
        (dict(normalization="zscore"), "config.normalization is 'zscore'; expected 'quantile'"),
    ],
)
def test_a_state_in_the_prompt_needs_a_pi05_and_quantiles(changes, said):
    with pytest.raises(InputError, match=re.escape(said)):
        policies.run_config(**PI05 | changes)


@pytest.mark.parametrize(
    ("written", "expected", "found", "wanted"),
    [("pico", "pi05_pico", "π0", "π0.5"), ("pi05_pico", "pico", "π0.5", "π0")],
)
def test_a_checkpoint_of_the_other_model_is_named_so(tmp_path, written, expected, found, wanted):
    workdir = policies.write_checkpoint(tmp_path / "run", [ROBOT], variant=written)
    other = parameter_shapes(policy_config.model_config(policies.run_config(variant=expected)))
    with pytest.raises(InputError, match=f"a {found} in the place of a {wanted}: "):
        checkpoints.read_params(checkpoints.find(workdir), "ema", other)
    run = policies.run_config(variant=expected, initial_weights=str(workdir))
    with pytest.raises(InputError, match=f"is a {found}, config.variant a {wanted}: "):
        weights.check_start(run)


# ---- training


data_dir = training.data_dir
TRAINED = dict(variant="pi05_pico", max_tokens=64, normalization="quantile", state_in_prompt=True)


def test_a_run_trains_with_its_norms_split_over_devices(data_dir, tmp_path):
    """Its loss falls, and its checkpoint says what it is."""
    from pi0_jax.train.loop import train

    how = dict(mesh=dict(data=2, fsdp=4, tensor=1), scan_layers=True, remat="full")
    run = tiny_config(data_dir, **TRAINED, **how, learning_rate=1e-2)
    train(run, tmp_path / "run")
    losses = training.losses(tmp_path / "run")
    assert losses[12] < losses[1]
    stored = policy_config.from_json(
        json.loads(
            next((tmp_path / "run").glob("checkpoints/12/description/metadata")).read_text()
        )["policy"],
        "checkpoint",
    )
    assert stored == config.policy_half(run)


def test_a_run_refuses_prompts_that_do_not_fit_with_the_state(data_dir, tmp_path):
    from pi0_jax.train.loop import train

    alone = TOKENIZER.most_pieces("", 3)
    with pytest.raises(InputError, match=r"prompts have more tokens .* of them the state's"):
        train(tiny_config(data_dir, **TRAINED | {"max_tokens": alone}), tmp_path / "a")
    with pytest.raises(InputError, match=rf"its state of 3 numbers takes up to {alone} tokens"):
        train(tiny_config(data_dir, **TRAINED | {"max_tokens": alone - 1}), tmp_path / "b")


def test_a_run_whose_model_reads_no_state_says_so(data_dir, tmp_path, capsys):
    from pi0_jax.train.loop import train

    blind = TRAINED | {"state_in_prompt": False, "steps": 3, "warmup_steps": 0}
    train(tiny_config(data_dir, **blind), tmp_path / "run")
    assert "reads no state" in capsys.readouterr().out
