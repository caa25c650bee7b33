"""openpi's checkpoints carry their statistics in norm_stats.json, one file for each robot.

    <checkpoint>/assets/<asset id>/norm_stats.json
    {"norm_stats": {"state": {"mean": [...], "std": [...],
                              "q01": [...] or null, "q99": [...] or null},
                    "actions": {the same}}}

It knows no minimum and maximum, and its vectors may be padded to the model's dimension.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi0_jax.errors import InputError
from pi0_jax.preprocess import normalize
from pi0_jax.preprocess.normalize import Statistics, VectorStatistics

_KEYS = ("mean", "std", "q01", "q99")
_NEUTRAL = 1e-6  # how exactly padding is 0 or 1


def norm_stats_file(checkpoint: Path, asset_id: str) -> Path:
    """Returns where a checkpoint has a robot's statistics."""
    return checkpoint / "assets" / asset_id / "norm_stats.json"


def save(file: Path, statistics: Statistics) -> None:
    """Writes the file, whole or not at all, and its folder.

    Minimum and maximum are left out, and nothing is padded.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = {
        part: {key: vector[key] for key in _KEYS}
        for part, vector in normalize.to_json(statistics).items()
    }
    normalize.write_json(file, {"norm_stats": parts})


def from_record(record: Mapping[str, Any], source: str) -> Statistics:
    """Reads the content of a norm_stats.json, with its padding.

    Raises:
        InputError: it has another format.
    """
    parts = record["norm_stats"] if "norm_stats" in record else None
    if not isinstance(parts, dict):
        raise InputError(
            f"{source}: expected an object norm_stats with state and actions, found {', '.join(record) or 'nothing'}"
        )
    absent = dict.fromkeys(normalize.FIELDS)
    complete = {
        part: absent | vector if isinstance(vector, dict) else vector
        for part, vector in parts.items()
    }
    return normalize.from_json(complete, source)


def without_padding(
    statistics: Statistics, state_dims: int, action_dims: int, source: str
) -> Statistics:
    """Returns the statistics of the robot's own dimensions.

    Args:
        statistics: the statistics, padded or not.
        state_dims: the number of the robot's state dimensions.
        action_dims: the number of its action dimensions.
        source: the beginning of messages.

    Raises:
        InputError: there are fewer dimensions than the robot has, or further ones that are not
            padding. Padding has mean 0 and standard deviation 0 or 1, to 1e-6.
    """
    return Statistics(
        state=_without_padding(statistics.state, state_dims, f"{source}: state"),
        actions=_without_padding(statistics.actions, action_dims, f"{source}: actions"),
    )


def _without_padding(vector: VectorStatistics, dims: int, where: str) -> VectorStatistics:
    """Cuts one vector to `dims` dimensions, after it has checked the rest."""
    if len(vector.mean) < dims:
        raise InputError(
            f"{where}: expected at least the robot's {dims} dimensions, found {len(vector.mean)}"
        )
    for i in range(dims, len(vector.mean)):
        mean, std = vector.mean[i], vector.std[i]
        if abs(mean) > _NEUTRAL or min(abs(std), abs(std - 1)) > _NEUTRAL:
            expected = f"padding with mean 0 and std 0 or 1 after the robot's {dims} dimensions"
            raise InputError(
                f"{where}[{i}]: expected {expected}, found mean {mean:g} and std {std:g}"
            )
    optional = (None if values is None else values[:dims] for values in vector[2:])
    return VectorStatistics(vector.mean[:dims], vector.std[:dims], *optional)
