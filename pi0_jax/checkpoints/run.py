"""A training run's checkpoints are saved in the background, and restored, by Orbax."""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp

from pi0_jax.checkpoints import manifest
from pi0_jax.checkpoints.description import Description
from pi0_jax.checkpoints.folder import FOLDER, ITEMS, locate
from pi0_jax.checkpoints.orbax_log import STORAGE_ERROR, log_less
from pi0_jax.checkpoints.read import brief, check_leaves, readable
from pi0_jax.errors import InputError
from pi0_jax.models.trainable import trained_part
from pi0_jax.policy_config import trainable_part

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
        with readable(self._directory):  # It reads the metrics of the existing checkpoints.
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
            description: is stored beside the arrays; its position is the step.
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
        with readable(self._directory / str(step)):
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
                f"{self._directory}: saving step {self._saving} failed, {whole}; found: {brief(str(error))}"
            ) from error


def _items(state: Any) -> dict[str, Any]:
    """Returns a TrainState's arrays by item; a run may have no average, and no factors."""
    optimizer = {"step": state.step, "opt_state": state.opt_state, "skipped": state.skipped}
    items = {"params": state.params, "ema": state.ema, "optimizer": optimizer, _LORA: state.factors}
    return {item: tree for item, tree in items.items() if tree}
