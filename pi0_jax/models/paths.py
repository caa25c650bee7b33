"""A tree of parameters has its leaves by path, such as PaliGemma/llm/layers/mlp/linear."""

from collections.abc import Iterable, Mapping
from typing import Any

from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of a nested mapping by their paths; empty mappings have none."""
    leaves: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of leaves that are given by their paths."""
    tree: dict[str, Any] = traverse_util.unflatten_dict(leaves, sep="/")
    return tree


def name_of(paths: Iterable[str]) -> str:
    """Returns whose parameters have these paths: "π0", "π0.5", or "" where both may."""
    names = {"state_proj": "π0", "time_mlp_in": "π0.5"}
    roots = (path.partition("/")[0] for path in paths)
    return next((names[root] for root in roots if root in names), "")
