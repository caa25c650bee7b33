"""Measures, and prints tables.

python -m launch.benchmark data [--folder=DIR] [--frames=20000] [--seconds=30]      reading batches, beside a tf.data pipeline
python -m launch.benchmark index                                                    building and opening an index
python -m launch.benchmark convert [--folder=DIR] [--to=lerobot] [--dtype=float32]  a full-size checkpoint to another format and back
python -m launch.benchmark policy [--variant=mid] [--dtype=float32] [--json=FILE]   latency of a policy's parts; cold and warm start
python -m launch.benchmark serve [--variant=mid] [--dtype=float32] [--json=FILE]    what the server adds to a call
"""

import json
import tempfile
from pathlib import Path

from absl import flags

from launch.app import run
from pi0_jax.errors import InputError

_FOLDER = flags.DEFINE_string("folder", "/tmp/pi0_jax_benchmark", "Where datasets are made; about 15 GB with the large synthetic index.")
_FRAMES = flags.DEFINE_integer("frames", 20_000, "Frames of the dataset.", lower_bound=1000)
_TO = flags.DEFINE_string("to", "lerobot", "Format to convert to and back from.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights; in which a policy computes (bfloat16: accelerators).")
_SECONDS = flags.DEFINE_float("seconds", 30.0, "How long each contender reads.", lower_bound=1.0)
_VARIANT = flags.DEFINE_enum("variant", "mid", ["nano", "mid", "pi0"], "Of a policy: random weights; mid has 61 million parameters.")
_CALLS = flags.DEFINE_integer("calls", 20, "Calls of each part of a policy, and requests to a server.", lower_bound=1)
_UNROLL = flags.DEFINE_bool("unroll_steps", False, "Compile each Euler step of a policy by itself instead of a loop.")
_JSON = flags.DEFINE_string("json", None, "File for the numbers of policy or serve.")


def _data() -> None:
    from pi0_jax.benchmark import data

    folder = Path(_FOLDER.value, f"{_FRAMES.value}-frames")  # of another size, another dataset
    print(data.table(data.benchmark_data(folder, frames=_FRAMES.value, seconds=_SECONDS.value)))
    print(f"\n{data.mixing_table(folder)}")


def _index() -> None:
    from pi0_jax.benchmark import index

    print(index.table(index.benchmark_index()))
    with tempfile.TemporaryDirectory() as folder:
        print(index.benchmark_opening(Path(folder)))


def _convert() -> None:
    from pi0_jax.benchmark import convert

    Path(_FOLDER.value).mkdir(parents=True, exist_ok=True)
    print(convert.table(convert.benchmark_convert(Path(_FOLDER.value), to=_TO.value, dtype=_DTYPE.value, variant="pi0")))
    print("every leaf came back bit for bit")


def _policy(served: bool = False) -> None:
    from pi0_jax.benchmark import policy, serving

    what, calls = (_VARIANT.value, _DTYPE.value), _CALLS.value
    text, record = serving.report(*what, calls=calls) if served else policy.report(*what, calls=calls, unroll_steps=_UNROLL.value)
    print(text)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(record, indent=1))


_COMMANDS = {"data": _data, "index": _index, "convert": _convert, "policy": _policy, "serve": lambda: _policy(served=True)}


def main(command: str) -> None:
    if command not in _COMMANDS:
        raise InputError(f"expected what to measure, {' or '.join(_COMMANDS)}, found {command!r}")
    _COMMANDS[command]()


if __name__ == "__main__":
    run(main, command="what to measure")
