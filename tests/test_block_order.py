"""The local order draws whole records in blocks, each once an epoch of its lane.

Its memory is bounded, and it still depends on nothing but (seed, step).
"""

import contextlib
from collections import Counter

import numpy as np
import pytest

from pi0_jax.data.block_order import LocalOrder
from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open
from pi0_jax.data.mixture import Mixture, UniformOrder, mixing
from pi0_jax.errors import InputError
from tests.mixed_data import CountingIndex, Ledger, frames_of, open_mixed, write_mixed
from tests.tiny_data import shard_files, write_reach

WEIGHTS = {"reach_arm3": 3.0, "reach_arm4": 1.0, "reach_arm5": 0.2}
BATCH, LANES = 16, 8
POOL = 120_000  # bytes: a block of some ten episodes


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def directories(data_dir):
    return write_mixed(data_dir)


@pytest.fixture(scope="module")
def indices(data_dir, directories):
    return open_mixed(data_dir)


def make(indices, *, lanes=LANES, pool_bytes=POOL, seed=0, weights=WEIGHTS):
    return LocalOrder(
        Mixture(indices, weights, split="train", horizon=4, seed=seed),
        BATCH,
        lanes=lanes,
        pool_bytes=pool_bytes,
    )


def lane_rows(order, lane):
    return order.rows(lane, order.lanes)


@pytest.fixture
def counted(indices, directories):
    """Returns the same indices, and a ledger of what is read from them."""
    ledger = Ledger()
    return [
        CountingIndex(index, directory, ledger)
        for index, directory in zip(indices, directories, strict=True)
    ], ledger


def test_an_epoch_of_a_lane_has_each_frame_of_its_deck_once(indices):
    """Arms 3 and 4 are dealt to eight lanes.

    Arm 5 has two episodes for training, and all lanes share them.
    """
    order = make(indices)
    decks = {dataset: [] for dataset in range(3)}
    for lane in range(LANES):
        drawn = frames_of(order, 0, 6000, lane_rows(order, lane))
        for dataset in range(3):
            own = [frame for number, frame in drawn if number == dataset]
            deck = sorted(set(own))
            decks[dataset].append(deck)
            epochs = [own[i : i + len(deck)] for i in range(0, len(own) - len(deck) + 1, len(deck))]
            assert len(epochs) > 5 and all(sorted(epoch) == deck for epoch in epochs)
            assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    for dataset in (0, 1):
        frames = [frame for deck in decks[dataset] for frame in deck]
        assert sorted(frames) == indices[dataset].frames("train").tolist()
        sizes = [len(deck) for deck in decks[dataset]]
        assert max(sizes) <= 1.05 * min(sizes)
    assert all(deck == indices[2].frames("train").tolist() for deck in decks[2])


def test_shares_follow_the_weights_in_every_lane(indices):
    order = make(indices)
    drawn = [
        np.array(frames_of(order, 0, 8000, lane_rows(order, lane)))[:, 0] for lane in range(LANES)
    ]
    for number, share in enumerate(order.mixture.shares.values()):
        assert (np.concatenate(drawn) == number).mean() == pytest.approx(share, rel=0.01)
        for lane in drawn:
            # the longest episode has 30 frames
            assert abs((lane == number).sum() - share * len(lane)) < 30 + 0.01 * share * len(lane)


def test_a_rare_dataset_comes_up_in_one_lane_after_the_other(indices):
    """Arm 5 makes up a fiftieth.

    It is always less than two episodes, of at most 30 frames each, away from its share in all.
    """
    order = make(
        indices,
        weights={"reach_arm3": 70.0, "reach_arm4": 28.0, "reach_arm5": 2.0},
        pool_bytes=20_000,
    )
    drawn = np.array(frames_of(order, 0, 4000))[:, 0] == 2
    assert np.abs(np.cumsum(drawn) - 0.02 * np.arange(1, len(drawn) + 1)).max() < 60


def test_a_global_batch_is_the_same_for_any_number_of_hosts_and_from_any_step(indices):
    whole = frames_of(make(indices), 0, 1000)
    assert whole != frames_of(make(indices, seed=1), 0, 1000)
    for hosts in (2, 4, 8):
        orders = [make(indices) for _ in range(hosts)]  # each host makes its own
        rows = [
            frames_of(order, 0, 1000, order.rows(host, hosts)) for host, order in enumerate(orders)
        ]
        count = BATCH // hosts
        assert [
            pair
            for step in range(1000)
            for own in rows
            for pair in own[step * count : (step + 1) * count]
        ] == whole
    for step in (1, 2, 17, 333, 334, 500, 777, 997):
        assert frames_of(make(indices), step, step + 3) == whole[step * BATCH : (step + 3) * BATCH]
    far = 10**10
    assert frames_of(make(indices), far, far + 20)[BATCH:] == frames_of(
        make(indices), far + 1, far + 20
    )


def test_samples_are_the_frames_that_the_order_names(indices):
    order = make(indices)
    with contextlib.closing(order.draws(40, 50, range(BATCH))) as steps:
        for draws, frames in zip(steps, order.frames(40, 50, range(BATCH)), strict=True):
            ids = order.mixture.frame_ids(frames)
            for draw, *named in zip(draws, *(column.tolist() for column in ids), strict=True):
                (sample,) = order.mixture.samples([draw])
                assert [sample.dataset, sample.episode, sample.step] == named
                colour = sample.observation["images"]["base"][0, 0].astype(int)
                assert (
                    np.abs(colour - (10 * sample.episode % 256, 20 * sample.step % 256, 200)).max()
                    <= 3
                )
    uniform = UniformOrder(order.mixture, BATCH)
    choices = [
        [draw.choice for draw in next(each.draws(40, 41, range(BATCH)))]
        for each in (order, uniform)
    ]
    assert choices[0] == choices[1]  # by seed and position alone


def draw_all(order, start, stop, rows):
    """Draws all rows and keeps nothing."""
    with contextlib.closing(order.draws(start, stop, rows)) as steps:
        for _ in steps:
            pass


def test_a_lane_reads_each_record_once_an_epoch_and_holds_no_more_than_its_pool(indices, counted):
    counting, ledger = counted
    order = make(counting)
    assert order.bound_bytes == POOL
    rows = lane_rows(order, 3)
    draw_all(order, 0, 3000, rows)
    assert ledger.images == 0 and ledger.held == 0
    assert 0.7 * POOL < ledger.peak <= POOL
    read = Counter(ledger.records)
    for dataset, frame in set(drawn := frames_of(order, 0, 3000, rows)):
        epochs = drawn.count((dataset, frame))
        # one ahead
        assert (
            read[indices[dataset].name, int(indices[dataset].episode_of(np.int64(frame)))]
            <= epochs + 1
        )


def test_a_pool_smaller_than_an_episode_holds_two_episodes(indices, counted):
    counting, ledger = counted
    order = make(counting, pool_bytes=10)
    largest = max(int(index.episodes["bytes"].max()) for index in indices)
    assert order.bound_bytes == 2 * largest
    draw_all(order, 0, 500, lane_rows(order, 3))
    assert ledger.peak <= 2 * largest
    # 16 rows run through episodes of 4 to 30 frames
    assert mixing(make(indices, lanes=1, pool_bytes=10), 0, 50).episodes < 4


def test_resuming_reads_at_most_one_block_again(indices, counted):
    """There is one lane in its first epoch, in which no frame comes twice."""
    counting, ledger = counted
    order = make(counting[:1], lanes=1, weights={"reach_arm3": 1.0})
    drawn = [int(indices[0].episode_of(np.int64(frame))) for _, frame in frames_of(order, 0, 55)]
    again = []
    for step in (10, 11, 27, 40):
        ledger.records.clear()
        draw_all(order, step, 55, range(BATCH))
        read = {episode for _, episode in ledger.records}
        before, after = set(drawn[: step * BATCH]), set(drawn[step * BATCH :])
        assert after - before <= read and len(read) == len(ledger.records)
        again.append(sum(int(indices[0].episodes["bytes"][episode]) for episode in read & before))
    assert max(again) <= POOL // 2 < sum(again)


def test_mixing_grows_with_the_pool_and_the_lanes(indices):
    def episodes(**changes):
        return mixing(make(indices, **changes), 0, 300).episodes

    uniform = mixing(UniformOrder(make(indices).mixture, BATCH), 0, 300).episodes
    assert (
        3
        < episodes(lanes=1, pool_bytes=40_000)
        < episodes(lanes=1, pool_bytes=POOL)
        < episodes()
        < uniform
        <= BATCH
    )


def test_wrong_numbers(indices):
    with pytest.raises(InputError, match="5 lanes: expected .* divides the batch of 16 rows"):
        make(indices, lanes=5)
    with pytest.raises(InputError, match="a pool of 0 bytes a lane: expected a positive number"):
        make(indices, pool_bytes=0)
    with pytest.raises(InputError, match="16 hosts: expected a number that divides the 8 lanes"):
        make(indices).rows(0, 16)
    with pytest.raises(InputError, match=r"rows \[1, 2\]: expected whole lanes of 2 rows"):
        next(make(indices).frames(0, 1, range(1, 3)))


def test_a_record_that_has_changed_since_it_was_indexed_is_named(tmp_path):
    """An index opens if a file's size and both its ends are as before; records have a checksum."""
    directory = write_reach(tmp_path, (6, 6, 6), per_shard=3)
    index = build_or_open(ROWS["reach_arm3"], tmp_path, progress=False)
    shard = next(shard_files(directory))
    data = bytearray(shard.read_bytes())
    data[int(index.episodes["offset"][1]) + 3000] ^= 1
    shard.write_bytes(data)
    same = build_or_open(ROWS["reach_arm3"], tmp_path, progress=False)
    assert same.digest == index.digest
    message = f"dataset reach_arm3: {shard} record 1: corrupted payload: expected checksum .*: the file has changed since it was indexed"
    with pytest.raises(InputError, match=message):
        same.read_record(1)
    assert len(same.read_record(0)) == index.episodes["bytes"][0]
