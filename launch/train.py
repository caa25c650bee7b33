"""Trains π0, or goes on where the workdir stopped: python -m launch.train --config=configs/reach.py --workdir=DIR.

With --compile_only --topology=v5e:8x8 it says whether the run fits that TPU slice, on any machine: bytes, collectives, predicted time.
"""

from absl import flags
from ml_collections import config_flags

from launch import app
from pi0_jax.ahead.report import compile_only
from pi0_jax.config import RunConfig, from_mapping
from pi0_jax.errors import InputError
from pi0_jax.train.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/; single fields by --config.field=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics.")
_COMPILE_ONLY = flags.DEFINE_bool(
    "compile_only", False, "Compile the train step and the sampler for --topology; status 1 if they do not fit."
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "A TPU slice: v5e:4x4, v6e:8x8, v5p:4x4x4; a single chip: v5e:1x1, v5p:1x1x1.")
flags.mark_flags_as_required(["config"])


def main() -> int | None:
    try:
        config = _CONFIG.value.to_dict()
    except OSError as error:  # a file that is not there or does not load; ml_collections says so on access
        raise InputError(str(error.__cause__ or error)) from error
    run = from_mapping(config)
    needed = _TOPOLOGY if _COMPILE_ONLY.value else _WORKDIR
    if needed.value is None:
        raise InputError(f"flag --{needed.name} is missing")
    return _compile_only(run) if _COMPILE_ONLY.value else train(run, _WORKDIR.value)


def _compile_only(run: RunConfig) -> int:
    fits = True
    for report in compile_only(run, _TOPOLOGY.value):
        print(report.text, flush=True)
        fits = fits and report.fits
    return 0 if fits else 1


if __name__ == "__main__":
    app.run(main)
