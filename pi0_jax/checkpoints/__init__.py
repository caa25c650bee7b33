"""Checkpoints are saved and restored whole by Orbax; each describes itself.

    DIR/checkpoints/<step>/params        all parameters, trained or frozen, in the published tree
                           ema           the moving average of what is trained, in the tree of
                                         trainable.py: a policy runs it, with what is frozen and
                                         with LoRA's products merged; without an average, what is
                                         trained as it is
                           optimizer     optimizer state, step, batches passed over
                           lora          LoRA's factors (models/lora.py), where a run has them
                           description   JSON: the format's number; the config in two halves,
                                         `policy` (policy_config.py) and `training`
                                         (train/config.py); robots (embodiment and statistics by
                                         dataset); tokenizer; data position; digests of the indices
                           metrics       JSON: the validation of this step, where it was validated
                           manifest      digests of all these files (manifest.py)

DIR is a folder or a gs:// URL. A step's folder appears under its name only when it is whole.

What is read is verified first. A step is read by items: a policy never sees the optimizer. The
description says that there is a manifest, so a missing manifest is noticed. Checkpoints from before
there were manifests do not say so, and are read unverified.

description.py says how the format grows. A new item beside these does not change the format's
number; a reader of older checkpoints finds none and does without.
"""

import contextlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from pi0_jax.checkpoints import manifest
from pi0_jax.checkpoints.description import FORMAT, MANIFEST, Description
from pi0_jax.checkpoints.folder import (
    DESCRIPTION,
    FOLDER,
    ITEMS,
    find,
    is_ours,
    latest_step,
    locate,
)
from pi0_jax.checkpoints.orbax_log import STORAGE_ERROR, log_less
from pi0_jax.errors import InputError
from pi0_jax.models.trainable import trained_part
from pi0_jax.policy_config import trainable_part

__all__ = [
    "FOLDER",
    "FORMAT",
    "Description",
    "RunCheckpoints",
    "find",
    "is_ours",
    "latest_step",
    "locate",
    "read_description",
    "read_params",
    "read_part",
    "read_resumable",
]

_LORA = "lora"
# A failed save's other writes fail in this time, and TensorStore prints it. Our line comes last.
_OTHERS_SECONDS = 1.0


class _Best:
    """Is an Orbax policy that keeps the `count` checkpoints with the lowest `metric`."""

    def __init__(self, count: int, metric: str) -> None:
        self._count = count
        self._metric = metric

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> Sequence[bool]:
        """Returns for each checkpoint whether it is among the best."""
        known = [info for info in checkpoints if info.metrics and self._metric in info.metrics]
        best = {
            info.step
            for info in sorted(known, key=lambda info: info.metrics[self._metric])[: self._count]
        }
        return [info.step in best for info in checkpoints]


class RunCheckpoints:
    """Holds the checkpoints of one training run; all its processes make the same calls."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int,
        keep_every: int = 0,
        keep_best: int = 0,
        metric: str = "",
    ) -> None:
        """Opens the checkpoints of a workdir; a count of 0 keeps none for that reason.

        Args:
            workdir: the run's folder, or a URL.
            keep: how many of the latest checkpoints stay.
            keep_every: checkpoints at multiples of this step stay.
            keep_best: how many of those with the lowest `metric` stay.
            metric: names the metric.
        """
        log_less(writes=True)
        self._directory = locate(workdir) / FOLDER
        policies = ocp.checkpoint_managers
        kept: list[Any] = [policies.LatestN(keep)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        if keep_best:
            kept.append(_Best(keep_best, metric))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=len,  # it decides nothing beside a policy; without one no metrics are stored
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            # One process calls it, when all files are there and the folder has no name yet.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        self._saving: int | None = None
        with _readable(self._directory):  # It reads the metrics of the existing checkpoints.
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=options,
                item_names=[item for item in ITEMS if item != "metrics"],
            )
        self._whole = self._manager.latest_step()

    def save(self, state: Any, description: Description, metrics: Mapping[str, float]) -> None:
        """Starts saving in the background, unless the step is there; the arrays are copied at once.

        Args:
            state: the TrainState.
            description: what the checkpoint says of itself; its position is the step.
            metrics: the validation of this step, or {}.

        Raises:
            InputError: as in `check`, also for the save before this one.
        """
        if description.position in (self._saving, self._whole):
            return
        average = state.ema or trained_part(
            state.params, state.factors, trainable_part(description.policy)
        )
        with self._named_errors():
            self._settle()
            self._saving = description.position
            self._manager.save(
                description.position,
                args=ocp.args.Composite(
                    description=ocp.args.JsonSave(description.to_json()),
                    **{
                        item: ocp.args.StandardSave(tree)
                        for item, tree in (_items(state) | {"ema": average}).items()
                    },
                ),
                metrics=dict(metrics),
            )

    def check(self) -> None:
        """Raises InputError if the save in the background failed, as where space is missing."""
        with self._named_errors():
            self._manager.check_for_errors()

    def restore(self, step: int, abstract: Any) -> Any:
        """Reads the TrainState of a step.

        Args:
            step: the step.
            abstract: a TrainState of shapes, dtypes and shardings, which the result gets.

        Raises:
            InputError: leaves are missing, extra or of another shape; it is raised before any is
                read.
        """
        items = _items(abstract)
        for item, tree in items.items():
            check_leaves(self._directory / str(step), item, tree)
        wanted = {item: ocp.args.StandardRestore(tree) for item, tree in items.items()}
        with _readable(self._directory / str(step)):
            restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        ema, factors = (restored[item] if item in items else {} for item in ("ema", _LORA))
        return abstract._replace(
            params=restored["params"], ema=ema, factors=factors, **restored["optimizer"]
        )

    def wait(self) -> None:
        """Waits until the save in progress is whole; raises InputError as `check` does."""
        with self._named_errors():
            self._settle()

    def close(self) -> None:
        """Waits for a save in progress, whether it succeeds or fails."""
        # `check` or `wait` have raised it already, or a more important error ends the run now.
        with contextlib.suppress(InputError):
            self.wait()
        self._manager.close()

    def _write_manifest(self) -> None:
        """Writes the manifest into the folder of the step being saved, before it is made whole."""
        step = str(self._saving)
        for path in self._directory.iterdir():
            if path.name == step or path.name.startswith(f"{step}.orbax-checkpoint-tmp"):
                manifest.write(path)

    def _settle(self) -> None:
        """Waits for the save in progress and notes its step as whole."""
        self._manager.wait_until_finished()
        if self._saving is not None:
            self._whole, self._saving = self._saving, None

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turns a storage's errors in the block into an InputError that names the step."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not STORAGE_ERROR.match(str(error)):
                raise
            time.sleep(_OTHERS_SECONDS)
            # Orbax gives up its other writes.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            whole = (
                "no checkpoint is whole yet"
                if self._whole is None
                else f"the checkpoint of step {self._whole} is whole"
            )
            raise InputError(
                f"{self._directory}: saving step {self._saving} failed, {whole}; found: {_brief(str(error))}"
            ) from error


def _items(state: Any) -> dict[str, Any]:
    """Returns a TrainState's arrays by item; a run may have no average, and no factors."""
    optimizer = {"step": state.step, "opt_state": state.opt_state, "skipped": state.skipped}
    items = {"params": state.params, "ema": state.ema, "optimizer": optimizer, _LORA: state.factors}
    return {item: tree for item, tree in items.items() if tree}


def _brief(message: str) -> str:
    """Returns the system's own words at the end of a storage's long message, or its beginning."""
    system = re.search(
        r"\[(?:OS error|Error code)[^\]]*\]|No space left on device|Disk quota exceeded|File too large",
        message,
    )
    return system.group() if system else " ".join(message.split())[:200]


def damage(step_directory: epath.Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """Returns what of a step is not as it was written, or is missing; None if the step is whole.

    Without a manifest only the description is checked. For `share` see manifest.damage.
    """
    if manifest.exists(step_directory):
        return manifest.damage(step_directory, share=share)
    try:
        _record(step_directory)
    except InputError as error:
        return str(error)
    return None


def read_description(step_directory: str | os.PathLike[str]) -> Description:
    """Reads what a checkpoint says of itself; warns if it has no manifest.

    Raises:
        InputError: the file is missing or damaged, or `from_json` raises it.
    """
    path = epath.Path(step_directory)
    record = _record(path)
    if not manifest.exists(path):
        absl_logging.warning(
            "%s has no manifest, as before there were any: whether its files are whole is not verified",
            path,
        )
    return Description.from_json(record, str(path))


def _record(step: epath.Path) -> dict[str, Any]:
    """Reads the JSON of a description, verified."""
    check_whole(step, DESCRIPTION)
    file = step / DESCRIPTION / "metadata"
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = "nothing" if isinstance(error, FileNotFoundError) else error
        raise InputError(f"{file}: expected JSON, found {reason}") from error
    if not isinstance(record, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(record).__name__}")
    if MANIFEST in record and not manifest.exists(step):
        raise InputError(
            f"{step / manifest.FILE}: expected the digests of the checkpoint's files, found nothing"
        )
    return record


def check_whole(step_directory: epath.Path, *items: str) -> None:
    """Verifies these items' files; raises InputError that names the first damaged one.

    A step without a manifest is not verified.
    """
    if manifest.exists(step_directory) and (found := manifest.damage(step_directory, parts=items)):
        raise InputError(found)


def read_resumable(workdir: str | os.PathLike[str], step: int) -> Description:
    """Reads what a step says of itself, for a run that resumes from it.

    It raises InputError where no run can: what a conversion wrote has no optimizer.
    """
    directory = locate(workdir) / FOLDER / str(step)
    if not (directory / "optimizer").is_dir():
        raise InputError(
            f"{directory} has no optimizer, as what a conversion wrote: no run goes on from it; expected another workdir,"
            f" where config.initial_weights={os.fspath(workdir)} starts from its weights"
        )
    return read_description(directory)


def read_params(step_directory: str | os.PathLike[str], item: str, abstract: Any) -> Any:
    """Reads the item "ema" or "params" of a step, verified.

    Args:
        step_directory: the step's folder.
        item: "ema" or "params".
        abstract: a tree of shapes, dtypes and shardings, which the result gets.

    Raises:
        InputError: a file is damaged, or the leaves are not those of `abstract`.
    """
    path = epath.Path(step_directory)
    check_whole(path, item)
    check_leaves(path, item, abstract)
    with _readable(path / item), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path / item, abstract)


def read_part(step_directory: str | os.PathLike[str], item: str, abstract: Any) -> Any:
    """Reads only those leaves of a step's item that `abstract` has; see `read_params`."""
    path = epath.Path(step_directory)
    check_whole(path, item)
    check_leaves(path, item, abstract, part=True)
    how = ocp.checkpoint_utils.construct_restore_args(abstract)
    with _readable(path / item), ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            path / item,
            args=ocp.args.PyTreeRestore(abstract, restore_args=how, partial_restore=True),
        )


@contextlib.contextmanager
def _readable(item: epath.Path) -> Iterator[None]:
    """Turns Orbax's errors, of a damaged checkpoint without a manifest, into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{item}: expected arrays as they were saved, found: {_brief(str(error))}"
        ) from error


def check_leaves(
    step_directory: epath.Path, item: str, abstract: Any, *, part: bool = False
) -> None:
    """Raises InputError if an item has not the leaves of `abstract`, as of another variant.

    The first leaves that are missing, extra (unless `part`) or of another shape are named.
    """
    if not (step_directory / item).is_dir():
        raise InputError(
            f"{step_directory}: expected {item}, found {', '.join(sorted(path.name for path in step_directory.iterdir()))}"
        )
    log_less()
    with _readable(step_directory / item), ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(step_directory / item).item_metadata
    if metadata is None:  # Orbax does not tell what it could not read.
        raise InputError(
            f"{step_directory / item}: expected arrays as they were saved, found none that can be read"
        )
    stored = {
        _path(key): tuple(leaf.shape)
        for key, leaf in jax.tree_util.tree_leaves_with_path(dict(metadata))
    }
    wanted = {_path(key): leaf.shape for key, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    differing = [
        path
        for path in sorted(wanted if part else wanted | stored)
        if wanted.get(path) != stored.get(path)
    ]
    problems = [
        f"{path}: expected {wanted.get(path, 'nothing')}, found {stored.get(path, 'nothing')}"
        for path in differing
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{step_directory}/{item} is of another model: {'; '.join(problems[:3])}{more}"
        )


def _path(key: Any) -> str:
    """Returns a leaf's path."""
    return jax.tree_util.keystr(key, simple=True, separator="/")
