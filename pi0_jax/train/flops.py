"""Floating-point operations of a traced function, counted in its jaxpr: XLA's own count takes a loop's body once on TPUs."""

import math
from collections.abc import Iterator
from typing import Any

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def matmul_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """2 x multiply-adds of all matrix products of `jax.jit(f).trace(*args).jaxpr`, on all devices together.

    A scan counts as often as it runs, of a conditional the longer branch; a while loop's length is not known and counts as one.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: JaxprEqn) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left, output = equation.invars[0].aval, equation.outvars[0].aval
        assert isinstance(left, ShapedArray) and isinstance(output, ShapedArray)  # they are arrays
        return 2 * math.prod(output.shape) * math.prod(left.shape[axis] for axis in contracted)
    inner = [matmul_flops(jaxpr) for jaxpr in _jaxprs(equation)]
    if equation.primitive.name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if equation.primitive.name == "scan" else 1)


def _jaxprs(equation: JaxprEqn) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item
