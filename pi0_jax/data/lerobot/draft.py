"""Drafts the row and the robot's record of an imported dataset, as Python that a person completes.

What the dataset says is written down. What it cannot say is a question, ASK, which no Python knows:
the file does not run before all of them are answered.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pi0_jax.data.lerobot.declared import Declared, Feature
from pi0_jax.data.lerobot.tables import read_lines
from pi0_jax.errors import expecting

_STATE, _ACTION = "observation.state", "action"
_GRIPPER = re.compile("grip|finger|jaw|claw|hand", re.IGNORECASE)
# Smallest and largest recorded value of each number of a feature.
Range = tuple[list[float], list[float]]


def draft(source: Path, declared: Declared, dataset: Path) -> str:
    """Returns a config file for an imported dataset, with questions where a person must say.

    Args:
        source: the LeRobot dataset.
        declared: what its meta/info.json says: version, rate and features.
        dataset: the folder of the RLDS dataset that was written, data_dir/name/version.
    """
    by_name = {feature.name: feature for feature in declared.features}
    state, action = (by_name.get(name) for name in (_STATE, _ACTION))
    ranges = _ranges(source, declared)
    name = dataset.parent.name
    robot = declared.info["robot_type"] if "robot_type" in declared.info else None
    cameras = _camera_names(declared)
    lines = [
        f"# A draft of the row and the robot's record of {name}, made of a LeRobotDataset {declared.version}.",
        "# Each ASK is a question that the dataset does not answer: write the answer in its place.",
        "from pi0_jax.train import config",
        "",
        '# "absolute" for targets, "relative" for changes since the last step; delta=True if the model is to learn',
        "# an absolute target's difference from the state of the same name.",
        "ACTION = dict(kind=ASK, delta=ASK)",
        "",
        f"{name.upper()} = dict(",
        f"    versions=({_text(dataset.name)},),",
        "    embodiment=dict(",
        f"        robot={_text(robot) if robot else 'ASK'},",
        "        # Which of the model's slots does each camera fill: base_0_rgb, left_wrist_0_rgb or right_wrist_0_rgb?",
        "        # Delete a camera that fills none, here and below.",
        f"        cameras={{{', '.join(f'ASK: {_text(camera)}' for camera in cameras)}}},",
        "        # Units: rad, deg, m, 1 and so on. What is read and told where a gripper is open, and closed?",
        "        state=[",
        *_dimensions(state, ranges, ""),
        "        ],",
        "        actions=[",
        *_dimensions(action, ranges, ", **ACTION"),
        "        ],",
        f"        control_hz={declared.fps!r},",
        "        execute_steps=ASK,  # of a chunk, before the next one is asked for; half a second is usual",
        "    ),",
        '    # order="BGR" where the pictures of `launch.index --report` have red and blue exchanged.',
        "    cameras={",
        *(
            f"        {_text(camera)}: dict(path={_text(feature.field)}),"
            for camera, feature in zip(cameras, declared.cameras, strict=True)
        ),
        "    },",
        "    fields=[  # the state first and then the action",
        *(_field(feature, declared) for feature in (state, action)),
        "    ],",
        '    language=dict(paths=("steps/language_instruction",)),',
        ")",
        "",
        "",
        "def get_config():",
        "    c = config.defaults()",
        f"    c.data_dir = {_text(str(dataset.parent.parent))}",
        f"    c.own_datasets = {{{_text(name)}: {name.upper()}}}",
        f"    c.datasets = ({_text(name)},)",
        "    return c",
    ]
    return "\n".join(lines)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _camera_names(declared: Declared) -> list[str]:
    """Returns a name for each camera: the last part of its path, or the path where two have that."""
    names = [feature.path[-1] for feature in declared.cameras]
    return [
        name if names.count(name) == 1 else "_".join(feature.path)
        for name, feature in zip(names, declared.cameras, strict=True)
    ]


def _dimensions(feature: Feature | None, ranges: dict[str, Range], more: str) -> Iterator[str]:
    """Yields a line for each number of the state or of the action."""
    if feature is None or len(feature.shape) != 1:
        yield "            ASK,  # its numbers, each with name and unit"
        return
    if not feature.names:
        yield "            # The dataset names none of these: what is each one, and is one of them a gripper (open=, closed=)?"
    low, high = ranges[feature.name] if feature.name in ranges else ([], [])
    for place in range(feature.shape[0]):
        name = feature.names[place] if feature.names else f"{feature.path[-1]}_{place}"
        unit = _text(feature.units[place]) if feature.units else "ASK"
        ends = ", open=ASK, closed=ASK" if _GRIPPER.search(name) else ""
        kind = ", kind=ASK" if more and ends else more
        recorded = f"  # recorded: {low[place]:g} to {high[place]:g}" if low else ""
        yield f"            dict(name={_text(name)}, unit={unit}{kind}{ends}),{recorded}"


def _field(feature: Feature | None, declared: Declared) -> str:
    if feature is None or len(feature.shape) != 1:
        others = [other.field for other in declared.features if other.shape and not other.is_camera]
        return (
            f"        dict(path=ASK, shape=ASK, dtype=ASK),  # one of {', '.join(others) or 'none'}"
        )
    shape = f"({feature.shape[0]},)"
    return f"        dict(path={_text(feature.field)}, shape={shape}, dtype={_text(feature.stored_dtype)}),"


def _ranges(source: Path, declared: Declared) -> dict[str, Range]:
    """Returns the ranges of state and action by the dataset's own statistics.

    Returns:
        Feature name -> the lowest and the highest value of each of its numbers. A feature that the
        statistics do not cover is missing.

    Raises:
        InputError: the statistics are no JSON, or have no min and max of the feature's size.
    """
    meta = source / "meta"
    v21 = declared.version == "v2.1"
    file = meta / ("episodes_stats.jsonl" if v21 else "stats.json")
    sizes = {
        feature.name: feature.shape[0]
        for feature in declared.features
        if feature.name in (_STATE, _ACTION) and len(feature.shape) == 1
    }
    with expecting("statistics with min and max", str(file)):
        if not file.is_file():
            found = []
        elif v21:
            found = [record["stats"] for record in read_lines(file) if "stats" in record]
        else:
            found = [json.loads(file.read_text("utf-8"))]
        return {
            name: (_fold(min, name, size, found), _fold(max, name, size, found))
            for name, size in sizes.items()
            if found and all(name in stats for stats in found)
        }


def _fold(how: Any, name: str, size: int, found: Sequence[Any]) -> list[float]:
    """Returns the smallest (min) or largest (max) value of each number over all statistics."""
    rows = [[float(value) for value in stats[name][how.__name__]] for stats in found]
    if any(len(row) != size for row in rows):
        raise ValueError(f"another number of values than {size} for {name}")
    return [how(column) for column in zip(*rows, strict=True)]
