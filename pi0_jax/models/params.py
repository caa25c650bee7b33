"""Parameters are declared from a table of shapes, under the published names; the maths is plain functions of the resulting dict."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax


class Param(NamedTuple):
    shape: tuple[int, ...]
    init: Any  # a jax.nn.initializers function


class ParamTree(nn.Module):
    """Declares a nested table of `Param`s and returns the arrays in the same nesting."""

    table: Mapping[str, Any]  # name -> Param or a nested table

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        return declare(self, self.table)


def declare(module: nn.Module, table: Mapping[str, Any]) -> dict[str, Any]:
    """Declares `table` inside a compact method of `module`; in a model that has parameters gives those, without declaring them again."""
    if not module.is_initializing():
        return {name: module.variables["params"][name] for name in table}
    return {
        name: ParamTree(entry, name=name)()
        if isinstance(entry, Mapping)
        else module.param(name, entry.init, entry.shape)
        for name, entry in table.items()
    }


def fan_in_normal(
    in_axis: int | tuple[int, ...], out_axis: int | tuple[int, ...], gain: float = 1.0
) -> Any:
    """Standard deviation gain / sqrt(fan-in); axis 0 is a stack of layers and counts for neither fan."""
    return jax.nn.initializers.variance_scaling(
        gain**2, "fan_in", "truncated_normal", in_axis=in_axis, out_axis=out_axis, batch_axis=(0,)
    )


zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones
normal = jax.nn.initializers.normal
