"""Writes the moments of a run's demonstrations that nearest neighbours compare, for launch.evaluate.

python -m launch.neighbours --checkpoint=DIR --output=FILE.npz
"""

from pathlib import Path

import numpy as np
from absl import flags

from pi0_jax import checkpoints
from pi0_jax.data.datasets import find_row
from pi0_jax.data.index import open_index
from pi0_jax.errors import InputError
from pi0_jax.sim.benchmark.controls import Neighbours, small_images
from pi0_jax.train import config

from . import app

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir or step.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data are; else as the run's config.")
_OUTPUT = flags.DEFINE_string("output", None, "The new file.", required=True)


@app.command
def main() -> None:
    step = checkpoints.find(_CHECKPOINT.value)
    stored = checkpoints.read_description(step)
    run = config.from_halves(stored.policy, stored.training, f"{step}: config")
    if len(run.datasets) != 1:
        raise InputError(f"{step}: expected a run on one dataset, found {', '.join(run.datasets)}")
    row = find_row(run.datasets[0], run.own_datasets, keep_empty_language=run.keep_empty_language)
    index = open_index(row, _DATA_DIR.value or run.data_dir, run.index_dir or None)
    frames, cameras = index.frames("train"), list(row.embodiment.cameras.values())
    prompts, states, pixels = [], [], []
    for frame in frames:  # whole images of all frames need not fit into memory
        one = index.observation(int(frame))
        prompts.append(str(one["prompt"]))
        states.append(one["state"])
        pixels.append(small_images(one, cameras))
    chunks = index.chunks(frames, run.horizon)[0]
    moments = Neighbours(cameras, prompts, np.stack(states), np.stack(pixels), chunks)
    Path(_OUTPUT.value).parent.mkdir(parents=True, exist_ok=True)
    moments.save(Path(_OUTPUT.value))
    print(f"{_OUTPUT.value}: {len(frames):,} moments of {row.name}")


if __name__ == "__main__":
    main()
