"""The floating-point operations of a traced function are counted here, in its jaxpr.

XLA's own count is not used, because on TPUs it takes a loop's body only once.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def matmul_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Returns the operations of all matrix products, on all devices together.

    A multiply-add is two operations. A scan counts as often as it runs. Of a conditional the longer
    branch counts. A while loop's length is not known, so it counts once.

    Args:
        jaxpr: of `jax.jit(f).trace(*args).jaxpr`.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: JaxprEqn) -> int:
    """Returns the operations of one equation of a jaxpr, with those inside of it."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left, output = equation.invars[0].aval, equation.outvars[0].aval
        assert isinstance(left, ShapedArray) and isinstance(output, ShapedArray)  # they are arrays
        # Each number of the output is a sum over the contracted axes.
        return 2 * math.prod(output.shape) * math.prod(left.shape[axis] for axis in contracted)
    inner = [matmul_flops(jaxpr) for jaxpr in _jaxprs(equation)]
    if equation.primitive.name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if equation.primitive.name == "scan" else 1)


def _jaxprs(equation: JaxprEqn) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters: the bodies of loops, branches and calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item
