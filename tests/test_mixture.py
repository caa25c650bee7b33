"""Which frame comes next: each once an epoch, shares as the weights, nothing but seed and position matters."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open
from pi0_jax.data.mixture import Mixture
from pi0_jax.data.write import ArrayFeature
from pi0_jax.errors import InputError
from tests.tiny_data import REACH_STEPS, reach_episodes, write_reach

WEIGHTS = {"reach_arm3": 3.0, "reach_arm4": 1.0}


@pytest.fixture(scope="module")
def indices(tmp_path_factory):
    """reach_arm3 with 40 training frames of 5 episodes (a sixth is held out), reach_arm4 with 24 of 3."""
    data_dir = tmp_path_factory.mktemp("data")
    write_reach(data_dir, (8,) * 6)
    four = reach_episodes((8,) * 4)
    for step in (step for episode in four for step in episode["steps"]):
        step["observation"]["state"] = np.append(step["observation"]["state"], np.float32(4))
        step["action"] = np.append(step["action"], np.float32(4))
    vector = ArrayFeature((4,), np.float32)
    steps = {**REACH_STEPS, "observation": {**REACH_STEPS["observation"], "state": vector}, "action": vector}
    write_reach(data_dir, name="reach_arm4", steps=steps, episodes=four)
    return [build_or_open(ROWS[name], data_dir, progress=False) for name in WEIGHTS]


def mix(indices, weights=WEIGHTS, *, split="train", horizon=4, seed=0):
    return Mixture(indices, weights, split=split, horizon=horizon, seed=seed)


def frames_of(mixture, positions):
    """[(dataset, episode, step), ...]."""
    return list(zip(*(column.tolist() for column in mixture.frame_ids(np.asarray(positions))), strict=True))


def test_an_epoch_of_a_dataset_has_each_of_its_frames_once(indices):
    drawn = frames_of(mix(indices), range(2000))
    for dataset, count in ((0, 40), (1, 24)):
        own = [frame for frame in drawn if frame[0] == dataset]
        epochs = [own[i : i + count] for i in range(0, len(own) - count + 1, count)]
        assert len(epochs) > 10
        assert all(len(set(epoch)) == count and set(epoch) == set(epochs[0]) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each in another order


def test_shares_follow_the_weights(indices):
    for weights in (WEIGHTS, {"reach_arm3": 0.123, "reach_arm4": 0.456}):
        mixture = mix(indices, weights)
        assert sum(mixture.shares.values()) == pytest.approx(1)
        drawn = mixture.frame_ids(np.arange(4000)).dataset
        for number, (name, weight) in enumerate(weights.items()):
            assert mixture.shares[name] == pytest.approx(weight / sum(weights.values()))
            assert (drawn == number).mean() == pytest.approx(mixture.shares[name], rel=0.01)


def test_the_held_out_episodes_are_their_own_split(indices):
    train = {frame[:2] for frame in frames_of(mix(indices), range(1000))}
    val = {frame[:2] for frame in frames_of(mix(indices, split="val"), range(1000))}
    assert len(train) == 5 + 3 and len(val) == 1 + 1 and not train & val


def test_a_global_batch_is_the_same_for_any_number_of_hosts(indices):
    steps, batch = 50, 8
    whole = frames_of(mix(indices), range(steps * batch))
    for hosts in (2, 4, 8):
        of_host = [mix(indices) for _ in range(hosts)]  # each host makes its own
        rows = {(s, r): frames_of(of_host[r % hosts], [s * batch + r])[0] for s in range(steps) for r in range(batch)}
        assert [rows[s, r] for s in range(steps) for r in range(batch)] == whole


def test_any_position_any_order_any_thread(indices):
    mixture = mix(indices)
    positions = np.random.default_rng(0).permutation(400)
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(mixture.sample, positions.tolist()))
    again = mix(indices)
    for position, sample in zip(positions.tolist(), samples, strict=True):
        same = again.sample(position)
        assert (sample.dataset, sample.episode, sample.step) == (same.dataset, same.episode, same.step) == frames_of(again, [position])[0]
        np.testing.assert_array_equal(sample.actions, same.actions)
        np.testing.assert_array_equal(sample.observation["images"]["base"], same.observation["images"]["base"])
    far = 10**12
    assert frames_of(mixture, [far]) == frames_of(again, [far])


def test_a_sample_is_the_frame_that_it_names(indices):
    mixture = mix(indices, horizon=4)
    for position in range(60):
        sample = mixture.sample(position)
        state = sample.observation["state"]
        assert state[:2].tolist() == [sample.episode, sample.step]
        assert len(state) == 3 + sample.dataset and sample.actions.shape == (4, 3 + sample.dataset)
        steps = np.minimum(sample.step + np.arange(4), 7)
        np.testing.assert_array_equal(sample.actions[:, 1], steps + 0.5)
        assert sample.action_valid.tolist() == (sample.step + np.arange(4) < 8).tolist()
        assert np.abs(sample.observation["images"]["base"][0, 0].astype(int) - (10 * sample.episode, 20 * sample.step, 200)).max() <= 3


def test_seeds_give_different_orders_and_datasets_do_not_depend_on_each_other(indices):
    assert frames_of(mix(indices, seed=0), range(40)) != frames_of(mix(indices, seed=1), range(40))
    alone = frames_of(mix(indices[:1], {"reach_arm3": 1.0}), range(200))
    mixed = [frame for frame in frames_of(mix(indices), range(400)) if frame[0] == 0]
    assert mixed[:200] == alone[: len(mixed)][:200]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {**WEIGHTS, "reach_arm9": 1.0},
            "mixture: weight of reach_arm9: expected one of the datasets reach_arm3, reach_arm4",
        ),
        ({"reach_arm3": 1.0}, "mixture: expected a weight for dataset reach_arm4, found weights for reach_arm3"),
        ({**WEIGHTS, "reach_arm4": 0.0}, "mixture: weight of reach_arm4: expected a positive number, found 0.0"),
        ({**WEIGHTS, "reach_arm4": -1.0}, "expected a positive number, found -1.0"),
        ({**WEIGHTS, "reach_arm4": float("nan")}, "expected a positive number, found nan"),
    ],
)
def test_wrong_weights(indices, weights, message):
    with pytest.raises(InputError, match=message):
        mix(indices, weights)


def test_wrong_datasets(indices, tmp_path):
    with pytest.raises(InputError, match="expected datasets of different names, found reach_arm3 2 times"):
        mix([indices[0], indices[0]], {"reach_arm3": 1.0})
    with pytest.raises(InputError, match="expected at least one dataset, found none"):
        mix([], {})
    write_reach(tmp_path, (4,))  # one episode: nothing to hold out
    single = build_or_open(ROWS["reach_arm3"], tmp_path, progress=False)
    with pytest.raises(InputError, match="dataset reach_arm3: expected frames to draw in split val, found none in 1 episodes"):
        mix([single], {"reach_arm3": 1.0}, split="val")
