"""Keeps what an evaluation has found: the result of every episode as soon as it is over.

The first line of the file says what is measured. Each other line is an episode, what marks the
policy of a condition, or what stages took. What a kill cut off is run again.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pi0_jax.errors import InputError


class Key(NamedTuple):
    """Names an episode: its condition, its task and its number."""

    condition: str
    task: str
    episode: int


class Journal:
    """Keeps the result of every episode that is over, one a line.

    Attributes:
        results: key -> whether it succeeded, and after how many actions.
        policies: condition -> the digest of what its policy answered to a fixed question, and its
            other marks.
        seconds: stage -> what it took in all starts.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Opens the file or begins it; raises InputError if it says that something else is measured."""
        self._path, self.about = path, about
        self.results, self.policies = dict[Key, tuple[bool, int]](), dict[str, Any]()
        self.seconds = Counter[str]()
        if path.exists():
            lines = path.read_bytes().split(b"\n")[:-1]  # what a kill cut off is run again
            if lines and (found := json.loads(lines[0])) != about:
                names = sorted(k for k in {*found, *about} if found.get(k) != about.get(k))
                told = "; ".join(
                    f"{name}: expected {about.get(name)}, found {found.get(name)}" for name in names
                )
                raise InputError(f"{path}: is of another evaluation: {told}; choose another folder")
            for said in map(json.loads, lines[1:]):
                match said:
                    case dict():
                        self.seconds.update(said)
                    case [condition, marks]:
                        self.policies[condition] = marks
                    case [condition, task, episode, success, ticks]:
                        self.results[Key(condition, task, episode)] = success, ticks
            with path.open("r+b") as whole:
                whole.truncate(sum(len(line) + 1 for line in lines))
        self._file = path.open("a")
        if not path.stat().st_size:
            self._write(about)

    def add(self, key: Key, success: bool, ticks: int) -> None:
        """Notes that an episode is over."""
        self.results[key] = success, ticks
        self._write([*key, success, ticks])

    def took(self, seconds: Mapping[str, float]) -> None:
        """Notes what the stages took since the last time."""
        rounded = {stage: round(taken, 6) for stage, taken in seconds.items()}
        self.seconds.update(rounded)
        self._write(rounded)

    def same_policy(self, condition: str, marks: Mapping[str, Any]) -> None:
        """Notes a condition's policy; raises InputError if its other episodes had another one."""
        known = self.policies.setdefault(condition, marks)
        if known != marks:
            names = sorted(name for name in {*known, *marks} if known.get(name) != marks.get(name))
            told = "; ".join(f"{n}: expected {known.get(n)}, found {marks.get(n)}" for n in names)
            raise InputError(
                f"{self._path}: condition {condition}: expected the policy of the episodes that are"
                f" over, found another one ({told}); choose another folder"
            )
        if known is marks:
            self._write([condition, marks])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
