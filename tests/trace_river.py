"""Which files a reader meets who follows the river, counted by running it.

python -m tests.trace_river [--list]

Two journeys are traced: from RLDS files through one training run of one step (index built, validated, saved), and
from a checkpoint to a chunk (`Policy.open`, one call). A file counts if one of its functions ran.
"""

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = Path(__file__).parents[1] / "pi0_jax"


def traced(journey: Callable[[], Any]) -> set[Path]:
    """Runs a journey and returns the package's files of which a function ran in it."""
    codes: set[Any] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            codes.add(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        journey()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    ran = {Path(code.co_filename) for code in codes if code.co_name != "<module>"}
    return {file for file in ran if file.is_relative_to(PACKAGE)}


def lines(files: set[Path]) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true", help="print the files")
    flags = parser.parse_args()
    from pi0_jax import train
    from pi0_jax.policy import Policy
    from tests import policies
    from tests.tiny_data import write_reach
    from tests.training import TINY

    def journeys(folder: Path) -> dict[str, Callable[[], Any]]:
        write_reach(folder / "data", lengths=(6,) * 8)
        config = train.load("reach")
        config.update(dict(TINY, steps=1, warmup_steps=0, data_dir=str(folder / "data")))
        opened: list[Policy] = []
        return {
            "a training run": lambda: train.run(config, folder / "run"),
            "Policy.open": lambda: opened.append(Policy.open(folder / "run")),
            "Policy.act": lambda: opened[0](policies.observation("reach_arm3")),
        }

    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        for journey in journeys(
            Path(first)
        ).values():  # imports run functions too: tables of records
            journey()
        files = {name: traced(journey) for name, journey in journeys(Path(second)).items()}
    files["open + act"] = files["Policy.open"] | files["Policy.act"]
    for name, met in files.items():
        print(f"{name}: {len(met)} files, {lines(met):,} lines")
        for file in sorted(met if flags.list else ()):
            print(f"    {file.relative_to(PACKAGE)}")
    everything = set(PACKAGE.rglob("*.py"))
    print(f"the package: {len(everything)} files, {lines(everything):,} lines")


if __name__ == "__main__":
    main()
