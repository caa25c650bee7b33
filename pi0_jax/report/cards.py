"""Writes dataset cards: a page for each indexed dataset.

On a card a person sees swapped colours or an inverted gripper before training.

    output/
        index.html              the datasets in a table
        <dataset>/index.html    one card, its pictures beside it

The pages need no network and open from disk. A card reads the episode table, samples of the columns
and a few dozen images.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from pi0_jax.data.index import Index
from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.gripper_check import Finding, Trend, grippers, trends
from pi0_jax.errors import InputError
from pi0_jax.preprocess import normalize
from pi0_jax.report import card_episodes, card_facts, card_figures
from pi0_jax.report.card_figures import Panel
from pi0_jax.report.folder import PAGE, new_pages
from pi0_jax.report.markup import Html, document, escaped, picture, section, table

_GENERATOR = "<meta name=generator content='pi0_jax dataset cards'>"
_PROMPTS = 20
_SUCCESS = {1: "succeeded", 0: "failed", -1: "without a success label"}


@dataclasses.dataclass(frozen=True)
class Card:
    """Holds what a card is made of.

    Attributes:
        index: the dataset's index.
        statistics: the statistics of the index's training frames, actions over chunks of `horizon`.
        horizon: steps of a chunk.
        share: the dataset's share of a mixture's samples, or None without a mixture.
    """

    index: Index
    statistics: normalize.Statistics
    horizon: int
    share: float | None = None


def write_cards(cards: Sequence[Card], output: Path) -> Path:
    """Writes a page for each dataset and one that lists them, and returns the list's path.

    The list appears last. Cards that are there already are replaced.

    Raises:
        InputError: two datasets have the same name. What `new_pages` and `Index.observation` raise
            comes through as well.
    """
    names = [card.index.name for card in cards]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"dataset cards: expected datasets of different names, found {name!r} {names.count(name)} times"
            )
    with new_pages(output, _GENERATOR) as folder:
        rows = [_list_row(card, _write_card(card, folder / card.index.name)) for card in cards]
        (folder / PAGE).write_text(
            document("Datasets", _list_table(rows), _GENERATOR), encoding="utf-8"
        )
    return output / PAGE


def _list_table(rows: Sequence[Sequence[Any]]) -> str:
    header = (
        "",
        "dataset",
        "robot",
        "Hz",
        "episodes",
        "steps",
        "kept, train",
        "kept, val",
        "share",
        "found",
    )
    return table(header, rows)


def _list_row(card: Card, found: Sequence[Finding]) -> list[Any]:
    index = card.index
    link = f"{quote(index.name)}/{PAGE}"
    name = Html(f'<a href="{link}"><b>{escaped(index.name)}</b></a>')
    wrong = [finding for finding in found if finding.level == "wrong"]
    others = len(found) - len(wrong)
    rest = (
        [Finding("look", f"{others} to look at")]
        if others
        else []
        if wrong
        else [Finding("fine", "nothing")]
    )
    summary = "".join(map(_finding, [*wrong, *rest]))
    first = next(iter(index.row.cameras))
    image = Html(
        f'<a href="{link}">{picture(f"{quote(index.name)}/{_camera_file(0, swapped=False)}", first, width=96)}</a>'
    )
    counts = [
        len(index.episodes["start"]),
        index.steps,
        *(len(index.frames(split)) for split in SPLITS),
    ]
    return [
        image,
        name,
        index.embodiment.robot,
        index.embodiment.control_hz,
        *counts,
        _share(card),
        Html(summary),
    ]


def _share(card: Card) -> str:
    return "" if card.share is None else f"{card.share:.2%}"


def _write_card(card: Card, folder: Path) -> list[Finding]:
    """Writes one dataset's page and pictures, and returns what was found."""
    folder.mkdir()
    index = card.index
    prompts, followed = card_facts.count_prompts(index), trends(index)
    found = card_facts.findings(index, card.statistics, prompts, followed)
    parts = [
        f'<p><a href="../{PAGE}">all datasets</a></p>',
        "".join(map(_finding, found)) or _finding(Finding("fine", "No problem found.")),
        _summary(card),
        _cameras(index, folder),
        _grippers(index, followed),
        _episodes(index, followed, folder),
        _histograms(card, folder),
        _prompts(index, prompts),
        _rule(index),
    ]
    (folder / PAGE).write_text(document(index.name, "\n".join(parts), _GENERATOR), encoding="utf-8")
    return found


def _finding(finding: Finding) -> Html:
    return Html(f"<div class={finding.level}>{escaped(finding.text)}</div>")


def _summary(card: Card) -> str:
    index, episodes = card.index, card.index.episodes
    robot = index.embodiment
    kept = ", ".join(
        f"{len(index.frames(split)):,} {split} (of {int((episodes['split'] == number).sum()):,} episodes)"
        for number, split in enumerate(SPLITS)
    )
    success = ", ".join(
        f"{int(count):,} {word}"
        for value, word in _SUCCESS.items()
        if (count := (episodes["success"] == value).sum())
    )
    rows = [
        ("robot", f"{robot.robot} (embodiment {robot.name})"),
        (
            "control rate",
            f"{robot.control_hz:g} Hz; {_duration(index.steps / robot.control_hz)} in all",
        ),
        ("episodes", f"{len(episodes['start']):,} ({success})"),
        ("steps", f"{index.steps:,}; an episode has {_span(episodes['length'])}"),
        ("kept frames", kept),
        ("share of the mixture", _share(card) or "no mixture given"),
        ("cameras", _camera_list(index)),
        ("state", _dims(robot.state)),
        ("action", _dims(robot.actions)),
        ("files", f"{index.row.tfds_name}, index {index.path.name} ({index.size_bytes:,} bytes)"),
    ]
    return table(("", ""), rows)


def _span(lengths: np.ndarray) -> str:
    return f"{lengths.min():,} to {lengths.max():,}, median {int(np.median(lengths)):,}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def _camera_list(index: Index) -> Html:
    """Returns a line for each view: its size, its colour order and its slot in the model."""
    slots = {camera: slot for slot, camera in index.embodiment.cameras.items()}
    lines = [
        f"{label}: {card_facts.image_size(index, index.view(camera, choice))}, {index.row.cameras[camera].order}, slot {slots[camera]}"
        for camera, choice, label in card_episodes.views(index)
    ]
    return Html("<br>".join(map(escaped, lines)))


def _dims(dims: Sequence[Any]) -> str:
    return f"{len(dims)}: " + ", ".join(f"{dim.name} [{dim.unit}]" for dim in dims)


def _camera_file(view: int, *, swapped: bool) -> str:
    return f"camera-{view}{'-swapped' if swapped else ''}.png"


def _cameras(index: Index, folder: Path) -> str:
    """Shows one large frame of each view, and the same frame with red and blue swapped.

    A person sees which of the two is right.
    """
    episode = card_episodes.shown(index)[0]
    frame = int(index.episodes["start"][episode] + index.episodes["length"][episode] // 2)
    parts = []
    for number, (camera, choice, label) in enumerate(card_episodes.views(index)):
        image = index.observation(frame, choice)["images"][camera]
        order = index.row.cameras[camera].order
        other = "BGR" if order == "RGB" else "RGB"
        card_figures.save_image(image, folder / _camera_file(number, swapped=False))
        card_figures.save_image(
            np.ascontiguousarray(image[:, :, ::-1]), folder / _camera_file(number, swapped=True)
        )
        size = card_facts.image_size(index, index.view(camera, choice))
        assumed = f"{label}: {size}, files taken to hold {order}. This is what the model sees."
        parts.append(
            picture(
                _camera_file(number, swapped=False), f"{label}, as trained on", assumed, width=400
            )
        )
        parts.append(
            picture(
                _camera_file(number, swapped=True),
                f"{label}, swapped",
                f"If this one looks right, the order is {other}.",
                width=200,
            )
        )
        parts.append(Html("<br>"))
    return section(
        "Cameras",
        "\n".join(parts),
        "Left, large: as trained on. Right, small: with red and blue swapped.",
    )


def _grippers(index: Index, followed: Sequence[Trend]) -> str:
    """Says what the columns tell about each gripper's polarity; nothing for a robot without one."""
    if not grippers(index):
        return ""
    rows = [
        (
            trend.gripper,
            trend.state,
            f"1 = {trend.declared}" if trend.declared else "not declared",
            _finding(trend.finding),
        )
        for trend in followed
    ]
    body = (
        table(("gripper", "state", "declared", "the data say"), rows)
        if rows
        else "<p>No gripper has both an action and a state.</p>"
    )
    return section(
        "Gripper",
        body,
        "Actions are indexed with 1 = open. Only the frames show what is inverted in both: the words below them must be true of them.",
    )


def _episodes(index: Index, followed: Sequence[Trend], folder: Path) -> str:
    parts = []
    inverted = {trend.gripper for trend in followed if trend.finding.level == "wrong"}
    for episode in card_episodes.shown(index):
        file = f"episode-{episode}.png"
        strip = card_episodes.strip(index, episode)
        panels = {
            gripper.name: Panel(
                card_episodes.curves(index, episode, gripper), gripper.name in inverted
            )
            for gripper in grippers(index)
        }
        card_figures.episode(strip, panels, folder / file)
        start = int(index.episodes["start"][episode])
        split, success = (
            SPLITS[index.episodes["split"][episode]],
            _SUCCESS[int(index.episodes["success"][episode])],
        )
        caption = f'Episode {episode}: "{index.prompt(start)}"; {len(strip.kept)} steps, {split}, {success}'
        parts.append(
            f"<p><b>{escaped(caption)}</b></p>{picture(file, f'frames of episode {episode}')}"
        )
    note = "Time runs to the right. " + (
        "Steps in grey are never drawn." if grippers(index) else ""
    )
    return section("Episodes", "\n".join(parts), note)


def _histograms(card: Card, folder: Path) -> str:
    index = card.index
    states, actions = card_facts.state_sample(index), card_facts.action_sample(index, card.horizon)
    if index.embodiment.state:
        card_figures.histograms(
            states, index.embodiment.state, card.statistics.state, folder / "state.png"
        )
    card_figures.histograms(
        actions, index.embodiment.actions, card.statistics.actions, folder / "action.png"
    )
    frames = len(index.frames("train"))
    ends = "Above each: its smallest and largest value; what lies far out is not drawn."
    state_note = f"{len(states):,} of {frames:,} training frames, evenly spaced. {ends}"
    deltas = ", ".join(dim.name for dim in index.embodiment.actions if dim.delta)
    action_note = (
        f"{len(actions):,} of {frames * card.horizon:,} actions: chunks of {card.horizon} steps from evenly spaced training frames on,"
        f" in the robot's convention{f'; minus the state before the chunk: {deltas}' if deltas else ''}."
    )
    state = (
        picture("state.png", "histograms of the state")
        if index.embodiment.state
        else "<p>This robot has no state.</p>"
    )
    return section("State", state, state_note) + section(
        "Actions", picture("action.png", "histograms of the actions"), action_note
    )


def _prompts(index: Index, prompts: card_facts.Prompts) -> str:
    counted = (
        "every episode"
        if prompts.episodes == len(index.episodes["start"])
        else f"{prompts.episodes:,} evenly spaced episodes"
    )
    empty = f"{prompts.empty:,} of {prompts.episodes:,} episodes have none"
    note = (
        f"{prompts.distinct:,} distinct prompts; {empty}. Counted at the first step of {counted}."
    )
    return section("Prompts", table(("prompt", "episodes"), prompts.counts[:_PROMPTS]), note)


def _rule(index: Index) -> str:
    """Shows the row's notes, and what its rule says of itself."""
    notes = "".join(f"<li>{escaped(note)}</li>" for note in index.row.notes)
    first, _, rest = (
        inspect.getdoc(index.row.standardise) or "The rule has no docstring."
    ).partition("\n\n")
    more = (
        f"<details><summary>more of the rule</summary><pre>{escaped(rest)}</pre></details>"
        if rest
        else ""
    )
    dims = index.embodiment.actions
    notes += "".join(
        f"<li>{escaped(dims[place].name)}: {gripper.open:g} is open and {gripper.closed:g} closed in what was recorded,"
        f" {' and '.join(f'{end:g}' for end in ends)} in what the robot is told.</li>"
        for place, gripper in index.row.recorded_grippers.items()
        if (ends := dims[place].ends) is not None
    )
    notes = f"<ul>{notes}</ul>" if notes else "<p>The row has no notes.</p>"
    return section("Notes", notes) + section("Rule", f"<p>{escaped(first)}</p>{more}")
