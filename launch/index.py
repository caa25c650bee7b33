"""Builds or opens the indices of RLDS datasets and says what they hold.

python -m launch.index --data_dir=DIR [--datasets=bridge_dataset,reach_arm3] [--index_dir=DIR]
    [--workers=8] [--report=DIR]
python -m launch.index --config=FILE [--report=DIR]
    what a run will read, datasets of its own included, with their shares

A build that is stopped goes on where it was when the command is given again.
"""

import time
from pathlib import Path

from absl import flags

from pi0_jax.data.datasets import datasets_in, find_row
from pi0_jax.data.index import build_or_open
from pi0_jax.data.index.workers import default_workers
from pi0_jax.data.records.metadata import dataset_directory
from pi0_jax.errors import InputError
from pi0_jax.report.cards import mixture_cards, summary, write_cards
from pi0_jax.train.config import from_mapping

from . import app
from .recipes import config_flag, config_mapping

# fmt: off
_CONFIG = config_flag(help="The run, which says what no flag says.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder or URL of DIR/<name>/<version>/.")
_DATASETS = flags.DEFINE_list("datasets", None,
    "Names of datasets; by default the config's, or every known one that is in data_dir.")
_INDEX_DIR = flags.DEFINE_string("index_dir", None,
    "Where indices go; by default each lies in its dataset's folder.")
_WORKERS = flags.DEFINE_integer("workers", default_workers(),
    "Processes that read and check, a shard each at a time.", lower_bound=1)
_DECODE_ALL = flags.DEFINE_bool("decode_all", False,
    "Decode every image once; by default one step of each 64th episode.")
_SKIP = flags.DEFINE_integer("skip_bad_episodes", 0,
    "Bad episodes of a dataset that may be left out; each is listed.", lower_bound=0)
_CHECK = flags.DEFINE_bool("check", False,
    "Verify the checksums of all columns of indices that are there; by default of at most 1 GB.")
_REPORT = flags.DEFINE_string("report", None, "Folder for a page with pictures of each dataset.")
_HORIZON = flags.DEFINE_integer("horizon", None,
    "Steps of the report's action chunks; the config's, or 50.", lower_bound=1)
# fmt: on


@app.command
def main() -> None:
    """Opens or builds every index; what a flag says comes before what the config says."""
    run = from_mapping(config_mapping(_CONFIG)) if _CONFIG.present else None
    data_dir = _DATA_DIR.value or (run.data_dir if run else "")
    if not data_dir:
        raise InputError("expected --data_dir or --config, found neither")
    named = [*run.datasets, *run.statistics_only] if run else None
    names = _DATASETS.value or (datasets_in(data_dir) if named is None else named)
    own, kept = (run.own_datasets, run.keep_empty_language) if run else ({}, ())
    rows = [find_row(name, own, keep_empty_language=kept) for name in dict.fromkeys(names)]
    for row in rows:
        # A dataset that is missing is told at once, not after hours of building the others.
        dataset_directory(row, data_dir)
    index_dir = _INDEX_DIR.value or (run.index_dir if run else "") or None
    skip = _SKIP.value if _SKIP.present or not run else run.skip_bad_episodes
    indices = []
    for row in rows:
        start = time.monotonic()
        indices.append(build_or_open(
            row, data_dir, index_dir, workers=_WORKERS.value, decode_all=_DECODE_ALL.value,
            skip_bad_episodes=skip, check=_CHECK.value,
        ))  # fmt: skip
        print(summary(indices[-1], time.monotonic() - start))
    if _REPORT.value:
        horizon = _HORIZON.value or (run.horizon if run else 50)
        mixed = run.weights if run and not _DATASETS.value else ()
        cards = mixture_cards(indices, horizon, mixed, run.frames_power if run else 0.0)
        print(f"report: {write_cards(cards, Path(_REPORT.value))}")


if __name__ == "__main__":
    main()
