"""Writes demonstrations of Meta-World's scripted experts as an RLDS dataset.

python -m launch.make_metaworld_data --data_dir=DIR --tasks=mt5 --simulator_python=PYTHON

The simulator's Python is that of `make metaworld-env`.
"""

import json
from pathlib import Path

from absl import flags

from pi0_jax.sim.benchmark import families
from pi0_jax.sim.metaworld.data import EXPERT_FILE, expert_table, write_metaworld_data

from . import app

# fmt: off
_DATA_DIR = flags.DEFINE_string("data_dir", None,
    "Folder that will hold metaworld_held/ (or metaworld/).", required=True)
_SIMULATOR = flags.DEFINE_string("simulator_python", None,
    "Python that has Meta-World and this package.", required=True)
_TASKS = flags.DEFINE_string("tasks", "mt5", "A task, or a group: mt1, mt5, mt10, mt50, easy, ...")
_PROTOCOL = flags.DEFINE_enum("protocol", "metaworld_held", ["metaworld", "metaworld_held"],
    "metaworld: LeRobot's images, an action a tick; metaworld_held: small ones, an action five.")
_EPISODES = flags.DEFINE_integer("episodes", 200, "Training episodes of each task.", lower_bound=1)
_VAL = flags.DEFINE_integer("val_episodes", 8, "Validation episodes of each task.", lower_bound=1)
_NOISE = flags.DEFINE_float("noise", 0.15,
    "Standard deviation that is added to the actions of every second episode.", lower_bound=0.0)
_SIDE = flags.DEFINE_integer("side", 0, "Pixels of an image's side; 0: the protocol's.",
    lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same bytes.", lower_bound=0)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; else one a core.", lower_bound=1)
# fmt: on


@app.command
def main() -> None:
    _, tasks = families.find(f"{_PROTOCOL.value}:{_TASKS.value}")
    folder, written = write_metaworld_data(
        Path(_DATA_DIR.value), _SIMULATOR.value, tasks, protocol=_PROTOCOL.value,
        episodes=_EPISODES.value, val_episodes=_VAL.value, seed=_SEED.value, noise=_NOISE.value,
        side=_SIDE.value, workers=_WORKERS.value,
    )  # fmt: skip
    print(expert_table(json.loads((folder.parent / EXPERT_FILE).read_text())))
    print(f"{folder}: {'written' if written else 'there already, with the same settings'}")


if __name__ == "__main__":
    main()
