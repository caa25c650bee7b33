"""A run's state begins as a checkpoint's, as random numbers, or with the weights of other runs.

    config.initial_weights -> Source --config.initial_rules--> every leaf: load | fresh, or an error

    load     is read layer by layer; each process keeps what its devices hold, and puts it straight
             onto them
    fresh    begins as in a run without starting weights from the same seed, with the same numbers;
             so does the optimizer's state
    EMA      begins as a copy of the parameters that train; LoRA's factors are fresh

The weights are a checkpoint of any format that convert/ reads. Of one of our own the EMA is taken,
because its policy runs that. Every process reads the whole file, one layer at a time (one leaf
where leaves are not stacked).

Statistics in the file are not used. A run normalises by those of its own data, as published
fine-tuning does for a new dataset. (For a robot of the pre-training it can also take over the
released statistics. Those belong to the released order, units and deltas of the dimensions, which a
dataset's row here need not share.) The report names what is left aside.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from pi0_jax import sharding
from pi0_jax.checkpoints import RunCheckpoints
from pi0_jax.convert import tree
from pi0_jax.convert.formats import open_checkpoint
from pi0_jax.convert.source import LazyArray, Source
from pi0_jax.errors import InputError
from pi0_jax.models.paths import flatten, name_of, unflatten
from pi0_jax.models.pi0 import parameter_shapes
from pi0_jax.policy_config import model_config, trainable_part
from pi0_jax.preprocess.tokenizer import Tokenizer
from pi0_jax.train.config import RunConfig
from pi0_jax.train.optimizer import make_optimizer
from pi0_jax.train.state import abstract_run_state, jit_init, make_model
from pi0_jax.train.step import TrainState, init_state

Rules = Sequence[tuple[str, Literal["load", "fresh"]]]
Leaves = Mapping[str, jax.ShapeDtypeStruct]  # of the model, by path


def initial_state(
    run: RunConfig, mesh: Mesh, checkpoints: RunCheckpoints, latest: int | None
) -> TrainState:
    """Returns the state with which a run begins or resumes, created where it will live.

    Args:
        run: the run's config.
        mesh: the devices.
        checkpoints: the run's checkpoints.
        latest: the step to resume from; None begins anew.

    Raises:
        InputError: `restore` or `state_from_weights` raise it; a number of the checkpoint is not
            finite; or the run has passed over more batches already than the config allows.
    """
    if latest is not None:
        state = checkpoints.restore(latest, abstract_run_state(run, mesh))
        _check_finite(state, mesh, f"checkpoint of step {latest}")
        # Otherwise the state would halt at a batch that has nothing wrong.
        if (skipped := int(state.skipped)) > run.skip_nonfinite:
            raise InputError(
                f"config.skip_nonfinite is {run.skip_nonfinite}; expected at least {skipped},"
                " the batches that this run has passed over already"
            )
        return state
    if run.initial_weights:
        return state_from_weights(run, mesh)
    create = jit_init(make_model(run, mesh), make_optimizer(run), mesh, trainable_part(run))
    return create(jax.random.key(run.seed))


def _check_finite(state: TrainState, mesh: Mesh, where: str) -> None:
    """Raises InputError for the first leaf of a state that is not finite."""
    numbers = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    all_finite = jax.jit(
        lambda leaves: {path: jnp.isfinite(leaf).all() for path, leaf in leaves.items()},
        out_shardings=sharding.replicated(mesh),
    )
    for path, finite in jax.device_get(all_finite(numbers)).items():
        if not finite:
            raise InputError(f"{where}: {path}: expected finite numbers, found NaN or infinite")


# ---- starting weights


def check_start(run: RunConfig) -> None:
    """Checks a new run's starting weights, before hours are spent on an index.

    It refuses what `state_from_weights` would refuse, by what the file says about its tensors. It
    warns where random numbers would stay as they are drawn.

    Raises:
        InputError: as in `state_from_weights`; or there are rules without weights.
    """
    if run.initial_weights:
        leaves = flatten(parameter_shapes(model_config(run)))
        choose(open_checkpoint(run.initial_weights), leaves, run.initial_rules)
    elif run.initial_rules:
        raise InputError(
            "config.initial_rules: expected config.initial_weights that they choose from, found none"
        )
    elif (run.frozen or run.lora) and jax.process_index() == 0:
        stated = {"frozen": run.frozen, "lora": run.lora}
        logging.warning(
            "config.%s without config.initial_weights: what is not trained itself stays as it is"
            " drawn at random",
            " and ".join(name for name, value in stated.items() if value),
        )


def state_from_weights(run: RunConfig, mesh: Mesh) -> TrainState:
    """Returns the state before step 0 of a run with initial_weights, placed on the run's devices.

    Process 0 prints which leaf came from where.

    Raises:
        InputError: `open_checkpoint` raises it; the file lacks a leaf that no rule declares fresh,
            or has it in another shape; a rule is about no leaf.
    """
    source = open_checkpoint(run.initial_weights)
    abstract = abstract_run_state(run, mesh)
    leaves = flatten(abstract.params)
    loaded = choose(source, leaves, run.initial_rules)
    if jax.process_index() == 0:
        print(report(source, leaves, loaded, run))
    create = partial(
        init_state,
        model=make_model(run, mesh),
        optimizer=make_optimizer(run),
        trainable=trainable_part(run),
    )
    # What is loaded is never drawn, so both are not in memory together.
    rest = _jit_rest(create, abstract, loaded)(jax.random.key(run.seed))
    params = {path: place(source, path, leaves[path]) for path in loaded}
    ema = _copies(params, flatten(abstract.ema))
    return rest._replace(
        params=unflatten({**rest.params, **params}), ema=unflatten({**rest.ema, **ema})
    )


def choose(source: Source, leaves: Leaves, rules: Rules) -> list[str]:
    """Returns the paths of the leaves that are loaded; the others start fresh.

    The first rule whose pattern is found in a leaf's path decides. Where none is, it is loaded.

    Raises:
        InputError: a rule matches no leaf, or a leaf to load is missing or has another shape.
    """
    for pattern, _ in rules:
        if not any(re.search(pattern, path) for path in leaves):
            raise InputError(
                f"config.initial_rules: {pattern!r} matches no parameter; expected part of a path"
                f" such as {min(leaves)}"
            )
    load = [
        path
        for path in leaves
        if next((action for pattern, action in rules if re.search(pattern, path)), "load") == "load"
    ]
    weights = f"config.initial_weights {source.path}"
    if missing := [path for path in load if path not in source.leaves]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        found, expected = name_of(source.leaves), name_of(leaves)
        swapped = found and expected and found != expected
        other = f" is a {found}, config.variant a {expected}" if swapped else ""
        raise InputError(
            f"{weights}{other}: {', '.join(missing[:3])}{more}: not in the file ({source.format});"
            " expected all that config.initial_rules does not declare fresh"
        )
    for path in load:
        if source.leaves[path].shape != leaves[path].shape:
            found = _contradiction(path, source.leaves[path], leaves[path])
            raise InputError(f"{weights}: {found}")
    return load


def _contradiction(path: str, found: LazyArray, expected: jax.ShapeDtypeStruct) -> str:
    """Says in which sizes a leaf's shape differs from the model's."""
    sizes = zip(tree.AXES[path].split(), expected.shape, found.shape, strict=True)
    differences = " and ".join(
        f"{tree.NAMES[axis]} {ours}, found {theirs}"
        for axis, ours, theirs in sizes
        if ours != theirs
    )
    return (
        f"{path}: expected {differences} (shape {list(found.shape)});"
        " config.initial_rules may declare it fresh"
    )


def report(source: Source, leaves: Leaves, loaded: Collection[str], run: RunConfig) -> str:
    """Returns a text that lists every leaf with its shape and number of parameters.

    What is left aside is listed too: leaves of the file that a rule declares fresh, and tensors for
    which π0 has no place.
    """
    unread = {path: leaf for path, leaf in source.leaves.items() if path not in loaded}
    shapes = {
        "loaded": {path: leaves[path].shape for path in loaded},
        "fresh": {path: leaf.shape for path, leaf in leaves.items() if path not in loaded},
        "ignored": {path: leaf.shape for path, leaf in {**unread, **source.unused}.items()},
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
            f"not used: the statistics of {', '.join(metadata.robots)}; this run normalises by"
            " those of its own data"
        )
    if metadata.normalization not in (None, run.normalization):
        notes.append(
            f"these weights learnt with {metadata.normalization} normalisation, this run uses"
            f" {run.normalization}"
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
    """
    held, shape = leaf.sharding, leaf.shape
    part = held.shard_shape(shape)
    indices = {
        _key(index, shape): index for index in held.addressable_devices_indices_map(shape).values()
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
        shape, held, lambda index: parts[_key(index, shape)], dtype=leaf.dtype
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
