"""Trains π0, or goes on where the workdir stopped: python -m launch.train --config=configs/reach.py --workdir=DIR."""

from absl import flags
from ml_collections import config_flags

from launch import app
from pi0_jax.config import from_mapping
from pi0_jax.train.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/; single fields by --config.field=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    train(from_mapping(app.config_mapping(_CONFIG)), _WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
