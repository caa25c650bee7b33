"""A table lists a module's parameters, and says how each is drawn.

A table has the nesting of the published tree, with a `Param` where the tree has an array. It states
every shape once: modules declare their parameters from it, `self.param(name, draw_table, table)`,
and `pi0.parameter_shapes` reads the shapes without running anything.
"""

import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Key

# Compiling random bits for one more shape takes a CPU 0.3 to 0.9 s. So small arrays are cut out of
# draws of this many numbers, whose program is compiled once. Arrays of more than four of them are
# drawn in their own shape, so that a mesh can split the work.
SHARED_DRAW = 2**16
LARGEST_SHARED = 4 * SHARED_DRAW

# The standard deviation of a standard normal number that is cut off at -2 and 2.
TRUNCATED_STD = 0.87962566103423978


class Distribution(NamedTuple):
    """Is a distribution with mean 0: a standard one, times a factor."""

    kind: Literal["normal", "truncated normal", "uniform"]  # cut off at 2; between -1 and 1
    scale: float


class Param(NamedTuple):
    """Describes one parameter: its shape, and its values before training, drawn or constant."""

    shape: tuple[int, ...]
    initial: Distribution | float


Table = Mapping[str, Any]  # name -> Param, or a nested table


def normal(std: float) -> Distribution:
    """Returns the normal distribution with this standard deviation."""
    return Distribution("normal", std)


def fan_in_normal(inputs: int, gain: float = 1.0) -> Distribution:
    """Returns a distribution for a linear map that keeps the variance of what goes through it.

    It is normal with variance gain^2 / inputs, cut off at two standard deviations (LeCun et al.
    1998, section 4.6).

    Args:
        inputs: how many inputs each output of the map sums over.
        gain: the factor by which the standard deviation of outputs differs from that of inputs.
    """
    return Distribution("truncated normal", gain / math.sqrt(inputs) / TRUNCATED_STD)


def xavier_uniform(inputs: int, outputs: int, gain: float = 1.0) -> Distribution:
    """Returns a uniform distribution with variance gain^2 * 2 / (inputs + outputs).

    It keeps the variance of activations and of gradients about equally (Glorot and Bengio 2010,
    equation 16).
    """
    return Distribution("uniform", gain * math.sqrt(6.0 / (inputs + outputs)))


def draw_table(key: Key[Array, ""], table: Table | Param) -> Any:
    """Draws every parameter of a table.

    The values depend on the key and the table alone, not on the devices.

    Args:
        key: of jax.random.
        table: a nested table, or one `Param` by itself.

    Returns:
        The table's nesting, with float32 arrays in it.
    """
    params, nesting = jax.tree.flatten(table, is_leaf=lambda x: isinstance(x, Param))
    keys = (jax.random.fold_in(key, i) for i in itertools.count())
    needed = sum(math.prod(param.shape) for param in params if _shares_a_draw(param))
    draws = math.ceil(needed / SHARED_DRAW)
    shared = [_uniform(next(keys), (SHARED_DRAW,)) for _ in range(draws)]
    numbers = jnp.concatenate(shared) if shared else None  # [draws * SHARED_DRAW]
    values, start = [], 0
    for shape, initial in params:
        if not isinstance(initial, Distribution):
            values.append(jnp.full(shape, initial, jnp.float32))
        elif _shares_a_draw(Param(shape, initial)):
            values.append(_cut(numbers, start, shape, initial))
            start += math.prod(shape)
        else:
            values.append(_distributed(_uniform(next(keys), shape), initial))
    return jax.tree.unflatten(nesting, values)


def _shares_a_draw(param: Param) -> bool:
    """Returns whether a parameter is cut out of a shared draw."""
    drawn = isinstance(param.initial, Distribution)
    return drawn and math.prod(param.shape) <= LARGEST_SHARED


@partial(jax.jit, static_argnums=1)
def _uniform(key: Key[Array, ""], shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """Draws uniform numbers between -1 and 1, both excluded, in this shape."""
    lowest = np.nextafter(np.float32(-1.0), np.float32(0.0))
    return jax.random.uniform(key, shape, jnp.float32, minval=lowest, maxval=1.0)


@partial(jax.jit, static_argnums=(2, 3))
def _cut(
    numbers: Float32[Array, " count"],
    start: int | Array,
    shape: tuple[int, ...],
    distribution: Distribution,
) -> Float32[Array, "..."]:
    """Makes numbers of a distribution, in this shape, of the uniform ones from `start` on."""
    mine = jax.lax.dynamic_slice_in_dim(numbers, start, math.prod(shape))
    return _distributed(mine.reshape(shape), distribution)


def _distributed(
    numbers: Float32[Array, "*shape"], distribution: Distribution
) -> Float32[Array, "*shape"]:
    """Turns uniform numbers between -1 and 1 into numbers of a distribution.

    A normal number is sqrt(2) erfinv(u); one that is cut off at 2 has u between -erf(sqrt(2)) and
    erf(sqrt(2)).
    """
    match distribution.kind:
        case "normal":
            standard = math.sqrt(2.0) * jax.lax.erf_inv(numbers)
        case "truncated normal":
            standard = math.sqrt(2.0) * jax.lax.erf_inv(numbers * math.erf(math.sqrt(2.0)))
        case "uniform":
            standard = numbers
    return distribution.scale * standard
