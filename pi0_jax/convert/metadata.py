"""The metadata of a checkpoint travel beside its weights.

They are the statistics and embodiment of each robot, the tokenizer, sizes that no tensor shows, and
the training run. Each format holds some of them in its own files. All of them also go into
pi0_jax.json beside these files, which nobody else reads. So what comes back from another format is
what left for it.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
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
from pi0_jax.preprocess.normalize import Mode, Statistics

FILE = "pi0_jax.json"
_FORMAT = 2
PUBLISHED_HORIZON, PUBLISHED_MAX_TOKENS = 50, 48
PUBLISHED_TOKENIZER = "google/paligemma-3b-pt-224"
PUBLISHED_VOCABULARY = 257_152
_FIELDS = (
    "robots",
    "horizon",
    "max_tokens",
    "normalization",
    "tokenizer",
    "policy",
    "training",
    "position",
    "sizes",
)
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
        return {
            "format": _FORMAT,
            "robots": {
                name: {
                    "statistics": normalize.to_json(robot.statistics),
                    "embodiment": None if robot.embodiment is None else robot.embodiment.to_json(),
                }
                for name, robot in self.robots.items()
            },
            "horizon": self.horizon,
            "max_tokens": self.max_tokens,
            "normalization": self.normalization,
            "tokenizer": None
            if self.tokenizer is None
            else base64.b64encode(self.tokenizer).decode(),
            "policy": None if self.policy is None else dataclasses.asdict(self.policy),
            "training": dict(self.training),
            "position": self.position,
            "sizes": {NAMES[letter]: size for letter, size in self.sizes.items()},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], source: str) -> "Metadata":
        """Reads the metadata of pi0_jax.json.

        Args:
            record: the plain data, of this format or the one before.
            source: names the file in messages.

        Raises:
            InputError: the format is another, or a field is missing or wrong.
        """
        found = record["format"] if "format" in record else "none"
        if found not in (1, _FORMAT):
            raise InputError(f"{source}: expected format {_FORMAT}, or 1, found {found}")
        if found == 1:
            record = _from_format_1(record)
        missing = [field for field in _FIELDS if field not in record]
        if missing:
            raise InputError(f"{source}: lacks {', '.join(missing)}")
        with expecting("what an export of ours writes", source):
            robots = {
                name: RobotRecord(
                    normalize.from_json(robot["statistics"], source),
                    None
                    if robot["embodiment"] is None
                    else Embodiment.from_json(robot["embodiment"], stored=True),
                )
                for name, robot in record["robots"].items()
            }
            tokenizer = (
                None if record["tokenizer"] is None else base64.b64decode(record["tokenizer"])
            )
            policy = (
                None
                if record["policy"] is None
                else policy_config.from_json(record["policy"], f"{source}: policy")
            )
            sizes = {LETTERS[name]: index(size) for name, size in record["sizes"].items()}
        fields = {
            name: record[name]
            for name in ("horizon", "max_tokens", "normalization", "training", "position")
        }
        return cls(robots=robots, tokenizer=tokenizer, policy=policy, sizes=sizes, **fields)


def _from_format_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns format 1 into format 2.

    In format 1 the run's config was one flat record, or null.
    """
    run = record["run"] if "run" in record else None
    policy, training = (None, {}) if run is None else policy_config.split(run)
    return {**record, "policy": policy, "training": training}


def read_beside(folder: Folder) -> Metadata | None:
    """Reads what an export of ours left in pi0_jax.json; None where there is no such file."""
    return (
        Metadata.from_json(folder.read_json(FILE), str(folder.file(FILE)))
        if FILE in folder
        else None
    )


def with_beside(
    own: Metadata,
    folder: Folder,
    written: Callable[[Statistics, Mode], Statistics] = lambda own, _: own,
) -> Metadata:
    """Returns what pi0_jax.json says, or what the format's own files say where it is missing.

    Args:
        own: what the format's own files say.
        folder: the checkpoint's folder.
        written: what becomes of statistics in those files.

    Raises:
        InputError: the two contradict each other.
    """
    beside = read_beside(folder)
    if beside is None:
        return own
    where = str(folder.file(FILE))
    said: tuple[tuple[str, object, object], ...] = (
        ("horizon", own.horizon, beside.horizon),
        ("max_tokens", own.max_tokens, beside.max_tokens),
        ("normalization", own.normalization, beside.normalization),
    )
    for name, ours, theirs in said:
        if ours is not None and ours != theirs:
            raise InputError(f"{where}: {name} is {theirs}, {ours} by the checkpoint's other files")
    if set(own.robots) != set(beside.robots):
        theirs, ours = (", ".join(metadata.robots) or "none" for metadata in (beside, own))
        raise InputError(f"{where}: robots: {theirs}; the checkpoint's other files have {ours}")
    for name, robot in own.robots.items():
        _check_robot(
            robot,
            beside.robots[name],
            f"{where}: {name}",
            lambda statistics: written(statistics, beside.mode),
        )
    return beside


def _check_robot(
    own: RobotRecord, beside: RobotRecord, where: str, written: Callable[[Statistics], Statistics]
) -> None:
    """Raises InputError if a robot's statistics, cameras or dimensions differ in the two."""
    for part, theirs, ours in zip(
        Statistics._fields, written(beside.statistics), own.statistics, strict=True
    ):
        for field, kept, found in zip(ours._fields, theirs, ours, strict=True):
            if found is not None and kept is not None and not _equal(kept, found):
                raise InputError(
                    f"{where}: {part}.{field} is not that of the checkpoint's other files"
                )
    if (
        own.embodiment is not None
        and beside.embodiment is not None
        and _traits(own.embodiment) != _traits(beside.embodiment)
    ):
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


def _differing_deltas(embodiment: Embodiment, port: str) -> Iterator[str]:
    """Yields warnings about actions for which the port computes deltas otherwise."""
    for i, (dim, place) in enumerate(zip(embodiment.actions, embodiment.delta_states, strict=True)):
        if place not in (None, i):
            yield (
                f"warning: action {dim.name} ({i}) is learnt relative to state {embodiment.state[place].name} ({place}); {port} subtracts"
                f" the state at the action's own place, so its actions will differ"
            )
        if dim.turn:
            yield f"warning: action {dim.name} turns: its angles go the short way here; {port} knows no angles, so its actions may differ"


def differences(metadata: Metadata, port: str) -> list[str]:
    """Returns warnings about what the policy did and the port will not do."""
    policy = metadata.policy
    notes: list[str] = []
    for robot in metadata.robots.values():
        notes += [] if robot.embodiment is None else _differing_deltas(robot.embodiment, port)
    if policy is not None and policy.loss_dims == "real":
        notes.append(
            f"warning: trained on real dimensions only; {port} lets noise into the others, so its actions will differ"
        )
    if policy is not None and policy.normalization_clip:
        notes.append(
            f"warning: states were clipped to ±{policy.normalization_clip} model units; {port} does not clip"
        )
    return notes
