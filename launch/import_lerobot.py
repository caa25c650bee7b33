"""Imports a LeRobot dataset (LeRobotDataset v2.1 or v3.0) as RLDS, and drafts what a config needs.

python -m launch.import_lerobot --input=DIR --output=DATA_DIR [--name=NAME] > my_robot.py

An import that is stopped goes on where it was when the command is given again. The draft of the
dataset's row and of the robot's record is printed as Python. A person completes it.
"""

import sys
from pathlib import Path

from absl import flags

from pi0_jax.data.index.workers import default_workers
from pi0_jax.data.write import JPEG_QUALITY
from pi0_jax.errors import InputError

from . import app

with app.one_line_errors():
    from pi0_jax.data.lerobot.draft import draft
    from pi0_jax.data.lerobot.importer import import_lerobot
    from pi0_jax.data.lerobot.steps import Encoding

_INPUT = flags.DEFINE_string("input", None, "Folder of the LeRobot dataset.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of RLDS datasets; OUTPUT/NAME/1.0.0/ is written.", required=True
)
_NAME = flags.DEFINE_string("name", "", "The RLDS dataset's name; by default the folder's.")
_IMAGES = flags.DEFINE_enum(
    "images", "jpeg", ["jpeg", "png"], "PNG loses nothing and needs about five times the space."
)
_QUALITY = flags.DEFINE_integer(
    "quality", JPEG_QUALITY, "Of JPEG; colour has full resolution.", lower_bound=1, upper_bound=100
)
_WITHOUT = flags.DEFINE_list("without", [], "Features that are left out.")
_SKIP = flags.DEFINE_list("skip_episodes", [], "Numbers of episodes that are left out.")
_TOLERANCE = flags.DEFINE_float(
    "tolerance_s", 1e-4, "How far times may be from the dataset's rate, in seconds."
)
_ROUND = flags.DEFINE_bool(
    "round_float64", False, "Round numbers that float32, which RLDS has, does not hold."
)
_WORKERS = flags.DEFINE_integer(
    "workers", default_workers(), "Processes that decode and encode.", lower_bound=1
)


@app.command
def main() -> None:
    if wrong := [text for text in _SKIP.value if not text.isdecimal()]:
        raise InputError(f"flag --skip_episodes: expected numbers, found {wrong[0]!r}")
    imported = import_lerobot(
        Path(_INPUT.value),
        Path(_OUTPUT.value),
        name=_NAME.value,
        encoding=Encoding(
            "png" if _IMAGES.value == "png" else "jpeg",
            _QUALITY.value,
            _ROUND.value,
            _TOLERANCE.value,
        ),
        without=_WITHOUT.value,
        skip_episodes=[int(text) for text in _SKIP.value],
        workers=_WORKERS.value,
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in imported.episodes.items())
    said = "written" if imported.written else "there already, with the same settings"
    print(
        f"{imported.folder}: {said}; episodes {counts}; {imported.frames:,} frames", file=sys.stderr
    )
    print(draft(Path(_INPUT.value), imported.declared, imported.folder))


if __name__ == "__main__":
    main()
