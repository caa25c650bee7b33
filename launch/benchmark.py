"""Measures, and prints a table; --json=FILE writes its numbers.

python -m launch.benchmark data      reading batches, beside a tf.data pipeline
python -m launch.benchmark index     building and opening an index
python -m launch.benchmark train     training steps, beside large matrix products
python -m launch.benchmark policy    latency of a policy's parts; cold and warm start
python -m launch.benchmark serve     what the server adds to a call
python -m launch.benchmark convert   a full-size checkpoint to another format and back
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from pi0_jax.errors import InputError

from . import app
from .recipes import config_flag, config_mapping

# fmt: off
_FOLDER = flags.DEFINE_string("folder", "/tmp/pi0_jax_benchmark",
    "Where files are made: for data about 15 GB, for convert about 40 GB.")
_FRAMES = flags.DEFINE_integer("frames", 20_000, "data: frames of the dataset.", lower_bound=1000)
_SECONDS = flags.DEFINE_float("seconds", 30.0, "data: how long each one reads.", lower_bound=1.0)
_CONFIG = config_flag("reach", help="train: the run.")
_VARIANT = flags.DEFINE_string("variant", None,
    "train, policy, serve: nano, pi0, pi05_nano or pi05; policy, serve: mid and pi05_mid too.")
_CAMERAS = flags.DEFINE_integer("cameras", 3, "train: cameras.", lower_bound=1, upper_bound=3)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"],
    "policy, serve: of the products; convert: of the weights.")
_CALLS = flags.DEFINE_integer("calls", 20, "train: steps; policy, serve: calls.", lower_bound=1)
_UNROLL = flags.DEFINE_bool("unroll_steps", False, "policy: compile each Euler step, no loop.")
_SCAN = flags.DEFINE_bool("scan_layers", None,
    "policy: compile one layer and loop, or each by itself; unset: as a policy chooses.")
_TO = flags.DEFINE_string("to", "lerobot", "convert: the format to convert to and back from.")
_JSON = flags.DEFINE_string("json", None, "A file for the same numbers.")


def _report(command: str) -> tuple:
    # Each command imports its own module alone, because a machine may lack what the others need.
    folder, calls, of = Path(_FOLDER.value), _CALLS.value, (_VARIANT.value or "mid", _DTYPE.value)
    match command:
        case "data":
            from benchmarks import data
            place, frames = folder / f"{_FRAMES.value}-frames", _FRAMES.value
            return data.report(place, frames=frames, seconds=_SECONDS.value)
        case "index":
            from benchmarks import index
            return index.report()
        case "train":
            from benchmarks import train
            changes = config_flags.get_override_values(flags.FLAGS["config"])
            run = train.sized(config_mapping(_CONFIG), changes, variant=_VARIANT.value)
            return train.report(run, cameras=_CAMERAS.value, steps=calls)
        case "policy":
            from benchmarks import policy
            return policy.report(*of, calls=calls, scan_layers=_SCAN.value, unroll_steps=_UNROLL.value)
        case "serve":
            from benchmarks import serving
            return serving.report(*of, calls=calls)
        case "convert":
            from benchmarks import convert
            return convert.report(folder, to=_TO.value, dtype=_DTYPE.value, variant="pi0")
    raise InputError(f"expected data, index, train, policy, serve or convert; found {command!r}")
# fmt: on


def measure(command: str) -> None:
    text, numbers = _report(command)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    print(text)


main = app.command(measure, argument="what to measure")

if __name__ == "__main__":
    main()
