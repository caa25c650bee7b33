"""Measures, and prints tables.

python -m launch.benchmark data [--folder=DIR] [--frames=20000] [--seconds=30]      reading batches, beside a tf.data pipeline
python -m launch.benchmark index                                                    building and opening an index
python -m launch.benchmark convert [--folder=DIR] [--to=lerobot] [--dtype=float32]  a full-size checkpoint to another format and back
"""

import tempfile
from pathlib import Path

from absl import flags

from launch.app import run
from pi0_jax.errors import InputError

_FOLDER = flags.DEFINE_string("folder", "/tmp/pi0_jax_benchmark", "Where datasets are made; about 15 GB with the large synthetic index.")
_FRAMES = flags.DEFINE_integer("frames", 20_000, "Frames of the dataset.", lower_bound=1000)
_TO = flags.DEFINE_string("to", "lerobot", "Format to convert to and back from.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights.")
_SECONDS = flags.DEFINE_float("seconds", 30.0, "How long each contender reads.", lower_bound=1.0)


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


def _convert() -> None:
    from pi0_jax.benchmark import convert

    folder = Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    print(convert.table(convert.benchmark_convert(folder, to=_TO.value, dtype=_DTYPE.value, variant="pi0")))
    print("every leaf came back bit for bit")


_COMMANDS = {"data": _data, "index": _index, "convert": _convert}


def main(command: str) -> None:
    if command not in _COMMANDS:
        raise InputError(f"expected what to measure, {' or '.join(_COMMANDS)}, found {command!r}")
    _COMMANDS[command]()


if __name__ == "__main__":
    run(main, command="what to measure")
