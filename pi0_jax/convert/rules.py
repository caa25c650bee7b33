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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from pi0_jax.convert.tree import NAMES, Binding, Shape, Sizes
from pi0_jax.errors import InputError

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
        place: the entry on the leading axes: "layer" or numbers.
        layout: how the axes are laid out, see `parse_layout`.
        role: what the tensor is for.
    """

    foreign: str
    ours: str
    place: tuple[str, ...]
    layout: str
    role: Role


def rule(foreign: str, ours: str, layout: str = SAME, role: Role = "weight") -> Rule:
    """Returns a rule, with our place written behind our path, as in "path[layer,0]"."""
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
    """Says which rule covers a foreign name.

    Attributes:
        rule: the rule.
        path: our path.
        layer: the layer; 0 where the rule names none.
    """

    rule: Rule
    path: str
    layer: int


@lru_cache
def _pattern(template: str) -> re.Pattern[str]:
    """Returns the regular expression of a rule's foreign name."""
    return re.compile(
        re.escape(template)
        .replace(r"\{layer\}", r"(?P<layer>0|[1-9]\d*)")
        .replace(r"\{path\}", r"(?P<path>.+)")
    )


def match(name: str, rules: Iterable[Rule]) -> Match | None:
    """Returns the first rule that covers a foreign name; None if there is none."""
    for candidate in rules:
        found = _pattern(candidate.foreign).fullmatch(name)
        if found is not None:
            groups = found.groupdict()
            layer = int(groups["layer"]) if "layer" in groups else 0
            return Match(
                candidate, candidate.ours.format(**groups) if candidate.ours else "", layer
            )
    return None


# ---- foreign to ours


class Piece(NamedTuple):
    """Says which foreign tensor is at a place in our leaf, and how it is laid out."""

    name: str
    layout: str


class Plan(NamedTuple):
    """Says how foreign tensors make our leaves.

    Attributes:
        pieces: path -> place along the leading axes -> tensor.
        copies: foreign name -> the path that it holds once more.
        unused: foreign tensors that are no part of π0.
        sizes: the model's sizes, by the letters of tree.py.
    """

    pieces: Mapping[str, Mapping[tuple[int, ...], Piece]]
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
        given: sizes that the tensors do not show (letters of tree.py).
        source: names the checkpoint in messages.

    Raises:
        InputError: no rule covers a tensor, a leaf lacks a tensor, or shapes contradict each other.
    """
    matches: dict[str, Match] = {}
    unknown = []
    for name in shapes:
        if (found := match(name, rules)) is None:
            unknown.append(name)
        else:
            matches[name] = found
    if unknown:
        raise InputError(
            f"{source}: {_some(sorted(unknown))}: no rule covers {'it' if len(unknown) == 1 else 'them'}"
        )
    pieces: dict[str, dict[tuple[int, ...], Piece]] = {}
    for name, found in matches.items():
        if found.rule.role == "weight":
            _put(pieces.setdefault(found.path, {}), found, name, source)
    copies = {}
    for name, found in matches.items():
        if found.rule.role != "copy":
            continue
        if found.path in pieces:
            copies[name] = found.path
        else:  # The tied tensor was saved under its other name only.
            _put(pieces.setdefault(found.path, {}), found, name, source)
    strangers = sorted(path for path in pieces if path not in wanted)
    if strangers:
        raise InputError(f"{source}: {_some(strangers)}: no leaf of π0")
    _check_complete(rules, pieces, wanted, source)
    used = {
        piece.name: (piece.layout, path)
        for path, places in pieces.items()
        for piece in places.values()
    }
    used |= {name: (matches[name].rule.layout, path) for name, path in copies.items()}
    sizes = _bind(used, shapes, wanted, _depths(pieces, wanted), given, source)
    unused = tuple(name for name, found in matches.items() if found.rule.role == "unused")
    return Plan(pieces, copies, unused, sizes)


def _put(places: dict[tuple[int, ...], Piece], found: Match, name: str, source: str) -> None:
    """Puts a tensor at its place in our leaf; raises InputError if another one is there."""
    place = _place(found.rule, found.layer)
    if place in places:
        raise InputError(
            f"{source}: {places[place].name} and {name} both hold {found.path}{list(place)}"
        )
    places[place] = Piece(name, found.rule.layout)


def _place(rule: Rule, layer: int) -> tuple[int, ...]:
    """Returns where the tensor of a layer lies on the leading axes of our leaf."""
    return tuple(layer if entry == "layer" else int(entry) for entry in rule.place)


def _check_complete(
    rules: Sequence[Rule],
    pieces: Mapping[str, Mapping[tuple[int, ...], Piece]],
    wanted: Mapping[str, str],
    source: str,
) -> None:
    """Raises InputError if a leaf lacks a tensor."""
    depths = _depths(pieces, wanted)
    missing = []
    for candidate in rules:
        if candidate.role != "weight" or "{path}" in candidate.ours or candidate.ours not in wanted:
            continue
        stack = wanted[candidate.ours][0]
        layers = (
            range(depths[stack] if stack in depths else 1) if "layer" in candidate.place else (0,)
        )
        for layer in layers:
            if _place(candidate, layer) not in pieces.get(candidate.ours, {}):
                missing.append(candidate.foreign.format(layer=layer))
    missing = missing or [path for path in wanted if not pieces.get(path)]
    if missing:
        raise InputError(f"{source}: {_some(missing)}: missing")


def _depths(
    pieces: Mapping[str, Mapping[tuple[int, ...], Piece]], wanted: Mapping[str, str]
) -> dict[str, int]:
    """Returns the number of layers of each stack whose tensors are one layer's."""
    depths: dict[str, int] = {}
    for path, places in pieces.items():
        stack = wanted[path][0]
        if stack in "IL" and places and () not in places:
            depths[stack] = max(
                depths[stack] if stack in depths else 1, *(place[0] + 1 for place in places)
            )
    return depths


def _bind(
    used: Mapping[str, tuple[str, str]],
    shapes: Mapping[str, Shape],
    wanted: Mapping[str, str],
    depths: Sizes,
    given: Sizes,
    source: str,
) -> dict[str, int]:
    """Returns the sizes of all axes, from tensors and from what is given."""
    binding = Binding()
    binding.sizes.update(depths)
    # A tensor's name, the axes that are flattened in one of its axes, and their product.
    products: list[tuple[str, tuple[str, ...], int]] = []
    for name, (text, path) in used.items():
        shape = shapes[name]
        if text == SAME:
            binding.add(name, shape, wanted[path].split(), source)
            continue
        groups = parse_layout(text).groups
        if len(shape) != len(groups):
            raise InputError(
                f"{source}: {name}: expected {len(groups)} axes, found shape {list(shape)}"
            )
        single = [i for i, group in enumerate(groups) if len(group) == 1]
        binding.add(
            name,
            tuple(shape[i] for i in single),
            [groups[i][0].rstrip("'") for i in single],
            source,
        )
        products += [(name, group, shape[i]) for i, group in enumerate(groups) if len(group) > 1]
    for axis, size in given.items():
        if binding.sizes.setdefault(axis, size) != size:
            raise InputError(
                f"{source}: {NAMES[axis]} is {binding.sizes[axis]} by the tensors, {size} as given"
            )
    # Of the sizes that are flattened in one axis one may be unknown. It is the rest of the product.
    for name, group, product in products:
        open_axes = [axis for axis in group if axis not in binding.sizes]
        if len(open_axes) > 1:
            names = " x ".join(NAMES[axis] for axis in group)
            raise InputError(
                f"{source}: {name} shows only {names} = {product}; give one, as in --sizes={NAMES[group[-1]]}=..."
            )
        known = math.prod(binding.sizes[axis] for axis in group if axis in binding.sizes)
        if product % known or (not open_axes and product != known):
            implied = " x ".join(
                f"{NAMES[axis]} {binding.sizes[axis]}" if axis in binding.sizes else NAMES[axis]
                for axis in group
            )
            raise InputError(
                f"{source}: shapes contradict each other: {name} has {product} rows or columns, expected {implied}"
            )
        if open_axes:
            binding.add(name, (product // known,), open_axes, source)
    binding.check_relations(source)
    return binding.sizes


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
        filled = [entry for candidate in rules if candidate.ours == path and candidate.role != "unused"
                  for entry in _entries(candidate, path, shape)]  # fmt: skip
        places = {entry.place for entry in filled}
        leading = len(next(iter(places), ()))
        if places != set(itertools.product(*map(range, shape[:leading]))):
            raise InputError(f"{source}: {path} {list(shape)}: no rule covers it, or not all of it")
        result += sorted(filled, key=lambda entry: entry.place)
    for candidate in rules:
        if candidate.role == "unused" and candidate.layout != SAME:
            result.append(
                Entry(
                    candidate.foreign,
                    "",
                    (),
                    SAME,
                    parse_layout(candidate.layout).foreign_shape(sizes),
                )
            )
    return result


def _entries(candidate: Rule, path: str, shape: Shape) -> Iterator[Entry]:
    """Yields the tensors that a rule makes of our leaf."""
    for layer in range(shape[0]) if "layer" in candidate.place else (0,):
        place = _place(candidate, layer)
        layout = parse_layout(candidate.layout)
        foreign = layout.foreign_shape(dict(zip(layout.ours, shape[len(place) :], strict=True)))
        yield Entry(candidate.foreign.format(layer=layer), path, place, candidate.layout, foreign)


def _some(names: Sequence[str]) -> str:
    """Returns the first three names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
