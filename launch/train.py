"""Trains π0, or goes on where the workdir stopped: python -m launch.train --config=configs/reach.py --workdir=DIR."""

from absl import flags
from ml_collections import config_flags

from launch import app
from pi0_jax.config import from_mapping
from pi0_jax.errors import InputError
from pi0_jax.train.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/; single fields by --config.field=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    try:
        config = _CONFIG.value.to_dict()
    except OSError as error:  # a file that is not there or does not load; ml_collections says so on access
        raise InputError(str(error.__cause__ or error)) from error
    train(from_mapping(config), _WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
