"""The starting weights of a new run come from a checkpoint of any format that convert/ reads.

    config.initial_weights -> Source --config.initial_rules--> every leaf of the model: load |
    fresh,
                                                               or an error
    load     is read layer by layer; each process keeps what its devices hold, and puts it straight
             onto them
    fresh    begins as in a run without starting weights from the same seed, with the same numbers;
             so does the optimizer's state
    EMA      begins as a copy of the parameters that train; LoRA's factors are fresh

Of one of our own checkpoints the EMA is taken, because its policy runs that. Every process reads
the whole file, one layer at a time (one leaf where leaves are not stacked).

Statistics in the file are not used. A run normalises by those of its own data, as published
fine-tuning does for a new dataset. (For a robot of the pre-training it can also take over the
released statistics. Those belong to the released order, units and deltas of the dimensions, which a
dataset's row here need not share.) The report names what is left aside.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from pi0_jax.convert import tree
from pi0_jax.convert.formats import open_checkpoint
from pi0_jax.convert.source import LazyArray, Source
from pi0_jax.errors import InputError
from pi0_jax.models.paths import flatten, unflatten
from pi0_jax.models.pi0 import parameter_shapes
from pi0_jax.policy_config import model_config, trainable_part
from pi0_jax.preprocess.tokenizer import Tokenizer
from pi0_jax.train.config import RunConfig
from pi0_jax.train.optimizer import make_optimizer
from pi0_jax.train.placement import abstract_run_state, make_model
from pi0_jax.train.step import TrainState, init_state

Rules = Sequence[tuple[str, Literal["load", "fresh"]]]
Leaves = Mapping[str, jax.ShapeDtypeStruct]  # of the model, by path


class Choice(NamedTuple):
    """Says where each leaf comes from.

    Attributes:
        load: paths of the leaves that are loaded.
        fresh: paths of the leaves that start fresh.
        ignored: what the file has beside: leaves that a rule declares fresh, and tensors for which
            π0 has no place.
    """

    load: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: Mapping[str, LazyArray]


def check_start(run: RunConfig) -> None:
    """Checks a new run's starting weights, before hours are spent on an index.

    It refuses what `state_from_weights` would refuse, by what the file says about its tensors. It
    warns where random numbers would stay as they are drawn.

    Raises:
        InputError: as in `state_from_weights`; or there are rules without weights.
    """
    if run.initial_weights:
        choose(
            open_checkpoint(run.initial_weights),
            flatten(parameter_shapes(model_config(run))),
            run.initial_rules,
        )
    elif run.initial_rules:
        raise InputError(
            "config.initial_rules: expected config.initial_weights that they choose from, found none"
        )
    elif (run.frozen or run.lora) and jax.process_index() == 0:
        names = " and ".join(
            name for name, value in (("frozen", run.frozen), ("lora", run.lora)) if value
        )
        logging.warning(
            "config.%s without config.initial_weights: what is not trained itself stays as it is drawn at random",
            names,
        )


def state_from_weights(run: RunConfig, mesh: Mesh) -> TrainState:
    """Returns the state before step 0 of a run with initial_weights, placed on the run's devices.

    Process 0 prints which leaf came from where.

    Args:
        run: the run's config.
        mesh: the devices.

    Raises:
        InputError: `open_checkpoint` raises it; the file lacks a leaf that no rule declares fresh,
            or has it in another shape; a rule is about no leaf.
    """
    source = open_checkpoint(run.initial_weights)
    abstract = abstract_run_state(run, mesh)
    leaves = flatten(abstract.params)
    choice = choose(source, leaves, run.initial_rules)
    if jax.process_index() == 0:
        print(report(source, leaves, choice, run))
    loaded = frozenset(choice.load)
    create = partial(
        init_state,
        model=make_model(run, mesh),
        optimizer=make_optimizer(run),
        trainable=trainable_part(run),
    )
    # What is loaded is never drawn, so both are not in memory together.
    rest = _jit_rest(create, abstract, loaded)(jax.random.key(run.seed))
    params = {path: place(source, path, leaves[path]) for path in choice.load}
    return rest._replace(
        params=unflatten({**rest.params, **params}), ema=unflatten({**rest.ema, **_copies(params, flatten(abstract.ema))})
    )  # fmt: skip


def choose(source: Source, leaves: Leaves, rules: Rules) -> Choice:
    """Chooses for each leaf whether it is loaded, by the first rule whose pattern is in its path.

    Args:
        source: the opened checkpoint.
        leaves: the model's leaves.
        rules: pairs of pattern and "load" or "fresh". A leaf that no pattern matches is loaded.

    Raises:
        InputError: a rule matches no leaf, or a leaf to load is missing or has another shape.
    """
    for pattern, _ in rules:
        if not any(re.search(pattern, path) for path in leaves):
            raise InputError(
                f"config.initial_rules: {pattern!r} matches no parameter; expected part of a path such as {min(leaves)}"
            )
    actions = {
        path: next((action for pattern, action in rules if re.search(pattern, path)), "load")
        for path in leaves
    }
    load = tuple(path for path, action in actions.items() if action == "load")
    missing = [path for path in load if path not in source.leaves]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"config.initial_weights {source.path}: {', '.join(missing[:3])}{more}: not in the file ({source.format});"
            " expected all that config.initial_rules does not declare fresh"
        )
    for path in load:
        if source.leaves[path].shape != leaves[path].shape:
            raise InputError(
                f"config.initial_weights {source.path}: {_contradiction(path, source.leaves[path], leaves[path])}"
            )
    unread = {path: leaf for path, leaf in source.leaves.items() if path not in load}
    return Choice(
        load, tuple(path for path in leaves if path not in load), {**unread, **source.unused}
    )


def _contradiction(path: str, found: LazyArray, expected: jax.ShapeDtypeStruct) -> str:
    """Says in which sizes a leaf's shape differs from the model's."""
    sizes = zip(tree.AXES[path].split(), expected.shape, found.shape, strict=True)
    differences = " and ".join(
        f"{tree.NAMES[axis]} {ours}, found {theirs}"
        for axis, ours, theirs in sizes
        if ours != theirs
    )
    return f"{path}: expected {differences} (shape {list(found.shape)}); config.initial_rules may declare it fresh"


def report(source: Source, leaves: Leaves, choice: Choice, run: RunConfig) -> str:
    """Returns a text that lists every leaf with its shape and number of parameters.

    What else is in the file, and is left aside, is listed too.
    """
    shapes = {
        "loaded": {path: leaves[path].shape for path in choice.load},
        "fresh": {path: leaves[path].shape for path in choice.fresh},
        "ignored": {path: leaf.shape for path, leaf in choice.ignored.items()},
    }
    counts = ", ".join(
        f"{kind} {len(group)} leaves ({_parameters(group.values()):,} parameters)"
        for kind, group in shapes.items()
    )
    lines = [f"starting weights: {source.format} {source.path}: {counts}"]
    for kind, group in shapes.items():
        lines += [
            f"  {kind:<7}  {_parameters([shape]):>13,}  {path} {list(shape)}"
            for path, shape in sorted(group.items())
        ]
    return "\n".join([*lines, *(f"  note: {note}" for note in _notes(source, run))])


def _notes(source: Source, run: RunConfig) -> list[str]:
    """Returns lines about what of the file is not used, or does not fit to the run."""
    metadata = source.metadata
    notes = list(source.notes)
    if metadata.robots:
        notes.append(
            f"not used: the statistics of {', '.join(metadata.robots)}; this run normalises by those of its own data"
        )
    if metadata.normalization not in (None, run.normalization):
        notes.append(
            f"these weights learnt with {metadata.normalization} normalisation, this run uses {run.normalization}"
        )
    if metadata.tokenizer is not None and metadata.tokenizer != Tokenizer.open(run.tokenizer).model:
        notes.append(f"these weights learnt with another tokenizer than {run.tokenizer}")
    return notes


def _parameters(shapes: Collection[tuple[int, ...]]) -> int:
    """Returns the number of parameters of these shapes."""
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)


def place(source: Source, path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads a leaf of the source onto the devices of its sharding.

    In memory at one time are the parts that this process's devices hold, once each, and one layer
    as the file has it.

    Args:
        source: the opened checkpoint.
        path: the leaf's path.
        leaf: the shape, dtype and sharding that it gets.
    """
    sharding, shape = leaf.sharding, leaf.shape
    part = sharding.shard_shape(shape)
    indices = {
        _key(index, shape): index
        for index in sharding.addressable_devices_indices_map(shape).values()
    }
    parts = {key: np.empty(part, leaf.dtype) for key in indices}
    for layer, array in source.parts(path):
        for key, index in indices.items():
            if layer is None:
                parts[key][...] = array[index]
            # key[0] is the range of layers that the part holds.
            elif key[0][0] <= layer < key[0][1]:
                parts[key][layer - key[0][0]] = array[index[1:]]
    placed = jax.make_array_from_callback(
        shape, sharding, lambda index: parts[_key(index, shape)], dtype=leaf.dtype
    )
    # Without the wait, the parts of further leaves would queue in memory for the devices.
    return placed.block_until_ready()


def _key(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Returns start and end along every axis; equal for devices that hold the same part."""
    assert index is not None  # it belongs to a device of this process
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _jit_rest(
    create: Callable[[jax.Array], TrainState], abstract: TrainState, loaded: Collection[str]
) -> Callable[[jax.Array], TrainState]:
    """Returns a function key -> a new state without what is loaded, which is never made.

    In that state parameters and EMA are flat, by path.
    """

    def without(state: TrainState) -> TrainState:
        params, ema = (
            {path: leaf for path, leaf in flatten(part).items() if path not in loaded}
            for part in (state.params, state.ema)
        )
        return state._replace(params=params, ema=ema)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, without(abstract))
    return jax.jit(lambda key: without(create(key)), out_shardings=shardings)


def _copies(params: Mapping[str, jax.Array], like: Leaves) -> Mapping[str, jax.Array]:
    """Copies the parameters that the EMA has too into buffers of their own.

    A step gives up the buffers of its state one by one, so none may be shared.
    """
    held = {path: array for path, array in params.items() if path in like}
    shardings = {path: like[path].sharding for path in held}
    copy = jax.jit(
        lambda arrays: {
            path: jnp.array(array, like[path].dtype, copy=True) for path, array in arrays.items()
        },
        out_shardings=shardings,
    )
    return copy(held)
