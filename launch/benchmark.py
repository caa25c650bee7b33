"""Measures, and prints tables.

python -m launch.benchmark data [--folder=DIR] [--frames=20000] [--seconds=30]      reading batches, beside a tf.data pipeline
python -m launch.benchmark index                                                    building and opening an index
python -m launch.benchmark train [--variant=pi0 --batch=32] [--config=FILE]         training steps, beside large matrix products
"""

import json
import tempfile
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch.app import config_mapping, run
from pi0_jax.errors import InputError

_FOLDER = flags.DEFINE_string("folder", "/tmp/pi0_jax_benchmark", "Where datasets are made; about 15 GB with the large synthetic index.")
_FRAMES = flags.DEFINE_integer("frames", 20_000, "Frames of the dataset.", lower_bound=1000)
_SECONDS = flags.DEFINE_float("seconds", 30.0, "How long each contender reads.", lower_bound=1.0)

_CONFIG = config_flags.DEFINE_config_file("config", "configs/reach.py", "train: the run; single fields by --config.field=value.")
_VARIANT = flags.DEFINE_string("variant", None, "train: a model of this size, with its usual settings, in place of the config's.")
_BATCH = flags.DEFINE_integer("batch", None, "train: samples in a step, in place of the config's.", lower_bound=1)
_CAMERAS = flags.DEFINE_integer("cameras", 3, "train: cameras of each sample.", lower_bound=1, upper_bound=3)
_STEPS = flags.DEFINE_integer("steps", 20, "train: steps that are timed.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "train: a file for the same numbers.")


def _data() -> None:
    from pi0_jax.benchmark import data

    folder = Path(_FOLDER.value, f"{_FRAMES.value}-frames")  # of another size, another dataset
    print(data.table(data.benchmark_data(folder, frames=_FRAMES.value, seconds=_SECONDS.value)))
    print()
    print(data.mixing_table(folder))


def _index() -> None:
    from pi0_jax.benchmark import index

    print(index.table(index.benchmark_index()))
    with tempfile.TemporaryDirectory() as folder:
        print(index.benchmark_opening(Path(folder)))


def _train() -> None:
    from pi0_jax.benchmark import train

    changes = config_flags.get_override_values(flags.FLAGS["config"])
    sized = train.sized(config_mapping(_CONFIG), changes, variant=_VARIANT.value, batch=_BATCH.value)
    speed = train.benchmark_train(sized, cameras=_CAMERAS.value, steps=_STEPS.value)
    print(train.table(speed))
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(speed.to_json()) + "\n", encoding="utf-8")


_COMMANDS = {"data": _data, "index": _index, "train": _train}


def main(command: str) -> None:
    if command not in _COMMANDS:
        raise InputError(f"expected what to measure, {' or '.join(_COMMANDS)}, found {command!r}")
    _COMMANDS[command]()


if __name__ == "__main__":
    run(main, command="what to measure")
