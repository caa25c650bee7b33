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
from pi0_jax.data.index.findings import image_size, still_findings
from pi0_jax.data.index.gripper_check import Finding, Trend, gripper_lines, grippers, trends
from pi0_jax.data.mixture import shares_by_frames
from pi0_jax.data.statistics import index_statistics
from pi0_jax.errors import InputError
from pi0_jax.preprocess import normalize
from pi0_jax.report import card_facts, card_figures
from pi0_jax.report.pages import PAGE, Html, document, escaped, new_pages, picture, section, table

_GENERATOR = "<meta name=generator content='pi0_jax dataset cards'>"
_PROMPTS = 20
_SUCCESS = {1: "succeeded", 0: "failed", -1: "without a success label"}


@dataclasses.dataclass(frozen=True)
class Card:
    """Holds what the card of one dataset shows."""

    index: Index
    statistics: normalize.Statistics  # of its training frames, actions over chunks
    horizon: int  # steps of a chunk
    share: float | None = None  # of a mixture's samples, if there is one


def mixture_cards(
    indices: Sequence[Index], horizon: int, weights: Sequence[float], power: float
) -> list[Card]:
    """Returns a card for each index; the first of them have weights in a mixture."""
    mixed = indices[: len(weights)]
    shares = shares_by_frames(mixed, weights, power) if mixed else {}
    return [
        Card(index, index_statistics(index, horizon), horizon, shares.get(index.name))
        for index in indices
    ]


def summary(index: Index, seconds: float) -> str:
    """Returns lines of text: what an index holds, after `seconds` of work, and what to look at."""
    frames = ", ".join(f"{len(index.frames(split)):,} {split}" for split in SPLITS)
    steps = f"{len(index.episodes['start']):,} episodes, {index.steps:,} steps"
    counts = f"{steps}, kept frames {frames}, {len(index.prompts):,} prompts"
    found = [
        *gripper_lines(index),
        *still_findings(index),
        *card_facts.quick_findings(index, card_facts.count_prompts(index)),
    ]
    lines = [f"left out: {problem}" for problem in index.skipped]
    lines += [f"{index.name}: {counts}, {index.size_bytes:,} bytes, {seconds:.1f} s"]
    return "\n".join([*lines, *(f"- {finding.text}" for finding in found)])


def write_cards(cards: Sequence[Card], output: Path) -> Path:
    """Writes a page for each dataset and one that lists them, and returns the list's path.

    The list appears last. Cards that are there already are replaced.

    Raises:
        InputError: two datasets have the same name. What `new_pages` and `Index.observation` raise
            comes through as well.
    """
    names = [card.index.name for card in cards]
    for name in names:
        if (count := names.count(name)) > 1:
            expected = "expected datasets of different names"
            raise InputError(f"dataset cards: {expected}, found {name!r} {count} times")
    counts = "Hz", "episodes", "steps", "kept, train", "kept, val", "share"
    header = "", "dataset", "robot", *counts, "found"
    with new_pages(output, _GENERATOR) as folder:
        rows = [_list_row(card, _write_card(card, folder / card.index.name)) for card in cards]
        text = document("Datasets", [table(header, rows)], _GENERATOR)
        (folder / PAGE).write_text(text, encoding="utf-8")
    return output / PAGE


def _list_row(card: Card, found: Sequence[Finding]) -> list[Any]:
    index, folder = card.index, quote(card.index.name)
    wrong = [finding for finding in found if finding.level == "wrong"]
    if others := len(found) - len(wrong):
        rest = [Finding("look", f"{others} to look at")]
    else:
        rest = [] if wrong else [Finding("fine", "nothing")]
    image = picture(f"{folder}/{_camera_file(0)}", next(iter(index.row.cameras)), width=96)
    link = f'<a href="{folder}/{PAGE}">'
    return [
        Html(f"{link}{image}</a>"),
        Html(f"{link}<b>{escaped(index.name)}</b></a>"),
        index.embodiment.robot,
        index.embodiment.control_hz,
        len(index.episodes["start"]),
        index.steps,
        *(len(index.frames(split)) for split in SPLITS),
        _share(card),
        Html("".join(map(_finding, [*wrong, *rest]))),
    ]


def _share(card: Card) -> str:
    return "" if card.share is None else f"{card.share:.2%}"


def _write_card(card: Card, folder: Path) -> list[Finding]:
    """Writes one dataset's page and pictures, and returns the findings."""
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
    (folder / PAGE).write_text(document(index.name, parts, _GENERATOR), encoding="utf-8")
    return found


def _finding(finding: Finding) -> Html:
    return Html(f"<div class={finding.level}>{escaped(finding.text)}</div>")


def _summary(card: Card) -> str:
    index, episodes, robot = card.index, card.index.episodes, card.index.embodiment
    slots = {camera: slot for slot, camera in robot.cameras.items()}
    cameras = [
        f"{view.label}: {image_size(index, view.path)}, {view.order}, slot {slots[view.camera]}"
        for view in card_figures.views(index)
    ]
    kept = [
        f"{len(index.frames(split)):,} {split} (of {np.sum(episodes['split'] == number):,} episodes)"
        for number, split in enumerate(SPLITS)
    ]
    counts = {word: np.sum(episodes["success"] == value) for value, word in _SUCCESS.items()}
    success = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    seconds, lengths = index.steps / robot.control_hz, episodes["length"]
    time = f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"
    span = f"{lengths.min():,} to {lengths.max():,}, median {int(np.median(lengths)):,}"
    rows = [
        ("robot", f"{robot.robot} (embodiment {robot.name})"),
        ("control rate", f"{robot.control_hz:g} Hz; {time} in all"),
        ("episodes", f"{len(lengths):,} ({success})"),
        ("steps", f"{index.steps:,}; an episode has {span}"),
        ("kept frames", ", ".join(kept)),
        ("share of the mixture", _share(card) or "no mixture given"),
        ("cameras", Html("<br>".join(map(escaped, cameras)))),
        ("state", _dims(robot.state)),
        ("action", _dims(robot.actions)),
        ("files", f"{index.row.tfds_name}, index {index.path.name} ({index.size_bytes:,} bytes)"),
    ]
    return table((), rows)


def _dims(dims: Sequence[Any]) -> str:
    return f"{len(dims)}: " + ", ".join(dim.label for dim in dims)


def _camera_file(view: int) -> str:
    return f"camera-{view}.png"


def _cameras(index: Index, folder: Path) -> str:
    """Shows one large frame of each view, and the same frame with red and blue swapped.

    A person sees which of the two is right.
    """
    episode = card_figures.shown(index)[0]
    frame = int(index.episodes["start"][episode] + index.episodes["length"][episode] // 2)
    parts = []
    for number, view in enumerate(card_figures.views(index)):
        image = index.observation(frame, view.choice)["images"][view.camera]
        file, swapped = _camera_file(number), f"camera-{number}-swapped.png"
        card_figures.save_image(image, folder / file)
        card_figures.save_image(np.ascontiguousarray(image[:, :, ::-1]), folder / swapped)
        size = image_size(index, view.path)
        right = (
            f"{view.label}: {size}, files taken to hold {view.order}. This is what the model sees."
        )
        other = "BGR" if view.order == "RGB" else "RGB"
        wrong = f"If this one looks right, the order is {other}."
        parts += [
            picture(file, f"{view.label}, as trained on", right, width=400),
            picture(swapped, f"{view.label}, swapped", wrong, width=200),
            "<br>",
        ]
    note = "Left, large: as trained on. Right, small: with red and blue swapped."
    return section("Cameras", "\n".join(parts), note)


def _grippers(index: Index, followed: Sequence[Trend]) -> str:
    """Says what the columns tell about each gripper's polarity; nothing for a robot without one."""
    if not grippers(index):
        return ""
    declared = [f"1 = {trend.declared}" if trend.declared else "not declared" for trend in followed]
    rows = [
        (trend.gripper, trend.state, said, _finding(trend.finding))
        for trend, said in zip(followed, declared, strict=True)
    ]
    body = table(("gripper", "state", "declared", "the data say"), rows)
    note = (
        "Actions are indexed with 1 = open. Only the frames show what is inverted in both: the"
        " words below them must be true of them."
    )
    none = "<p>No gripper has both an action and a state.</p>"
    return section("Gripper", body if rows else none, note)


def _episodes(index: Index, followed: Sequence[Trend], folder: Path) -> str:
    parts = []
    inverted = {trend.gripper for trend in followed if trend.finding.level == "wrong"}
    for episode in card_figures.shown(index):
        file = f"episode-{episode}.png"
        strip = card_figures.strip(index, episode)
        panels = {
            gripper.name: (card_figures.curves(index, episode, gripper), gripper.name in inverted)
            for gripper in grippers(index)
        }
        card_figures.draw_episode(strip, panels, folder / file)
        prompt = index.prompt(int(index.episodes["start"][episode]))
        split = SPLITS[index.episodes["split"][episode]]
        success = _SUCCESS[int(index.episodes["success"][episode])]
        caption = f'Episode {episode}: "{prompt}"; {len(strip.kept)} steps, {split}, {success}'
        image = picture(file, f"frames of episode {episode}")
        parts.append(f"<p><b>{escaped(caption)}</b></p>{image}")
    note = "Time runs to the right. " + "Steps in grey are never drawn." * bool(grippers(index))
    return section("Episodes", "\n".join(parts), note)


def _histograms(card: Card, folder: Path) -> str:
    index, robot = card.index, card.index.embodiment
    states, actions = card_facts.state_sample(index), card_facts.action_sample(index, card.horizon)
    frames = len(index.frames("train"))
    state_note = (
        f"{len(states):,} of {frames:,} training frames, evenly spaced. Above each: its smallest"
        " and largest value; what lies far out is not drawn."
    )
    deltas = ", ".join(dim.name for dim in robot.actions if dim.delta)
    action_note = (
        f"{len(actions):,} of {frames * card.horizon:,} actions: chunks of {card.horizon} steps"
        " from evenly spaced training frames on, in the robot's convention"
        f"{f'; minus the state before the chunk: {deltas}' if deltas else ''}."
    )
    card_figures.histograms(actions, robot.actions, card.statistics.actions, folder / "action.png")
    state = "<p>This robot has no state.</p>"
    if robot.state:
        card_figures.histograms(states, robot.state, card.statistics.state, folder / "state.png")
        state = picture("state.png", "histograms of the state")
    action = picture("action.png", "histograms of the actions")
    return section("State", state, state_note) + section("Actions", action, action_note)


def _prompts(index: Index, prompts: card_facts.Prompts) -> str:
    every = prompts.episodes == len(index.episodes["start"])
    counted = "every episode" if every else f"{prompts.episodes:,} evenly spaced episodes"
    empty = f"{prompts.empty:,} of {prompts.episodes:,} episodes have none"
    note = (
        f"{prompts.distinct:,} distinct prompts; {empty}. Counted at the first step of {counted}."
    )
    return section("Prompts", table(("prompt", "episodes"), prompts.counts[:_PROMPTS]), note)


def _rule(index: Index) -> str:
    """Returns two sections: the row's notes, and the docstring of its rule."""
    dims, notes = index.embodiment.actions, list(index.row.notes)
    for place, gripper in index.row.recorded_grippers.items():
        if (ends := dims[place].ends) is not None:
            recorded = (
                f"{gripper.open:g} is open and {gripper.closed:g} closed in what was recorded"
            )
            told = " and ".join(f"{end:g}" for end in ends)
            notes.append(f"{dims[place].name}: {recorded}, {told} in what the robot is told.")
    listed = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    listed = f"<ul>{listed}</ul>" if listed else "<p>The row has no notes.</p>"
    told = inspect.getdoc(index.row.standardise) or "The rule has no docstring."
    first, _, rest = told.partition("\n\n")
    more = f"<details><summary>more of the rule</summary><pre>{escaped(rest)}</pre></details>"
    rule = f"<p>{escaped(first)}</p>{more if rest else ''}"
    return section("Notes", listed) + section("Rule", rule)
