"""Measures, and prints a table; --json=FILE writes its numbers.
python -m launch.benchmark data [--folder=DIR] [--frames=20000] [--seconds=30]      reading batches, beside a tf.data pipeline
python -m launch.benchmark index                                                    building and opening an index
python -m launch.benchmark train [--variant=pi0 --config.batch_size=32]             training steps, beside large matrix products
python -m launch.benchmark policy [--variant=mid] [--dtype=float32]                 latency of a policy's parts; cold and warm start
python -m launch.benchmark serve [--variant=mid] [--dtype=float32]                  what the server adds to a call
python -m launch.benchmark convert [--folder=DIR] [--to=lerobot] [--dtype=float32]  a full-size checkpoint to another format and back
"""

import json
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from launch import app
from pi0_jax.benchmark import convert, data, index, policy, train
from pi0_jax.errors import InputError

_FOLDER = flags.DEFINE_string("folder", "/tmp/pi0_jax_benchmark", "Where files are made: for data about 15 GB, for convert about 40 GB.")
_FRAMES = flags.DEFINE_integer("frames", 20_000, "data: frames of the dataset.", lower_bound=1000)
_SECONDS = flags.DEFINE_float("seconds", 30.0, "data: how long each contender reads.", lower_bound=1.0)
_CONFIG = config_flags.DEFINE_config_file("config", "configs/reach.py", "train: the run; single fields by --config.field=value.")
_VARIANT = flags.DEFINE_string("variant", None, "train, policy, serve: nano or pi0; mid, of 61 million parameters, is not trained.")
_CAMERAS = flags.DEFINE_integer("cameras", 3, "train: cameras of each sample.", lower_bound=1, upper_bound=3)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "policy, serve: of the products; convert: of the weights.")
_CALLS = flags.DEFINE_integer("calls", 20, "train: steps; policy, serve: calls of each part, requests.", lower_bound=1)
_UNROLL = flags.DEFINE_bool("unroll_steps", False, "policy: compile each Euler step by itself instead of a loop.")
_SCAN = flags.DEFINE_bool("scan_layers", None, "policy: compile one layer and loop, or each by itself; unset: as a policy chooses.")
_TO = flags.DEFINE_string("to", "lerobot", "convert: the format to convert to and back from.")
_JSON = flags.DEFINE_string("json", None, "A file for the same numbers.")


def _data() -> tuple[str, Any]:
    return data.report(Path(_FOLDER.value, f"{_FRAMES.value}-frames"), frames=_FRAMES.value, seconds=_SECONDS.value)


def _convert() -> tuple[str, Any]:
    return convert.report(Path(_FOLDER.value), to=_TO.value, dtype=_DTYPE.value, variant="pi0")


def _train() -> tuple[str, Any]:
    changes = config_flags.get_override_values(flags.FLAGS["config"])
    run = train.sized(app.config_mapping(_CONFIG), changes, variant=_VARIANT.value)
    return train.report(run, cameras=_CAMERAS.value, steps=_CALLS.value)


def _policy() -> tuple[str, Any]:
    how = dict(scan_layers=_SCAN.value, unroll_steps=_UNROLL.value)
    return policy.report(_VARIANT.value or "mid", _DTYPE.value, calls=_CALLS.value, **how)


def _serve() -> tuple[str, Any]:
    from pi0_jax.benchmark import serving  # wants the extra "serve"

    return serving.report(_VARIANT.value or "mid", _DTYPE.value, calls=_CALLS.value)


_COMMANDS = {"data": _data, "index": index.report, "train": _train, "policy": _policy, "serve": _serve, "convert": _convert}


def main(command: str) -> None:
    if command not in _COMMANDS:
        raise InputError(f"expected what to measure, one of {', '.join(_COMMANDS)}, found {command!r}")
    text, numbers = _COMMANDS[command]()
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(main, command="what to measure")
