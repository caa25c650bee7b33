"""Builds or opens the indices of RLDS datasets and says what they hold.

python -m launch.index --data_dir=DIR [--datasets=bridge_dataset,reach_arm3] [--index_dir=DIR] [--workers=8] [--report=DIR]

A build that is stopped goes on where it was when the command is given again.
"""

import time
from pathlib import Path

from absl import flags

from launch.app import run
from pi0_jax.data import storage
from pi0_jax.data.datasets import ROWS, find_row
from pi0_jax.data.index import build_or_open
from pi0_jax.data.workers import default_workers
from pi0_jax.errors import InputError
from pi0_jax.report.cards import Card, write_cards
from pi0_jax.statistics import index_statistics

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder or URL that holds the datasets: DIR/<name>/<version>/.", required=True)
_DATASETS = flags.DEFINE_list("datasets", None, "Names of datasets; by default every known one that is in data_dir.")
_INDEX_DIR = flags.DEFINE_string("index_dir", None, "Where indices go; by default each lies in its dataset's folder.")
_WORKERS = flags.DEFINE_integer("workers", default_workers(), "Processes that read and check, a shard each at a time.", lower_bound=1)
_DECODE_ALL = flags.DEFINE_bool("decode_all", False, "Decode every image once; by default one step of each 64th episode.")
_SKIP = flags.DEFINE_integer("skip_bad_episodes", 0, "Bad episodes of a dataset that may be left out; each is listed.", lower_bound=0)
_REPORT = flags.DEFINE_string("report", None, "Folder for a page about each dataset, with pictures.")
_HORIZON = flags.DEFINE_integer("horizon", 50, "Steps of the action chunks that the report's statistics are taken over.", lower_bound=1)


def _names() -> list[str]:
    if _DATASETS.value is not None:
        return _DATASETS.value
    place = storage.locate(_DATA_DIR.value)
    if not isinstance(place, Path):
        raise InputError(f"--data_dir={place}: expected --datasets, since a URL is not searched for datasets")
    names = [row.name for row in ROWS.values() if (place / row.tfds_name).is_dir()]
    if not names:
        raise InputError(f"--data_dir={place}: expected a folder of one of {', '.join(sorted(ROWS))}, found none")
    return names


def main() -> None:
    indices = []
    for row in [find_row(name) for name in _names()]:
        start = time.monotonic()
        index = build_or_open(
            row,
            _DATA_DIR.value,
            _INDEX_DIR.value,
            workers=_WORKERS.value,
            decode_all=_DECODE_ALL.value,
            skip_bad_episodes=_SKIP.value,
        )
        for problem in index.skipped:
            print(f"left out: {problem}")
        frames = ", ".join(f"{len(index.frames(split)):,} {split}" for split in ("train", "val"))
        print(
            f"{row.name}: {len(index.episodes['start']):,} episodes, {index.steps:,} steps, kept frames {frames},"
            f" {len(index.prompts):,} prompts, {index.size_bytes:,} bytes, {time.monotonic() - start:.1f} s"
        )
        indices.append(index)
    if _REPORT.value:
        cards = [Card(index, index_statistics(index, _HORIZON.value), _HORIZON.value) for index in indices]
        print(f"report: {write_cards(cards, Path(_REPORT.value))}")


if __name__ == "__main__":
    run(main)
