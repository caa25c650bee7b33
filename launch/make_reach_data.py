"""Writes demonstrations of the reach world as RLDS datasets.

python -m launch.make_reach_data --data_dir=DIR
"""

from absl import flags

from pi0_jax.sim.demonstrations import write_reach_data

from . import app

_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder that will hold reach_arm3/, reach_arm4/ and reach_arm5/.",
    required=True,
)
_EPISODES = flags.DEFINE_integer(
    "episodes", 600, "Training episodes of each robot that is trained on."
)
_VAL_EPISODES = flags.DEFINE_integer("val_episodes", 32, "Validation episodes of each robot.")
_HELDOUT_EPISODES = flags.DEFINE_integer(
    "heldout_episodes", 32, "Training episodes of the held-out robot, for its statistics."
)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same bytes.", lower_bound=0)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that simulate and render.")


@app.command
def main() -> None:
    folders = write_reach_data(
        _DATA_DIR.value,
        episodes=_EPISODES.value,
        val_episodes=_VAL_EPISODES.value,
        heldout_episodes=_HELDOUT_EPISODES.value,
        seed=_SEED.value,
        workers=_WORKERS.value,
    )
    for folder, written in folders.items():
        print(f"{folder}: {'written' if written else 'there already, with the same settings'}")


if __name__ == "__main__":
    main()
