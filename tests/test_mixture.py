"""The next frame comes right: each once an epoch, shares as the weights.

Nothing but seed and position matters.
"""

import dataclasses
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open
from pi0_jax.data.mixture import Mixture, UniformOrder, mixing, shares_by_frames
from pi0_jax.data.permutation import hashes, permute
from pi0_jax.data.rows import CameraField, Language
from pi0_jax.data.write import ImageFeature, TextFeature
from pi0_jax.errors import InputError
from tests.mixed_data import frames_of, open_mixed, write_mixed
from tests.tiny_data import REACH_STEPS, reach_episodes, solid, write_reach

WEIGHTS = {"reach_arm3": 3.0, "reach_arm4": 1.0, "reach_arm5": 0.2}
BATCH = 16


@pytest.fixture(scope="module")
def indices(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    write_mixed(data_dir)
    return open_mixed(data_dir)


def mix(indices, weights=WEIGHTS, *, split="train", horizon=4, seed=0):
    return Mixture(indices, weights, split=split, horizon=horizon, seed=seed)


def stand_ins(sizes):
    """Returns what the order of frames asks of an index, for datasets too large to write."""
    return [
        SimpleNamespace(
            name=f"dataset_{i}",
            frames=lambda split, size=size: np.arange(size),
            episodes={"start": np.zeros(1, np.int64)},
        )
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 24, 1000, 4096, 4097])
def test_a_permutation_has_each_place_once(size):
    shuffled = [
        permute(np.arange(size), size, hashes(seed, np.arange(1))[0]).tolist() for seed in range(4)
    ]
    assert all(sorted(places) == list(range(size)) for places in shuffled)
    assert size < 24 or len({tuple(places) for places in shuffled}) == 4


def test_neighbours_in_a_permutation_are_independent():
    """Pairs of places 1, 2 and 64 apart are uniform in 16 x 16 cells.

    Chi squared has 255 degrees of freedom, with a deviation of 22.6.
    """
    for size in (1000, 10**6, 10**8, 2**40 + 1):
        cells = (
            permute(np.arange(20_000) % size, size, hashes(7, np.arange(20_000) // size))
            * 16
            // size
        )
        for apart in (1, 2, 64):
            counts = np.bincount(cells[:-apart] * 16 + cells[apart:], minlength=256)
            expected = (20_000 - apart) / 256
            assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * 22.6


def test_an_epoch_of_a_dataset_has_each_of_its_frames_once(indices):
    order = UniformOrder(mix(indices), BATCH)
    drawn = frames_of(order, 0, 1000)
    for dataset, index in enumerate(indices):
        frames = index.frames("train").tolist()
        own = [frame for number, frame in drawn if number == dataset]
        epochs = [
            own[i : i + len(frames)] for i in range(0, len(own) - len(frames) + 1, len(frames))
        ]
        assert len(epochs) > 10
        assert all(sorted(epoch) == frames for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each in another order


def test_shares_follow_the_weights(indices):
    for weights in (WEIGHTS, {"reach_arm3": 0.123, "reach_arm4": 0.456, "reach_arm5": 0.01}):
        mixture = mix(indices, weights)
        assert sum(mixture.shares.values()) == pytest.approx(1)
        drawn = np.array(frames_of(UniformOrder(mixture, BATCH), 0, 2000))[:, 0]
        for number, (name, weight) in enumerate(weights.items()):
            assert mixture.shares[name] == pytest.approx(weight / sum(weights.values()))
            assert (drawn == number).mean() == pytest.approx(mixture.shares[name], rel=0.01)


def test_rare_datasets_get_their_share():
    """Of 35 datasets with weights up to 5000 apart, the rarest is drawn 34 times and a bit.

    There are a million samples.
    """
    weights = np.exp(np.linspace(0, np.log(5000), 35))
    names = [f"dataset_{i}" for i in range(35)]
    order = UniformOrder(
        mix(stand_ins([1000] * 35), dict(zip(names, weights, strict=True))), 1_000_000
    )
    counts = np.bincount(next(order.frames(0, 1, range(1_000_000))).dataset)
    expected = weights / weights.sum() * 1e6
    assert np.abs(counts - expected).max() < 3
    assert all(
        abs(count / share - 1) < 0.01
        for count, share in zip(counts, expected, strict=True)
        if share > 200
    )


def test_the_held_out_episodes_are_their_own_split(indices):
    train, val = (
        frames_of(UniformOrder(mix(indices, split=split), BATCH), 0, 400)
        for split in ("train", "val")
    )
    episodes = [
        {(d, int(indices[d].episode_of(np.int64(frame)))) for d, frame in drawn}
        for drawn in (train, val)
    ]
    assert [Counter(d for d, _ in drawn) for drawn in episodes] == [
        {0: 133, 1: 40, 2: 2},
        {0: 7, 1: 2, 2: 1},
    ]
    assert not episodes[0] & episodes[1]


def test_a_global_batch_is_the_same_for_any_number_of_hosts_and_from_any_step(indices):
    whole = frames_of(UniformOrder(mix(indices), BATCH), 0, 1000)
    for hosts in (2, 4, 8):
        # each host makes its own
        orders = [UniformOrder(mix(indices), BATCH) for _ in range(hosts)]
        rows = [
            frames_of(order, 300, 1000, order.rows(host, hosts))
            for host, order in enumerate(orders)
        ]
        count = BATCH // hosts
        assert [
            pair
            for step in range(700)
            for own in rows
            for pair in own[step * count : (step + 1) * count]
        ] == whole[300 * BATCH :]
    with pytest.raises(InputError, match="host 0 of 3: expected .* divides the batch of 16 rows"):
        UniformOrder(mix(indices), BATCH).rows(0, 3)


def test_any_thread_and_any_step(indices):
    mixture = mix(indices)
    order = UniformOrder(mixture, BATCH)
    draws = [draw for batch in order.draws(7, 17, range(BATCH)) for draw in batch]
    with ThreadPoolExecutor(8) as pool:
        samples = [sample for (sample,) in pool.map(lambda draw: mixture.samples([draw]), draws)]
    again = mix(indices)
    for draw, sample in zip(draws, samples, strict=True):
        (same,) = again.samples([draw])
        assert (sample.dataset, sample.episode, sample.step) == (
            same.dataset,
            same.episode,
            same.step,
        )
        np.testing.assert_array_equal(
            sample.observation["images"]["base"], same.observation["images"]["base"]
        )
    far = 10**12
    assert frames_of(order, far, far + 1) == frames_of(UniformOrder(again, BATCH), far, far + 1)


def test_a_sample_is_the_frame_that_it_names(indices):
    mixture = mix(indices, horizon=4)
    order = UniformOrder(mixture, BATCH)
    for draws, frames in zip(
        order.draws(0, 6, range(BATCH)), order.frames(0, 6, range(BATCH)), strict=True
    ):
        samples, ids = mixture.samples(draws), mixture.frame_ids(frames)
        assert [(s.dataset, s.episode, s.step) for s in samples] == list(
            zip(*(column.tolist() for column in ids), strict=True)
        )
        for sample in samples:
            state = sample.observation["state"]
            assert np.rint(100 * state[:2]).tolist() == [sample.episode, sample.step]
            assert len(state) == 3 + sample.dataset and sample.actions.shape == (
                4,
                3 + sample.dataset,
            )
            length = mixture.indices[sample.dataset].episodes["length"][sample.episode]
            np.testing.assert_allclose(
                sample.actions[:, 1],
                (np.minimum(sample.step + np.arange(4), length - 1) + 0.5) / 100,
            )
            assert sample.action_valid.tolist() == (sample.step + np.arange(4) < length).tolist()
            colour = sample.observation["images"]["base"][0, 0].astype(int)
            assert (
                np.abs(colour - (10 * sample.episode % 256, 20 * sample.step % 256, 200)).max() <= 3
            )


def test_seeds_give_different_orders_and_datasets_do_not_depend_on_each_other(indices):
    assert frames_of(UniformOrder(mix(indices, seed=0), 40), 0, 1) != frames_of(
        UniformOrder(mix(indices, seed=1), 40), 0, 1
    )
    alone = frames_of(UniformOrder(mix(indices[:1], {"reach_arm3": 1.0}), 200), 0, 1)
    mixed = [pair for pair in frames_of(UniformOrder(mix(indices), 400), 0, 1) if pair[0] == 0]
    assert mixed[:200] == alone


def test_views_and_instructions_are_drawn_independently(tmp_path):
    """Two views of one camera and two instructions give four pairs, and all are equally frequent.

    The position alone decides which one comes.
    """
    row = dataclasses.replace(
        ROWS["reach_arm3"],
        cameras={
            "base": CameraField(
                "steps/observation/base", alternatives=("steps/observation/other_base",)
            ),
            "wrist": CameraField("steps/observation/wrist"),
        },
        language=Language(("steps/language_instruction", "steps/another_instruction")),
    )
    episodes = reach_episodes((6,) * 3)
    for step in (step for episode in episodes for step in episode["steps"]):
        step["another_instruction"] = "other"
        step["observation"]["other_base"] = solid((250, 0, 0))
    observation = {**REACH_STEPS["observation"], "other_base": ImageFeature(16, 24)}
    steps = {**REACH_STEPS, "observation": observation, "another_instruction": TextFeature()}
    write_reach(tmp_path, steps=steps, episodes=episodes)
    mixture = mix([build_or_open(row, tmp_path, progress=False)], {"reach_arm3": 1.0})
    order = UniformOrder(mixture, 1200)
    samples = mixture.samples(next(order.draws(0, 1, range(1200))))
    pairs = Counter(
        (bool(s.observation["images"]["base"][0, 0, 0] > 150), s.observation["prompt"] == "other")
        for s in samples
    )
    # 300, a deviation of 15
    assert len(pairs) == 4 and all(250 < count < 350 for count in pairs.values())
    choices = [draw.choice for draw in next(order.draws(0, 1, range(600, 1200)))]
    assert choices == [draw.choice for draw in next(order.draws(0, 1, range(1200)))][600:]


def test_mixing_counts_distinct_episodes_and_datasets(indices):
    order = UniformOrder(mix(indices), 84)  # 60, 20 and 4 rows of a batch
    batch = mixing(order, 3, 4)
    episodes = {
        (d, int(indices[d].episode_of(np.int64(frame)))) for d, frame in frames_of(order, 3, 4)
    }
    assert (batch.episodes, batch.datasets) == (len(episodes), 3) and batch.share_error < 0.3
    assert mixing(order, 0, 100).share_error < 0.01


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {**WEIGHTS, "reach_arm9": 1.0},
            "mixture: weight of reach_arm9: expected one of the datasets reach_arm3, reach_arm4, reach_arm5",
        ),
        (
            {"reach_arm3": 1.0, "reach_arm5": 1.0},
            "mixture: expected a weight for dataset reach_arm4, found weights for reach_arm3, reach_arm5",
        ),
        (
            {**WEIGHTS, "reach_arm4": 0.0},
            "mixture: weight of reach_arm4: expected a positive number, found 0.0",
        ),
        ({**WEIGHTS, "reach_arm4": -1.0}, "expected a positive number, found -1.0"),
        ({**WEIGHTS, "reach_arm4": float("nan")}, "expected a positive number, found nan"),
        (
            {**WEIGHTS, "reach_arm4": 1e-8},
            "mixture: weight of reach_arm4: expected a share of the samples of at least 1e-07, found 3.1",
        ),
    ],
)
def test_wrong_weights(indices, weights, message):
    with pytest.raises(InputError, match=message):
        mix(indices, weights)


@pytest.mark.parametrize(
    ("weights", "power", "message"),
    [
        ((0.0, 0.0, 0.0), 1.0, "weight of reach_arm3: expected a positive number, found 0.0"),
        ((1.0, -1.0, 1.0), 1.0, "weight of reach_arm4: expected a positive number, found -1.0"),
        (
            (1.0, 1.0, 1.0),
            400.0,
            r"weight x frames\^400: expected numbers that float64 can add up, found larger ones",
        ),
        (
            (1e307, 1.0, 1.0),
            4.0,
            r"weight x frames\^4: expected numbers that float64 can add up, found larger ones",
        ),
    ],
)
def test_weights_that_give_no_shares(indices, weights, power, message):
    with pytest.raises(InputError, match=f"^mixture: {message}$"):
        shares_by_frames(indices, weights, power)


def test_wrong_datasets(indices, tmp_path):
    with pytest.raises(InputError, match="expected .* different names, found reach_arm3 2 times"):
        mix([indices[0], indices[0]], {"reach_arm3": 1.0})
    with pytest.raises(InputError, match="expected at least one dataset, found none"):
        mix([], {})
    write_reach(tmp_path, (4,))  # one episode: nothing to hold out
    single = build_or_open(ROWS["reach_arm3"], tmp_path, progress=False)
    with pytest.raises(InputError, match="reach_arm3: expected frames .* split val, found none"):
        mix([single], {"reach_arm3": 1.0}, split="val")
    silent = [
        {"steps": [{**step, "language_instruction": " "} for step in episode["steps"]]}
        for episode in reach_episodes((4, 4, 4))
    ]
    write_reach(tmp_path / "silent", episodes=silent)
    index = build_or_open(ROWS["reach_arm3"], tmp_path / "silent", progress=False)
    with pytest.raises(InputError, match="split train, found none: .*2 episodes .*keep_empty"):
        shares_by_frames([index], [1.0], 1.0)
