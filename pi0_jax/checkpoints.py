"""Checkpoints, saved and restored whole by Orbax; each describes itself.

    DIR/checkpoints/<step>/params        the trained parameters, in the published tree
                           ema           their moving average: what a policy runs
                           optimizer     optimizer state and step
                           description   JSON: config, robots (embodiment and statistics by dataset), tokenizer, data position

A step's folder appears under its name only when it is whole.
"""

import base64
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from pi0_jax import config, normalize
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.preprocess import Robot
from pi0_jax.tokenizer import Tokenizer

FORMAT = 1
FOLDER = "checkpoints"
_ITEMS = ("params", "ema", "optimizer", "description")


@dataclasses.dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself beside its arrays."""

    run: config.RunConfig
    robots: Mapping[str, Robot]  # by dataset name; those of run.datasets first
    tokenizer: Tokenizer
    position: int  # steps done, which is the number of the next batch

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "config": config.to_json(self.run),
            "robots": {
                name: {"embodiment": robot.embodiment.to_json(), "statistics": normalize.to_json(robot.statistics)}
                for name, robot in self.robots.items()
            },
            "tokenizer": base64.b64encode(self.tokenizer.model).decode(),
            "position": self.position,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], source: str) -> "Description":
        if record["format"] != FORMAT:
            raise InputError(f"{source}: checkpoint format {record['format']}; this version reads format {FORMAT}")
        robots = {
            name: Robot(Embodiment.from_json(robot["embodiment"]), normalize.from_json(robot["statistics"], source))
            for name, robot in record["robots"].items()
        }
        tokenizer = Tokenizer(base64.b64decode(record["tokenizer"]), source)
        return cls(config.from_mapping(record["config"]), robots, tokenizer, record["position"])


class RunCheckpoints:
    """The checkpoints of one training run."""

    def __init__(self, workdir: str | Path, *, keep: int) -> None:
        self._directory = epath.Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=_ITEMS)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: Any, description: Description) -> None:
        """Starts saving a TrainState in the background; the arrays are copied before this returns."""
        self._manager.save(
            description.position,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                ema=ocp.args.StandardSave(state.ema),
                optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
                description=ocp.args.JsonSave(description.to_json()),
            ),
        )

    def description(self, step: int) -> Description:
        return read_description(self._directory / str(step))

    def restore(self, step: int, abstract: Any) -> Any:
        """A TrainState like `abstract` (shapes, dtypes and shardings)."""
        directory = self._directory / str(step)
        check_leaves(directory, "params", abstract.params)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                ema=ocp.args.StandardRestore(abstract.ema),
                optimizer=ocp.args.StandardRestore({"step": abstract.step, "opt_state": abstract.opt_state}),
            ),
        )
        return abstract._replace(params=restored["params"], ema=restored["ema"], **restored["optimizer"])

    def close(self) -> None:
        """Waits for a save in progress."""
        self._manager.wait_until_finished()
        self._manager.close()


def find(directory: str | Path) -> epath.Path:
    """The step folder that `directory` names: itself, or the latest one of a run."""
    directory = epath.Path(directory).absolute()
    if (directory / "description").exists():
        return directory
    root = directory / FOLDER if (directory / FOLDER).exists() else directory
    folders = root.iterdir() if root.is_dir() else ()
    steps = sorted(int(path.name) for path in folders if path.name.isdigit() and (path / "description").exists())
    if not steps:
        raise InputError(f"no checkpoint in {directory}: expected {FOLDER}/<step>/ with {', '.join(_ITEMS)}")
    return root / str(steps[-1])


def read_description(step_directory: str | Path) -> Description:
    path = epath.Path(step_directory)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return Description.from_json(checkpointer.restore(path / "description"), str(path))


def read_params(step_directory: str | Path, item: str, abstract: Any) -> Any:
    """The "ema" or "params" of a step, like `abstract`."""
    path = epath.Path(step_directory)
    check_leaves(path, item, abstract)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path / item, abstract)


def check_leaves(step_directory: epath.Path, item: str, abstract: Any) -> None:
    """InputError naming the first leaves that are missing, extra or of another shape: a checkpoint of another variant."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(step_directory / item).item_metadata
    stored = {_path(key): tuple(leaf.shape) for key, leaf in jax.tree_util.tree_leaves_with_path(dict(metadata))}
    wanted = {_path(key): leaf.shape for key, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    differing = [path for path in sorted(wanted | stored) if wanted.get(path) != stored.get(path)]
    problems = [f"{path}: expected {wanted.get(path, 'nothing')}, found {stored.get(path, 'nothing')}" for path in differing]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{step_directory}/{item} is of another model: {'; '.join(problems[:3])}{more}")


def _path(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator="/")
