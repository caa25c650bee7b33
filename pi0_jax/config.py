"""The typed schema of a run: what a file in configs/ must say, no more and no less."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from types import FunctionType
from typing import Any, Literal

from pi0_jax.data.oxe.soups import find_soup
from pi0_jax.data.rule_source import record_rule
from pi0_jax.errors import InputError
from pi0_jax.models.gemma import GemmaConfig
from pi0_jax.models.lora import LoraRule
from pi0_jax.models.pi0 import VARIANTS, Pi0Config, parameter_shapes
from pi0_jax.models.siglip import VisionConfig
from pi0_jax.preprocess import Layout
from pi0_jax.trainable import Trainable, check


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class RunConfig:
    seed: int
    # Data.
    data_dir: str  # holds one folder per TFDS dataset
    index_dir: str  # where sidecar indices go; empty: beside each dataset
    skip_bad_episodes: int  # of a dataset, that its index may leave out
    own_datasets: Mapping[
        str, Any
    ]  # name -> a row of one's own as plain data (data/rows.py: row_from_mapping)
    datasets: tuple[str, ...]
    weights: tuple[
        float, ...
    ]  # one per dataset: its share is in proportion to weight x frames^frames_power
    frames_power: float  # 0: weights are shares; 1: they multiply frames; 0.43: the paper's
    keep_empty_language: tuple[
        str, ...
    ]  # datasets of which the frames without an instruction are drawn too
    cut_prompts: bool  # a prompt over max_tokens loses its end, as in the published code; else the run is refused
    order: Literal[
        "uniform", "local"
    ]  # local: whole records are read, for slow disks and remote storage; see data/lanes.py
    lanes: int  # of the local order: divides the batch, and the number of hosts divides it
    lane_megabytes: int  # of the local order: encoded bytes that each lane may hold
    statistics_only: tuple[
        str, ...
    ]  # never trained on; their statistics travel with the checkpoint, for robots that are held out
    normalization: Literal["zscore", "quantile"]
    normalization_clip: (
        float  # model units: states and targets are cut to this size; 0: they are not
    )
    augment: bool
    loader_threads: int
    prefetch_batches: int
    # Model.
    variant: (
        str | Mapping[str, Any]
    )  # a name, or the sizes themselves: {"vision": VisionConfig's fields, "gemma": GemmaConfig's}
    action_dim: int
    horizon: int
    max_tokens: int
    tokenizer: str  # path or URL of a SentencePiece model; "small": the one that ships
    dtype: Literal["float32", "bfloat16"]
    scan_layers: bool
    remat: Literal["none", "dots", "full"]
    initial_weights: str  # path or URL of a checkpoint of any format of convert/, with which a new run starts; empty: none
    initial_rules: tuple[
        tuple[str, Literal["load", "fresh"]], ...
    ]  # (regexp of a parameter's path, what to do), first match; else load
    # Flow matching.
    draws: int  # noise and time draws per observation, sharing one prefix pass
    loss_dims: Literal["padded", "real"]
    mask_past_end: bool
    sampling_steps: int
    # What trains; regular expressions, found anywhere in a parameter's published path. See trainable.py.
    frozen: tuple[str, ...]
    frozen_dtype: Literal["float32", "bfloat16"]  # of weights that are frozen or adapted
    lora: tuple[LoraRule, ...]  # the first that matches a weight adapts it; see models/lora.py
    # Optimizer.
    batch_size: int
    accumulate: int  # parts of the batch that are run one after the other, for memory
    steps: int
    learning_rate: float
    end_learning_rate: float
    warmup_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    no_decay: tuple[str, ...]  # parameters that weight decay leaves alone
    first_moment_dtype: Literal["float32", "bfloat16"]  # of Adam's
    clip_norm: float
    ema_decay: (
        float  # 0: no average is kept, and what reads one from a checkpoint gets the parameters
    )
    mesh: MeshConfig
    # Loop.
    log_every: int
    validate_every: int
    validation_frames: int
    save_every: int
    keep_checkpoints: int  # the latest ones
    keep_every: int  # checkpoints of these steps stay for good; 0: of none
    keep_best: int  # how many of the lowest keep_best_metric stay; 0: none
    keep_best_metric: str  # as in metrics.jsonl: validation/loss, validation/<dataset>/loss, ...
    skip_nonfinite: int  # batches of the run whose loss or gradient may be not finite; they change nothing; one more stops the run


# Fields that may differ between the run that wrote a checkpoint and the one that resumes it: they change no number (mesh and accumulate:
# to rounding).
FREE_FIELDS = frozenset(
    (
        "data_dir index_dir skip_bad_episodes loader_threads prefetch_batches mesh accumulate log_every validate_every save_every"
        " keep_checkpoints keep_every keep_best keep_best_metric skip_nonfinite"
    ).split()
)


def from_mapping(config: Mapping[str, Any]) -> RunConfig:
    """Checks names, types and values; InputError names the field.

    A field `mixture`, where there is one, names a published mixture, which then gives datasets, weights and frames_power.
    """
    run = _typed(RunConfig, _with_mixture(config), "config")
    _check(run)
    return run


def to_json(run: RunConfig) -> dict[str, Any]:
    """Plain data; of a rule in `own_datasets` its name and the hash of its source are kept."""
    return {
        **dataclasses.asdict(run),
        "own_datasets": _plain(run.own_datasets, "config.own_datasets"),
    }


def _with_mixture(config: Mapping[str, Any]) -> Mapping[str, Any]:
    if "mixture" not in config:
        return config
    rest = {field: value for field, value in config.items() if field != "mixture"}
    name = config["mixture"]
    if name == "":
        return rest
    soup = find_soup(name)
    for field in ("datasets", "weights"):
        if rest.get(field):
            raise InputError(
                f"config.mixture is {name!r}, which has its own {field}; expected config.{field} to be empty, found {rest[field]}"
            )
    if "frames_power" in rest and rest["frames_power"] not in (0, soup.frames_power):
        raise InputError(
            f"config.mixture is {name!r}, which has its own frames_power; expected config.frames_power 0, found {rest['frames_power']!r}"
        )
    return rest | {
        "datasets": tuple(soup.weights),
        "weights": tuple(soup.weights.values()),
        "frames_power": soup.frames_power,
    }


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, FunctionType):
        return record_rule(value, where)
    return value


def model_config(run: RunConfig) -> Pi0Config:
    if not isinstance(run.variant, str):
        sizes = _typed(_Sizes, run.variant, "config.variant")
        return Pi0Config(sizes.vision, sizes.gemma, run.action_dim, run.horizon, run.max_tokens)
    if run.variant not in VARIANTS:
        raise InputError(
            f"config.variant {run.variant!r} is unknown; the variants are {', '.join(VARIANTS)}"
        )
    return dataclasses.replace(
        VARIANTS[run.variant],
        action_dim=run.action_dim,
        horizon=run.horizon,
        max_tokens=run.max_tokens,
    )


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """A variant without a name."""

    vision: VisionConfig
    gemma: GemmaConfig


def trainable_part(run: RunConfig) -> Trainable:
    return Trainable(run.frozen, run.frozen_dtype, run.lora, averaged=run.ema_decay > 0)


def layout(run: RunConfig, slots: tuple[str, ...]) -> Layout:
    return Layout(
        slots, model_config(run).vision.image_size, run.action_dim, run.max_tokens, run.normalization, run.normalization_clip,
        run.cut_prompts,
    )  # fmt: skip


def differing_fields(ours: RunConfig, theirs: RunConfig) -> list[str]:
    """One "field: ours, theirs" for each field that decides a run's numbers and differs."""
    mine, stored = to_json(ours), to_json(theirs)
    return [
        f"{name}: {mine[name]!r} now, {stored[name]!r} in the checkpoint"
        for name in mine
        if name not in FREE_FIELDS and mine[name] != stored[name]
    ]


def _typed(schema: type, values: Mapping[str, Any], where: str) -> Any:
    fields = {field.name: field.type for field in dataclasses.fields(schema)}
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {values!r}; expected fields {', '.join(fields)}")
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            raise InputError(
                f"{where}.{name} is unknown" + (f"; did you mean {close[0]}?" if close else "")
            )
    missing = [name for name in fields if name not in values]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}")
    return schema(
        **{name: _cast(kind, values[name], f"{where}.{name}") for name, kind in fields.items()}
    )


def _cast(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _typed(kind, value, where)
    if typing.get_origin(kind) is types.UnionType:
        first, second = typing.get_args(kind)
        return _cast(first if isinstance(value, first) else second, value, where)
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise InputError(
                f"{where} is {value!r}; expected one of {', '.join(typing.get_args(kind))}"
            )
        return value
    if typing.get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} is {value!r}; expected a mapping")
        return dict(value)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} is {value!r}; expected a tuple")
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise InputError(f"{where} is {value!r}; expected {len(kinds)} entries")
        return tuple(_cast(kinds[i], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where} is {value!r}; expected {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{where} is {value!r}; expected a finite number")
    return value


def _check(run: RunConfig) -> None:
    positive = ("lanes lane_megabytes loader_threads prefetch_batches action_dim horizon max_tokens draws sampling_steps batch_size "
                "accumulate steps learning_rate eps clip_norm log_every validate_every validation_frames save_every "
                "keep_checkpoints").split()  # fmt: skip
    not_negative = ("end_learning_rate weight_decay skip_bad_episodes frames_power normalization_clip keep_every keep_best "
                    "skip_nonfinite").split()  # fmt: skip
    for name, value in to_json(run).items():
        if name in positive and value <= 0:
            raise InputError(f"config.{name} is {value}; expected a positive number")
        if name in not_negative and value < 0:
            raise InputError(f"config.{name} is {value}; expected a number of at least 0")
        if name in ("b1", "b2", "ema_decay") and not 0 <= value < 1:
            raise InputError(f"config.{name} is {value}; expected a number in [0, 1)")
    if not run.datasets:
        raise InputError("config.datasets is empty")
    if len(run.weights) != len(run.datasets):
        raise InputError(
            f"config.weights has {len(run.weights)} entries for {len(run.datasets)} datasets"
        )
    if min(run.weights) <= 0:
        raise InputError(f"config.weights is {run.weights}; expected positive numbers")
    if unknown := [
        name
        for name in run.keep_empty_language
        if name not in (*run.datasets, *run.statistics_only)
    ]:
        raise InputError(
            f"config.keep_empty_language has {unknown[0]!r}; expected some of config.datasets and statistics_only"
        )
    if not 0 <= run.warmup_steps < run.steps:
        raise InputError(
            f"config.warmup_steps is {run.warmup_steps}; expected at least 0 and less than steps ({run.steps})"
        )
    for i, (pattern, _) in enumerate(run.initial_rules):
        _check_pattern(pattern, f"config.initial_rules[{i}]")
    if run.keep_every % run.save_every:
        raise InputError(
            f"config.keep_every is {run.keep_every}; expected a multiple of save_every ({run.save_every}), or 0"
        )
    if run.keep_best and run.validate_every % run.save_every:
        raise InputError(
            f"config.validate_every is {run.validate_every}; expected a multiple of save_every ({run.save_every}):"
            " keep_best chooses among checkpoints of steps that are validated"
        )
    model = model_config(run)
    if run.frozen or run.lora or run.no_decay:
        check(trainable_part(run), run.no_decay, parameter_shapes(model))


def _check_pattern(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"{where} is {pattern!r}; expected a regular expression: {error}"
        ) from error
