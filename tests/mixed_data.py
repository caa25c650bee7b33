"""Makes three tiny real datasets to mix.

One has episodes of different lengths, one of the same length, and one fewer episodes than lanes.
"""

import threading
from pathlib import Path

import numpy as np

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import Index, build_or_open
from pi0_jax.data.write import ArrayFeature
from tests.tiny_data import REACH_STEPS, reach_episodes, write_reach

LENGTHS = {
    "reach_arm3": tuple(4 + i % 7 for i in range(140)),
    "reach_arm4": (8,) * 42,
    "reach_arm5": (20, 30, 25),
}


def write_mixed(data_dir: Path) -> list[Path]:
    """Writes datasets of arms with 3, 4 and 5 joints.

    The state begins with a hundredth of episode and step (tests/tiny_data.py).
    """
    directories = []
    for joints, (name, lengths) in zip((3, 4, 5), LENGTHS.items(), strict=True):
        episodes = reach_episodes(lengths)
        for step in (step for episode in episodes for step in episode["steps"]):
            # rad: no robot turns a joint by as many as there are episodes
            step["observation"]["state"] = np.resize(step["observation"]["state"], joints) / 100
            step["action"] = np.resize(step["action"], joints) / 100
        vector = ArrayFeature((joints,), np.float32)
        steps = {
            **REACH_STEPS,
            "observation": {**REACH_STEPS["observation"], "state": vector},
            "action": vector,
        }
        directories.append(
            write_reach(data_dir, name=name, steps=steps, episodes=episodes, per_shard=50)
        )
    return directories


def frames_of(order, start, stop, rows=None):
    """Returns [(dataset, frame), ...] of all rows of all steps."""
    batches = order.frames(start, stop, range(order.batch_size) if rows is None else rows)
    return [
        pair
        for batch in batches
        for pair in zip(*(column.tolist() for column in batch), strict=True)
    ]


def open_mixed(data_dir: Path) -> list[Index]:
    return [build_or_open(ROWS[name], data_dir, progress=False) for name in LENGTHS]


class _Payload(bytes):
    """Is a record that tells when it goes."""

    ledger: "Ledger"

    def __del__(self) -> None:
        self.ledger.add(-len(self))


class Ledger:
    """Counts what is read from several indices: records, images, and bytes of held records."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int]] = []  # (dataset, episode)
        self.images = 0
        self.held = self.peak = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.held += count
            self.peak = max(self.peak, self.held)


class CountingIndex(Index):
    """Is a real index whose reads are counted."""

    def __init__(self, index: Index, directory: Path, ledger: Ledger) -> None:
        super().__init__(index.row, directory, index.path)
        self.ledger = ledger

    def read_record(self, episode: int) -> bytes:
        payload = _Payload(super().read_record(episode))
        payload.ledger = self.ledger
        self.ledger.records.append((self.name, episode))
        self.ledger.add(len(payload))
        return payload

    def read_encoded(self, frame: int, view: str) -> bytes:
        self.ledger.images += 1
        return super().read_encoded(frame, view)
