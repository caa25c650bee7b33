"""The metadata of a checkpoint travel beside its weights.

They are the statistics and embodiment of each robot, the tokenizer, sizes that no tensor shows, and
the training run. Each format holds some of them in its own files. All of them also go into
pi0_jax.json beside these files, which nobody else reads. So what comes back from another format is
what left for it.
"""

import base64
import dataclasses
import json
from collections.abc import Iterator, Mapping
from operator import index
from typing import Any, NamedTuple

import numpy as np

from pi0_jax import policy_config
from pi0_jax.convert.folder import Folder
from pi0_jax.convert.tree import LETTERS, NAMES, Sizes
from pi0_jax.data import storage
from pi0_jax.embodiments import EMBODIMENTS, Embodiment
from pi0_jax.errors import InputError, expecting
from pi0_jax.observation import CAMERA_SLOTS
from pi0_jax.policy_config import PolicyConfig
from pi0_jax.preprocess import normalize
from pi0_jax.preprocess.normalize import Mode, Statistics, VectorStatistics

FILE = "pi0_jax.json"
_FORMAT = 2
PUBLISHED_HORIZON, PUBLISHED_MAX_TOKENS, PUBLISHED_PI05_MAX_TOKENS = 50, 48, 200
PUBLISHED_TOKENIZER = "google/paligemma-3b-pt-224"
PUBLISHED_VOCABULARY = 257_152
_NEUTRAL = 1e-6  # how exactly padding of statistics is 0 or 1
_ROUNDING = 1e-6  # the relative rounding of statistics in float32


class RobotRecord(NamedTuple):
    """Holds a robot's statistics, and its embodiment where it is known.

    Statistics of openpi's files may be padded to the model's dimension, where no embodiment says
    how many dimensions are real.
    """

    statistics: Statistics
    embodiment: Embodiment | None


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Holds what travels beside the weights.

    A field is None, or empty, where the checkpoint does not say it.

    Attributes:
        robots: dataset name -> robot.
        horizon: H, the steps of an action chunk.
        max_tokens: the length to which prompts are padded.
        normalization: how states and actions are normalised.
        tokenizer: a SentencePiece model.
        policy: the policy's config.
        training: the other half of the run's config, see checkpoints.Description.
        position: the steps trained.
        sizes: the model's sizes, by the letters of tree.py.
    """

    robots: Mapping[str, RobotRecord] = dataclasses.field(default_factory=dict)
    horizon: int | None = None
    max_tokens: int | None = None
    normalization: Mode | None = None
    tokenizer: bytes | None = None
    policy: PolicyConfig | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    position: int = 0
    sizes: Sizes = dataclasses.field(default_factory=dict)

    @property
    def mode(self) -> Mode:
        """Returns how states and actions are normalised, as known or else as published."""
        return self.normalization or "zscore"

    def to_json(self) -> dict[str, Any]:
        """Returns the metadata as plain data."""
        robots = {
            name: {
                "statistics": normalize.to_json(robot.statistics),
                "embodiment": robot.embodiment and robot.embodiment.to_json(),
            }
            for name, robot in self.robots.items()
        }
        return {
            "format": _FORMAT,
            "robots": robots,
            "horizon": self.horizon,
            "max_tokens": self.max_tokens,
            "normalization": self.normalization,
            "tokenizer": self.tokenizer and base64.b64encode(self.tokenizer).decode(),
            "policy": self.policy and dataclasses.asdict(self.policy),
            "training": dict(self.training),
            "position": self.position,
            "sizes": {NAMES[letter]: size for letter, size in self.sizes.items()},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], source: str) -> "Metadata":
        """Reads the plain data of this format or the one before, of a file named `source`.

        Raises:
            InputError: the format is another, or a field is missing or wrong.
        """
        found = record.get("format", "none")
        if found not in (1, _FORMAT):
            raise InputError(f"{source}: expected format {_FORMAT}, or 1, found {found}")
        # In format 1 the run's config was one flat record, or null.
        if found == 1:
            with expecting("what an export of format 1 writes", source):
                run = record.get("run")
                policy, training = (None, {}) if run is None else policy_config.split(run)
            record = {**record, "policy": policy, "training": training}
        fields = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in fields if name not in record]:
            raise InputError(f"{source}: lacks {', '.join(missing)}")
        values = {name: record[name] for name in fields}
        with expecting("what an export of ours writes", source):
            robots = values["robots"] = dict(values["robots"])
            for name, robot in robots.items():
                statistics = normalize.from_json(robot["statistics"], source)
                embodiment = robot["embodiment"]
                if embodiment is not None:
                    embodiment = Embodiment.from_json(embodiment, stored=True)
                robots[name] = RobotRecord(statistics, embodiment)
            values["sizes"] = {LETTERS[name]: index(size) for name, size in values["sizes"].items()}
            if values["tokenizer"] is not None:
                values["tokenizer"] = base64.b64decode(values["tokenizer"])
            if values["policy"] is not None:
                values["policy"] = policy_config.from_json(values["policy"], f"{source}: policy")
        return cls(**values)


def read_beside(folder: Folder) -> Metadata | None:
    """Reads what an export of ours left in pi0_jax.json; None where there is no such file."""
    if FILE not in folder:
        return None
    return Metadata.from_json(folder.read_json(FILE), str(folder.file(FILE)))


def with_beside(own: Metadata, folder: Folder) -> Metadata:
    """Returns what pi0_jax.json says, or where it is missing `own`: what the other files say.

    Raises:
        InputError: the two contradict each other.
    """
    beside = read_beside(folder)
    if beside is None:
        return own
    where = str(folder.file(FILE))
    for name in ("horizon", "max_tokens", "normalization"):
        ours, theirs = (vars(metadata)[name] for metadata in (own, beside))
        if ours is not None and ours != theirs:
            raise InputError(f"{where}: {name} is {theirs}, {ours} by the checkpoint's other files")
    if set(own.robots) != set(beside.robots):
        theirs, ours = (", ".join(metadata.robots) or "none" for metadata in (beside, own))
        raise InputError(f"{where}: robots: {theirs}; the checkpoint's other files have {ours}")
    for name, robot in own.robots.items():
        _check_robot(robot, beside.robots[name], beside.mode, f"{where}: {name}")
    return beside


def _check_robot(own: RobotRecord, beside: RobotRecord, mode: Mode, where: str) -> None:
    """Raises InputError if a robot's statistics, cameras or dimensions differ in the two."""
    exported, _ = for_ports(beside, mode)
    vectors = zip(Statistics._fields, beside.statistics, exported, own.statistics, strict=True)
    for part, theirs, written, ours in vectors:
        for field, *kept, found in zip(ours._fields, theirs, written, ours, strict=True):
            # Exports to openpi held the statistics as they are, until they too were `for_ports`.
            known = [values for values in kept if values is not None]
            if found is not None and known and not any(_equal(values, found) for values in known):
                raise InputError(
                    f"{where}: {part}.{field} is not that of the checkpoint's other files"
                )
    traits = [_traits(robot.embodiment) for robot in (own, beside) if robot.embodiment]
    if len(traits) == 2 and traits[0] != traits[1]:
        raise InputError(
            f"{where}: the embodiment's cameras or dimensions are not those of the checkpoint's other files"
        )


def _traits(embodiment: Embodiment) -> tuple[Any, ...]:
    """Returns what of an embodiment the format's own files show."""
    cameras = [embodiment.cameras[slot] for slot in CAMERA_SLOTS if slot in embodiment.cameras]
    return cameras, len(embodiment.state), [dim.delta for dim in embodiment.actions]


def _equal(kept: np.ndarray, found: np.ndarray) -> bool:
    """Returns whether two vectors are equal to the rounding of float32; `found` may be padded."""
    count = len(kept)
    return len(found) >= count and np.allclose(
        kept, found[:count], rtol=_ROUNDING, atol=_ROUNDING * max(1.0, np.abs(kept).max(initial=0))
    )


def choose_robot(metadata: Metadata, name: str | None, source: str) -> tuple[str, RobotRecord]:
    """Returns the named robot; without a name the only one there is.

    Raises:
        InputError: there is no such robot, or several and none is named.
    """
    if not metadata.robots:
        raise InputError(f"{source}: expected a robot's statistics, found none")
    if name is None and len(metadata.robots) == 1:
        return next(iter(metadata.robots.items()))
    if name is None or name not in metadata.robots:
        raise InputError(
            f"{source}: --robot: expected one of {', '.join(metadata.robots)}, found {name or 'none'}"
        )
    return name, metadata.robots[name]


def known_embodiment(record: RobotRecord, where: str) -> Embodiment:
    """Returns a robot's embodiment; raises InputError if it is not known."""
    if record.embodiment is None:
        raise InputError(
            f"{where}: expected its embodiment, found none; name a record with --embodiment"
        )
    return record.embodiment


def without_padding(record: RobotRecord, where: str) -> RobotRecord:
    """Cuts the statistics to the robot's own dimensions; the rest must be padding.

    Without an embodiment the record is returned as it is.

    Raises:
        InputError: there are fewer dimensions than the robot has, or further ones that are not
            padding. Padding has mean 0 and standard deviation 0 or 1, to 1e-6.
    """
    (state, actions), robot = record
    if robot is None:
        return record
    state = _without_padding(state, len(robot.state), f"{where}: state")
    actions = _without_padding(actions, len(robot.actions), f"{where}: actions")
    return RobotRecord(Statistics(state, actions), robot)


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


def find_embodiment(name: str | Embodiment) -> Embodiment:
    """Returns a record of ours by its name, one of yours from a JSON file, or the given one.

    Raises:
        InputError: there is no such record, or a field of the file is wrong.
    """
    if isinstance(name, Embodiment):
        return name
    if not name.endswith(".json"):
        if name not in EMBODIMENTS:
            raise InputError(
                f"embodiment {name!r} is unknown; the embodiments are {', '.join(EMBODIMENTS)} (or a .json file of your own)"
            )
        return EMBODIMENTS[name]
    text = storage.read_all(name)
    try:
        return Embodiment.from_json(json.loads(text))
    except ValueError as error:  # it is no JSON, or a field is wrong (an InputError)
        raise InputError(f"{name}: {error}") from error


# ---- what a port does otherwise


def for_ports(robot: RobotRecord, mode: Mode) -> tuple[Statistics, list[str]]:
    """Returns the statistics that make openpi and LeRobot normalise as we do.

    A dimension without spread is only centred (normalize.py); both of them would divide it by
    1e-6. So it gets a spread of 1. The names of these dimensions are returned, too. Without an
    embodiment the statistics are those of another's policy, and stay as they are.
    """
    if robot.embodiment is None:
        return robot.statistics, []
    still, parts = [], {}
    for part, vector in robot.statistics._asdict().items():
        constant = normalize.constant(vector, mode)
        still += [f"{part}[{i}]" for i in np.flatnonzero(constant)]
        std = np.where(constant, 1.0, vector.std) if mode == "zscore" else vector.std
        q01, q99 = vector.q01, vector.q99
        if mode == "quantile":
            q01, q99 = np.where(constant, q01 - 1.0, q01), np.where(constant, q01 + 1.0, q99)
        parts[part] = vector._replace(std=std, q01=q01, q99=q99)
    return Statistics(**parts), still


def _differing_dims(embodiment: Embodiment, port: str) -> Iterator[str]:
    """Yields warnings about dimensions that the port computes otherwise."""
    for i, (dim, place) in enumerate(zip(embodiment.actions, embodiment.delta_states, strict=True)):
        if place not in (None, i):
            yield (
                f"warning: action {dim.name} ({i}) is learnt relative to state {embodiment.state[place].name} ({place}); {port} subtracts"
                f" the state at the action's own place, so its actions will differ"
            )
        if dim.turn:
            yield f"warning: action {dim.name} turns: its angles go the short way here; {port} knows no angles, so its actions may differ"
    for read in embodiment.state:
        if read.turn:
            low, turn = read.turn
            yield (
                f"warning: state {read.name} turns: here it is read in [{low:g}, {low + turn:g}) {read.unit}, whatever is sent; {port}"
                f" knows no angles, so send it in that range"
            )


def differences(metadata: Metadata, port: str) -> list[str]:
    """Returns what the user should know about what the policy did and the port does otherwise."""
    notes = []
    for name, robot in metadata.robots.items():
        if still := for_ports(robot, metadata.mode)[1]:
            notes.append(
                f"{name}: {', '.join(still)}: hardly vary; written with a spread of 1, since {port} would divide by 1e-6"
            )
        if robot.embodiment:
            notes += _differing_dims(robot.embodiment, port)
    if metadata.policy and metadata.policy.loss_dims == "real":
        notes.append(
            f"warning: trained on real dimensions only; {port} lets noise into the others, so its actions will differ"
        )
    if metadata.policy and (clip := metadata.policy.normalization_clip):
        notes.append(f"warning: states were clipped to ±{clip} model units; {port} does not clip")
    return notes
