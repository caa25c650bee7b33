"""Rules join the tensors of another format and the leaves of ours; each serves both directions.

    foreign  ...layers.{layer}.self_attn.k_proj.weight
    ours     PaliGemma/llm/layers/attn/kv_einsum/w[layer,0]
    layout   (K H) D -> K D H

A foreign tensor is one entry of our leaf along the leading axes in brackets. The layout names the
axes on both sides, so that forward (foreign to ours) and inverse follow from it. An axis in
parentheses is several of ours flattened. The letters are those of tree.py.

The first rule that matches a name counts. It is an error if no rule matches a name, or if no tensor
fills a leaf.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from pi0_jax.convert.tree import NAMES, Shape, Sizes
from pi0_jax.errors import InputError
from pi0_jax.models.paths import name_of

# A weight holds the leaf. A copy holds it once more (a tied embedding): it is written, and it is
# read where the weight itself was left out. What is unused is no part of π0: it is written as zeros
# where a layout is given, and never read.
Role = Literal["weight", "copy", "unused"]
SAME = "same"  # the layout of a tensor that is our leaf as it is


class Rule(NamedTuple):
    """Joins a foreign tensor and our leaf.

    Attributes:
        foreign: a name with at most one {layer} or {path}.
        ours: our path, or {path} in it.
        place: the indices on the leading axes of our leaf: "layer" or numbers.
        layout: how the axes are laid out, see `parse_layout`.
        role: what the tensor is for.
    """

    foreign: str
    ours: str
    place: tuple[str, ...]
    layout: str
    role: Role


def rule(foreign: str, ours: str, layout: str = SAME, role: Role = "weight") -> Rule:
    """Makes a rule; `ours` may end with indices on its leading axes, as in "path[layer,0]"."""
    path, _, index = ours.removesuffix("]").partition("[")
    return Rule(foreign, path, tuple(index.split(",")) if index else (), layout, role)


# ---- layouts


class Layout(NamedTuple):
    """Says how the axes of a foreign tensor are those of ours.

    Attributes:
        groups: for each axis of the foreign tensor the axes of ours that are flattened in it.
        ours: the axes of ours, in order.
    """

    groups: tuple[tuple[str, ...], ...]
    ours: tuple[str, ...]

    def forward(self, x: np.ndarray, sizes: Sizes) -> np.ndarray:
        """Turns a foreign tensor into ours."""
        flat = [axis for group in self.groups for axis in group]
        # A flattened axis becomes several, by the known sizes.
        split = [size for size, group in zip(x.shape, self.groups, strict=True)
                 for size in ((size,) if len(group) == 1 else (sizes[axis] for axis in group))]  # fmt: skip
        return x.reshape(split).transpose([flat.index(axis) for axis in self.ours])

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """Turns ours into a foreign tensor."""
        flat = [axis for group in self.groups for axis in group]
        return x.transpose([self.ours.index(axis) for axis in flat]).reshape(
            self.foreign_shape(dict(zip(self.ours, x.shape, strict=True)))
        )

    def foreign_shape(self, sizes: Sizes) -> Shape:
        """Returns the shape of the foreign tensor."""
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.groups)


@lru_cache
def parse_layout(text: str) -> Layout:
    """Reads a layout such as "(N H) D -> N D H".

    A tensor may have an axis twice. A prime then tells the two apart: "X C Q Q'".
    """
    foreign, _, ours = text.partition(" -> ")
    groups = tuple(
        tuple(match.strip("()").split()) for match in re.findall(r"\([^)]*\)|\S+", foreign)
    )
    return Layout(groups, tuple(ours.split()))


# ---- names


class Match(NamedTuple):
    """Says which leaf of ours a foreign tensor fills, found by the tensor's name.

    Attributes:
        rule: the rule that covers the name.
        path: our path.
        place: its indices on the leading axes of our leaf, such as (3,) for layer 3.
    """

    rule: Rule
    path: str
    place: tuple[int, ...]


@lru_cache
def _pattern(template: str) -> re.Pattern[str]:
    """Returns the regular expression of a rule's foreign name."""
    text = re.escape(template).replace(r"\{layer\}", r"(?P<layer>0|[1-9]\d*)")
    return re.compile(text.replace(r"\{path\}", r"(?P<path>.+)"))


def match(name: str, rules: Iterable[Rule]) -> Match | None:
    """Returns what the first rule that covers a foreign name says; None if there is none."""
    for rule in rules:
        if found := _pattern(rule.foreign).fullmatch(name):
            groups = found.groupdict()
            return Match(
                rule, rule.ours.format(**groups), _place(rule, int(groups.get("layer", 0)))
            )
    return None


def _place(rule: Rule, layer: int) -> tuple[int, ...]:
    """Returns where the tensor of a layer lies on the leading axes of our leaf."""
    return tuple(layer if entry == "layer" else int(entry) for entry in rule.place)


# ---- foreign to ours


class Piece(NamedTuple):
    """Says which foreign tensor is at a place in our leaf, and how it is laid out."""

    name: str
    layout: str


Pieces = Mapping[str, Mapping[tuple[int, ...], Piece]]  # path -> place along the leading axes


class Plan(NamedTuple):
    """Says how foreign tensors make our leaves.

    Attributes:
        pieces: the tensors of each leaf.
        copies: foreign name -> the path that it holds once more.
        unused: foreign tensors that are no part of π0.
        sizes: the model's sizes, by the letters of tree.py.
    """

    pieces: Pieces
    copies: Mapping[str, str]
    unused: tuple[str, ...]
    sizes: Mapping[str, int]


def plan(
    rules: Sequence[Rule],
    shapes: Mapping[str, Shape],
    wanted: Mapping[str, str],
    given: Sizes,
    source: str,
) -> Plan:
    """Places every foreign tensor.

    Args:
        rules: the rules of the format.
        shapes: the shapes of the foreign tensors, by name.
        wanted: the leaves that they must fill, with their axes.
        given: sizes that the tensors do not show, by the letters of tree.py.
        source: names the checkpoint in messages.

    Raises:
        InputError: no rule covers a tensor, a leaf lacks a tensor, or shapes contradict each other.
    """
    matches = {name: found for name in shapes if (found := match(name, rules))}
    if unknown := sorted(shapes.keys() - matches.keys()):
        them = "it" if len(unknown) == 1 else "them"
        raise InputError(f"{source}: {_some(unknown)}: no rule covers {them}")
    pieces: dict[str, dict[tuple[int, ...], Piece]] = {}
    copies = {}
    # Copies come after the weights: a copy stands for a weight that was left out.
    for name, (rule, path, place) in sorted(matches.items(), key=lambda item: item[1].rule.role == "copy"):  # fmt: skip
        if rule.role == "copy" and path in pieces:
            copies[name] = path
        elif rule.role != "unused":
            places = pieces.setdefault(path, {})
            if place in places:
                raise InputError(
                    f"{source}: {places[place].name} and {name} both hold {path}{list(place)}"
                )
            places[place] = Piece(name, rule.layout)
    if strangers := sorted(pieces.keys() - wanted.keys()):
        raise InputError(f"{source}: {_some(strangers)}: no leaf of {name_of(wanted) or 'π0'}")
    depths = _depths(pieces, wanted)
    if missing := list(_missing(rules, pieces, wanted, depths)):
        raise InputError(f"{source}: {_some(missing)}: missing")
    layouts = [(piece, path) for path, places in pieces.items() for piece in places.values()]
    layouts += [(Piece(name, matches[name].rule.layout), path) for name, path in copies.items()]
    axes = [(name, shapes[name], _axes(layout, wanted[path])) for (name, layout), path in layouts]
    sizes = _sizes(axes, depths, given, source)
    unused = tuple(name for name, found in matches.items() if found.rule.role == "unused")
    return Plan(pieces, copies, unused, sizes)


def _depths(pieces: Pieces, wanted: Mapping[str, str]) -> dict[str, int]:
    """Returns the number of layers of each stack whose tensors are one layer's."""
    depths: dict[str, int] = {}
    for path, places in pieces.items():
        stack = wanted[path][0]
        if stack in "IL" and () not in places:
            depths[stack] = max(depths.get(stack, 1), *(place[0] + 1 for place in places))
    return depths


def _missing(
    rules: Sequence[Rule], pieces: Pieces, wanted: Mapping[str, str], depths: Sizes
) -> Iterator[str]:
    """Yields the tensors that leaves lack; the leaves themselves, where rules name none."""
    found, named = False, [rule for rule in rules if rule.role == "weight" and rule.ours in wanted]
    for rule in named:
        layers = depths.get(wanted[rule.ours][0], 1) if "layer" in rule.place else 1
        for layer in range(layers):
            if _place(rule, layer) not in pieces.get(rule.ours, {}):
                found = True
                yield rule.foreign.format(layer=layer)
    if not found:
        yield from (path for path in wanted if path not in pieces)


def _axes(layout: str, axes: str) -> list[tuple[str, ...]]:
    """Returns for each axis of a foreign tensor the axes of our leaf that are flattened in it."""
    if layout == SAME:
        return [(axis,) for axis in axes.split()]
    groups = parse_layout(layout).groups
    return [tuple(axis.rstrip("'") for axis in group) for group in groups]


# Letters of sizes -> whether a π0 has these sizes together, and what it has.
_RELATIONS: Sequence[tuple[str, Callable[..., bool], str]] = (
    ("P", lambda P: math.isqrt(P) ** 2 == P, "as many patches as a square image has"),
    ("C", lambda C: C == 3, "3 colours"),
    ("XMJ", lambda X, M, J: X == M * J, "image_width = image_heads x image_head_dim"),
    ("NK", lambda N, K: K > 0 and N % K == 0, "num_heads a multiple of num_kv_heads"),
    ("TE", lambda T, E: T == 2 * E, "time_mlp_input = 2 x expert_width"),
    ("SE", lambda S, E: S == 3 * E, "modulation = 3 x expert_width"),
)


def _sizes(
    tensors: Sequence[tuple[str, Shape, list[tuple[str, ...]]]],
    depths: Sizes,
    given: Sizes,
    source: str,
) -> dict[str, int]:
    """Returns the sizes of all axes, or raises InputError where tensors contradict each other.

    A tensor is its name, its shape, and for each axis the axes of ours that are flattened in it.
    """
    sizes = dict(depths)
    told: dict[str, str] = {}  # the tensor that told a size first
    for name, shape, groups in tensors:
        if len(shape) != len(groups):
            letters = " ".join("x".join(group) for group in groups)
            raise InputError(
                f"{source}: {name}: expected {len(groups)} axes ({letters}), found shape {list(shape)}"
            )
        for size, (axis, *others) in zip(shape, groups, strict=True):
            if not others:
                sizes.setdefault(axis, int(axis) if axis.isdigit() else size)
                told.setdefault(axis, f" (by {name})")
    for axis, size in given.items():
        if sizes.setdefault(axis, size) != size:
            raise InputError(
                f"{source}: {NAMES[axis]} is {sizes[axis]} by the tensors, {size} as given"
            )
    axes = [
        (name, size, group)
        for name, shape, groups in tensors
        for size, group in zip(shape, groups, strict=True)
    ]
    # Of the sizes that are flattened in one axis one may be unknown. It is the rest of the product.
    for name, size, group in axes:
        unknown = [axis for axis in group if axis not in sizes]
        if len(unknown) > 1:
            names = " x ".join(NAMES[axis] for axis in group)
            raise InputError(
                f"{source}: {name} shows only {names} = {size}; give one, as in --sizes={NAMES[group[-1]]}=..."
            )
        for axis in unknown:
            rest = math.prod(sizes[other] for other in group if other != axis)
            sizes[axis] = max(1, size // max(1, rest))

    def text(letters: Iterable[str]) -> str:
        return " x ".join(
            f"{NAMES.get(i, 'an axis of')} {sizes[i]}{told.get(i, '')}" for i in letters
        )

    for name, size, group in axes:
        if size != math.prod(sizes[axis] for axis in group):
            raise InputError(
                f"{source}: shapes contradict each other: {name}: expected {text(group)}, found {size}"
            )
    for letters, holds, rule in _RELATIONS:
        if all(i in sizes for i in letters) and not holds(*(sizes[i] for i in letters)):
            found = ", ".join(map(text, letters))
            raise InputError(
                f"{source}: shapes contradict each other: expected {rule}, found {found}"
            )
    return {axis: size for axis, size in sizes.items() if axis in NAMES}


# ---- ours to foreign


class Entry(NamedTuple):
    """Says which foreign tensor is to be written.

    Attributes:
        name: its name.
        path: our path; "" for a tensor of zeros.
        place: the entry along our leaf's leading axes.
        layout: how the axes are laid out.
        shape: its shape.
    """

    name: str
    path: str
    place: tuple[int, ...]
    layout: str
    shape: Shape


def entries(
    rules: Sequence[Rule], shapes: Mapping[str, Shape], sizes: Sizes, source: str
) -> list[Entry]:
    """Returns the foreign tensors that our leaves make.

    Those of one leaf stand together, its layers in order.

    Raises:
        InputError: the rules do not cover a leaf, or not all of it.
    """
    result: list[Entry] = []
    for path, shape in shapes.items():
        own = [rule for rule in rules if rule.ours == path and rule.role != "unused"]
        filled = [entry for rule in own for entry in _entries(rule, path, shape)]
        places = {entry.place for entry in filled}
        leading = len(next(iter(places), ()))
        if places != set(itertools.product(*map(range, shape[:leading]))):
            raise InputError(f"{source}: {path} {list(shape)}: no rule covers it, or not all of it")
        result += sorted(filled, key=lambda entry: entry.place)
    for rule in rules:
        if rule.role == "unused" and rule.layout != SAME:
            zeros = parse_layout(rule.layout).foreign_shape(sizes)
            result.append(Entry(rule.foreign, "", (), SAME, zeros))
    return result


def _entries(rule: Rule, path: str, shape: Shape) -> Iterator[Entry]:
    """Yields the tensors that a rule makes of our leaf."""
    layout = parse_layout(rule.layout)
    for layer in range(shape[0]) if "layer" in rule.place else (0,):
        place = _place(rule, layer)
        foreign = layout.foreign_shape(dict(zip(layout.ours, shape[len(place) :], strict=True)))
        yield Entry(rule.foreign.format(layer=layer), path, place, rule.layout, foreign)


def _some(names: Sequence[str]) -> str:
    """Returns the first three names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
