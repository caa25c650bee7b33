"""The config of a training run states every field with its type, default and meaning.

    from pi0_jax.train import config

    def get_config():
        c = config.defaults()                    # an ml_collections page that states every field
        c.data_dir, c.datasets = "data", ("my_robot",)
        c.variant = dict(vision=..., gemma=...)  # any field may be set, with a value of any type;
        return c                                 # `from_mapping` says what is wrong, all at once

Sources of the defaults: P the π0 paper (arXiv 2410.24164), O its published code's settings for
fine-tuning. Where neither is named the default is ours.
"""

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from types import FunctionType
from typing import Any, Literal

from etils import epath
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from pi0_jax import fields, policy_config
from pi0_jax.data.oxe.soups import SOUPS
from pi0_jax.data.rows import Dataset
from pi0_jax.data.rule_source import record_rule
from pi0_jax.errors import InputError
from pi0_jax.fields import field
from pi0_jax.policy_config import PolicyConfig
from pi0_jax.train.config_rules import CHECKS

CONFIG_FILE = "config.json"
_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Holds the sizes of the mesh of devices."""

    data: int = field(1, "Devices that each hold a part of the batch; -1: all that are left.")
    fsdp: int = field(
        -1, "Devices that hold a part of the batch and of every weight; -1: all that are left."
    )
    tensor: int = field(1, "Devices that share heads and hidden units of a layer.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(PolicyConfig):
    """Holds the config of a run: what its policy needs, its data, and how it is trained.

    All fields are keywords. `pi0_jax.train.run` checks them, all together.
    """

    data_dir: str = field(
        doc="Folder or URL that holds the datasets: data_dir/<name>/<version>.",
        section="Data",
        free=True,
        per_process=True,
    )
    index_dir: str = field(
        "",
        "Where the indices go. Empty: each lies beside its dataset.",
        free=True,
        per_process=True,
    )
    skip_bad_episodes: int = field(
        0, "Episodes of a dataset that its index may leave out.", at_least=0, free=True
    )
    own_datasets: Mapping[str, Any] = field(
        factory=dict,
        doc="Datasets of one's own: dict(name=Dataset(...), or that as plain data); see data/rows.py.",
    )
    mixture: str = field(
        "",
        f"A published mixture ({', '.join(SOUPS)}), which gives datasets, weights and frames_power. Empty: none.",
        free=True,
    )
    datasets: tuple[str, ...] = field(
        (), "Names of the datasets to train on. Must be stated where mixture is empty."
    )
    weights: tuple[float, ...] = field(
        (),
        "One per dataset: its share is in proportion to weight x frames^frames_power. Empty: all are 1.",
    )
    frames_power: float = field(
        0.0,
        "0: the weights are the shares; 1: they multiply frames; 0.43: the paper's (P, section V-A).",
        at_least=0,
    )
    keep_empty_language: tuple[str, ...] = field(
        (), "Datasets of which frames without an instruction are drawn too."
    )
    statistics_only: tuple[str, ...] = field(
        (),
        "Datasets that are not trained on: their statistics are stored for robots that are held out.",
    )
    order: Literal["uniform", "local"] = field(
        "uniform",
        "uniform: frames in random order; local: whole records in random order, for slow disks and remote"
        " storage. See data/block_order.py.",
    )
    lanes: int = field(
        32,
        "Of the local order: divides the batch, and the number of hosts divides it.",
        positive=True,
    )
    lane_megabytes: int = field(
        512, "Of the local order: encoded megabytes that each lane may hold.", positive=True
    )
    augment: bool = field(True, "Images are cropped, turned and recoloured at random. (O)")
    loader_threads: int = field(
        8, "Threads that read and decode.", positive=True, free=True, per_process=True
    )
    prefetch_batches: int = field(
        4, "Batches that are made ahead.", positive=True, free=True, per_process=True
    )
    tokenizer: str = field(
        "gs://big_vision/paligemma_tokenizer.model",
        "Path or URL of a SentencePiece model (O: PaliGemma's); small: the one that ships.",
        section="Start",
    )
    initial_weights: str = field(
        "gs://openpi-assets/checkpoints/pi0_base",
        "Path or URL of a checkpoint of any format of convert/, with which a new run starts (O: the released"
        " base model). Empty: random numbers.",
    )
    initial_rules: tuple[tuple[str, Literal["load", "fresh"]], ...] = field(
        (),
        "(regular expression of a parameter's path, load or fresh): the first that matches decides; load"
        " where none does.",
    )
    seed: int = field(
        0,
        "Key of all random numbers: initial parameters, order of frames, augmentation, noise and time.",
    )
    draws: int = field(
        1,
        "Draws of noise and time per observation, which share one pass of the prefix. (O)",
        section="Loss",
        positive=True,
    )
    time_density: Literal["pi0", "uniform", "logit_normal"] = field(
        "pi0",
        "With which times are drawn: pi0: the paper's shifted Beta(1.5, 1), (P, appendix B); see flow.py.",
    )
    mask_past_end: bool = field(
        False, "Whether steps past an episode's end are left out of the loss. (O: they count)"
    )
    batch_size: int = field(
        32, "Observations in a step, over all devices. (O)", section="Optimizer", positive=True
    )
    accumulate: int = field(
        1,
        "Parts of the batch that run one after the other, to save memory.",
        positive=True,
        free=True,
    )
    steps: int = field(30_000, "Optimizer steps of the run. (O)", positive=True)
    learning_rate: float = field(2.5e-5, "AdamW: the learning rate at its peak. (O)", positive=True)
    end_learning_rate: float = field(
        2.5e-6,
        "The learning rate of the last step, to which it falls along a cosine. (O)",
        at_least=0,
    )
    warmup_steps: int = field(
        1000,
        "Steps in which the learning rate rises to its peak; fewer than steps. (O)",
        at_least=0,
    )
    b1: float = field(0.9, "AdamW: decay of the first moments. (O)", at_least=0, below=1)
    b2: float = field(0.95, "AdamW: decay of the second moments. (O)", at_least=0, below=1)
    eps: float = field(1e-8, "AdamW: added to the root of the second moment. (O)", positive=True)
    weight_decay: float = field(
        1e-10, "AdamW: decay of the weights, times the learning rate. (O)", at_least=0
    )
    no_decay: tuple[str, ...] = field(
        (),
        "Regular expressions: parameters that weight decay leaves alone (O: none). Usual elsewhere:"
        ' (r"(bias|scale)$", r"embedding$").',
    )
    first_moment_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "AdamW: in which the first moments are kept."
    )
    clip_norm: float = field(1.0, "The gradient's global norm is cut to this. (O)", positive=True)
    mesh: MeshConfig = field(
        MeshConfig(), "How the devices are arranged.", section="Devices", free=True
    )
    scan_layers: bool = field(
        True, "Compile one layer and loop over it: quicker to compile. False: unroll the layers."
    )
    remat: Literal["none", "dots", "full"] = field(
        "full",
        "What a layer's backward pass computes again, to save memory: nothing, all but matrix products, all.",
    )
    log_every: int = field(
        100, "Steps between lines of metrics.", section="Loop", positive=True, free=True
    )
    validate_every: int = field(1000, "Steps between validations.", positive=True, free=True)
    validation_frames: int = field(
        256, "Held-out frames of each dataset in a validation. 0: no validation.", at_least=0
    )
    save_every: int = field(1000, "Steps between checkpoints.", positive=True, free=True)
    keep_checkpoints: int = field(
        2, "How many of the latest checkpoints stay.", positive=True, free=True
    )
    keep_every: int = field(
        0,
        "Checkpoints of these steps stay for good; a multiple of save_every. 0: none does.",
        at_least=0,
        free=True,
    )
    keep_best: int = field(
        0, "How many of the lowest keep_best_metric stay. 0: none does.", at_least=0, free=True
    )
    keep_best_metric: str = field(
        "validation/loss",
        "As in metrics.jsonl: validation/loss, validation/<dataset>/loss, ...",
        free=True,
    )
    skip_nonfinite: int = field(
        0,
        "Batches of the run whose loss or gradient may be not finite: they change nothing. One more stops the run.",
        at_least=0,
        free=True,
    )


# These fields may differ between the run that wrote a checkpoint and the run that resumes from it.
FREE_FIELDS = fields.names(RunConfig, "free")


def defaults() -> ConfigDict:
    """Returns a page with every field at its default, whose fields may be set.

    The page takes any value. Mistakes are named when the page is used, for all fields together. A
    field that must be stated (`data_dir`) is empty on the page.
    """
    page = ConfigDict(fields.defaults(RunConfig), type_safe=False)
    page.data_dir = placeholder(str)
    return page


def explain() -> str:
    """Returns a text for people that explains every field: its type, default and meaning."""
    return (
        "The fields of a config. Sources of the defaults: P the paper (arXiv 2410.24164), O its published\n"
        f"code's settings for fine-tuning; ours where neither is named.\n{fields.explain(RunConfig)}"
    )


def from_mapping(config: Mapping[str, Any]) -> RunConfig:
    """Returns the config that a ConfigDict or another mapping from field to value states.

    A field that is not stated has its default. But a published mixture, named by `mixture`, gives
    datasets, weights and frames_power; and without weights, each dataset has the weight 1.

    Raises:
        InputError: fields are unknown, missing, of another type or out of their range, or they
            contradict each other. The error has one argument for each mistake.
    """
    return _resolved(fields.read(RunConfig, config, "config", checks=CHECKS))


def from_halves(policy: PolicyConfig, training: Mapping[str, Any], where: str) -> RunConfig:
    """Returns the config of the run that wrote a checkpoint, from the two halves stored there.

    Raises:
        InputError: as in `from_mapping`, with `where` before each field; or there is no training
            half.
    """
    if not training:
        raise InputError(
            f"{where}: expected the config of a training run, found none, as in what a conversion"
            " wrote"
        )
    record = {**dataclasses.asdict(policy), **training}
    return _resolved(fields.read(RunConfig, record, where, checks=CHECKS, stored=True))


def policy_half(run: RunConfig) -> PolicyConfig:
    """Returns the part of the run's config that a policy needs."""
    return PolicyConfig(**policy_config.split(vars(run))[0])


def training_half(run: RunConfig) -> dict[str, Any]:
    """Returns the rest of the run's config, as plain data."""
    return policy_config.split(to_json(run))[1]


def to_json(run: RunConfig) -> dict[str, Any]:
    """Returns the config as plain data.

    A rule in `own_datasets` is a function. Its name and the hash of its source are kept.
    """
    return {
        **dataclasses.asdict(dataclasses.replace(run, own_datasets={})),
        "own_datasets": _plain(run.own_datasets, "config.own_datasets"),
    }


def _plain(value: Any, where: str) -> Any:
    """Returns a value as plain data, where a function is recorded by its name and source."""
    if isinstance(value, Dataset):
        return _plain(value.to_mapping(), where)
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, FunctionType):
        return record_rule(value, where)
    return value


def check_resumes(run: RunConfig, stored: RunConfig) -> None:
    """Raises InputError if a run that had the config `stored` may not be resumed with `run`.

    It names the fields that differ and decide the run's numbers.
    """
    if different := differing_fields(run, stored):
        raise InputError(
            f"the workdir holds a run of another config: {'; '.join(different)}. A new run takes"
            " another workdir"
        )


def differing_fields(ours: RunConfig, theirs: RunConfig) -> list[str]:
    """Returns "field: ours, theirs" for each differing field that decides a run's numbers."""
    mine, stored = to_json(ours), to_json(theirs)
    return [
        f"{name}: {mine[name]!r} now, {stored[name]!r} in the checkpoint"
        for name in mine
        if name not in FREE_FIELDS and mine[name] != stored[name]
    ]


def describe(run: RunConfig) -> str:
    """Returns the whole config for people, in 100 columns and by section.

    A star marks a field that is not at its default.
    """
    values, usual = to_json(run), fields.defaults(RunConfig)
    lines = ["config (* where it is not the default):"]
    for title, names in fields.sections(RunConfig):
        stated = [
            f"{'' if values[name] == usual[name] else '*'}{name} {values[name]!r}" for name in names
        ]
        lines += textwrap.wrap(
            ", ".join(stated), _WIDTH, initial_indent=f"  {title:<14}", subsequent_indent=" " * 16,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return "\n".join(lines)


def write(run: RunConfig, workdir: epath.Path, resumed: tuple[int, RunConfig] | None) -> None:
    """Writes the run's config to config.json in its workdir.

    A run that is resumed with other free fields leaves that file as it is and writes
    config_<step>.json. `resumed` is the step from which the run resumes and the config that the
    checkpoint holds, or None for a new run.
    """
    path = workdir / CONFIG_FILE
    if resumed is not None and path.exists():
        step, stored = resumed
        if to_json(run) == to_json(stored):
            return
        path = workdir / f"config_{step}.json"
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_json(run), indent=1) + "\n")


def _resolved(run: RunConfig) -> RunConfig:
    """Returns the config with a named mixture's datasets, or with weights of 1 if it has none."""
    if run.mixture:
        soup = SOUPS[run.mixture]
        return dataclasses.replace(
            run,
            datasets=tuple(soup.weights),
            weights=tuple(soup.weights.values()),
            frames_power=soup.frames_power,
        )
    return run if run.weights else dataclasses.replace(run, weights=(1.0,) * len(run.datasets))
