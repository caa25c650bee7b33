"""A planar world in NumPy that must be seen: a point goes to the thing that the prompt names.

    . . . .      Three of 16 things (four colours, four shapes) lie in a grid of 4 x 4 cells. An image
    . O . #      of 32 x 32 shows them; each lies in a patch of the image encoder. The state is the
    . . . .      point's place, which is not drawn.
    + . . .      "to red cube" names one of them. A longer prompt names all three, in order.

Of the things that are never shown in a demonstration (UNSEEN), every colour and every shape is shown.
Lengths have no unit; the workspace is 2 long.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from pi0_jax.data.rows import Dataset
from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim
from pi0_jax.lab import data, worlds
from pi0_jax.observation import RawObservation
from pi0_jax.sim.worlds import Recording

Thing: TypeAlias = tuple[str, str]  # colour and shape

COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (230, 220, 50),
}
# As they look from above, 6 x 6 pixels.
SHAPES = {
    "cube": ("######", "######", "######", "######", "######", "######"),
    "cup": (" #### ", "##  ##", "#    #", "#    #", "##  ##", " #### "),
    "fork": ("##  ##", " #### ", "  ##  ", "  ##  ", " #### ", "##  ##"),
    "knife": ("    ##", "   ###", "  ### ", " ###  ", "###   ", "##    "),
}  # fmt: skip
THINGS: tuple[Thing, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
UNSEEN: tuple[Thing, ...] = tuple(zip(COLOURS, SHAPES, strict=True))  # each word once
SEEN = tuple(thing for thing in THINGS if thing not in UNSEEN)
NAMED = 3  # things in a scene, and steps of a long task
SIDE, _CELLS, _PATCH, _GROUND = 32, 4, 8, 30  # pixels, cells along a side, pixels, grey
NEAR = 0.15  # so close to a thing a step is done
STEP_TICKS = 16  # of an episode with one step; one with three has three times as many
_SPEED, _JOLT, _REST = 0.25, 0.02, 2  # in a tick; deviation; ticks that a demonstration rests
_CAMERA, _LONG = "above", "three steps"

RECORD = Embodiment(
    name="planar_seeing",
    robot="a point above a table",
    cameras={"base_0_rgb": _CAMERA},
    state=(StateDim("x", "1"), StateDim("y", "1")),
    actions=tuple(ActionDim(name, "1", "absolute", delta=True) for name in ("x", "y")),
    control_hz=10.0,
    execute_steps=4,
)


class Scene(NamedTuple):
    """Holds what lies on the table, in the order of a long task, and where the point begins."""

    things: tuple[Thing, ...]
    cells: np.ndarray  # int[3, 2]: row and column
    start: np.ndarray  # float64[2]

    @property
    def places(self) -> np.ndarray:
        """Returns x and y of each thing, float64[3, 2]."""
        return (self.cells[:, ::-1] + 0.5) * (2 / _CELLS) - 1

    @property
    def names(self) -> list[str]:
        """Returns what each thing is called."""
        return [" ".join(thing) for thing in self.things]

    def image(self, noise: np.ndarray | float = 0.0) -> np.ndarray:
        """Draws the table, uint8[SIDE, SIDE, 3], perhaps with noise in parts of full brightness."""
        pixels = np.full((SIDE, SIDE, 3), _GROUND, np.float64)
        for (colour, shape), (row, column) in zip(self.things, self.cells, strict=True):
            top, left = row * _PATCH + 1, column * _PATCH + 1
            drawn = np.array([[dot == "#" for dot in line] for line in SHAPES[shape]])
            pixels[top : top + 6, left : left + 6][drawn] = COLOURS[colour]
        return np.clip(np.rint(pixels + 255 * noise), 0, 255).astype(np.uint8)


def scene(
    rng: np.random.Generator,
    first: Sequence[Thing] = SEEN,
    alike: bool = False,
    rest: Sequence[Thing] = SEEN,
) -> Scene:
    """Draws a scene.

    Args:
        rng: decides everything.
        first: of which the first thing is drawn.
        alike: whether one of the others has the first one's colour, and one its shape.
        rest: of which the others are drawn.
    """
    cells = rng.permutation(_CELLS**2)[:NAMED]
    start = rng.uniform(-0.9, 0.9, 2)
    named = first[int(rng.integers(len(first)))]
    others = [rest[i] for i in rng.permutation(len(rest)) if rest[i] != named]
    if alike:
        others = [next(one for one in others if one[word] == named[word]) for word in range(2)]
    things = (named, *others[: NAMED - 1])
    return Scene(things, np.stack(np.divmod(cells, _CELLS), axis=1), start)


def single(name: str) -> str:
    """Returns the prompt that names one thing."""
    return f"to {name}"


def in_order(names: Sequence[str]) -> str:
    """Returns the prompt that names things in the order in which to go to them."""
    return f"to {' and '.join(names)}"


class Step(NamedTuple):
    """Holds a demonstrated step, float32[T, 2] each."""

    states: np.ndarray
    actions: np.ndarray


def demonstration(drawn: Scene, rng: np.random.Generator) -> list[Step]:
    """Returns the steps of a long task: to each thing in turn, and a short rest there.

    Each tick is disturbed, and the recorded action is what was aimed at.
    """
    position, steps = drawn.start, []
    for place in drawn.places:
        states, actions, rested = [], [], 0
        while rested <= _REST:
            way = place - position
            far = float(np.linalg.norm(way))
            rested += int(far < NEAR)
            states.append(position)
            actions.append(position + way * min(1.0, _SPEED / max(far, 1e-9)))
            position = actions[-1] + rng.normal(0.0, _JOLT, 2)
        steps.append(Step(np.array(states, np.float32), np.array(actions, np.float32)))
    return steps


def write(
    long: bool, count: int, data_dir: Path, seed: int, shown_pairs: Sequence[Thing] = SEEN
) -> list[Dataset]:
    """Writes tasks of three steps: as they are, or as three tasks of one step each, same frames."""
    rng = np.random.default_rng([seed, 0x5EE4])
    shown: list[tuple[Step, str, np.ndarray]] = []
    for _ in range(count):
        drawn = scene(rng, shown_pairs, rest=shown_pairs)
        steps, image = demonstration(drawn, rng), drawn.image()
        if long:
            whole = Step(*(np.concatenate(part) for part in zip(*steps, strict=True)))
            shown.append((whole, in_order(drawn.names), image))
        else:
            told = zip(steps, map(single, drawn.names), strict=True)
            shown += [(step, prompt, image) for step, prompt in told]
    steps, prompts, images = zip(*shown, strict=True)
    states, actions = zip(*steps, strict=True)
    settings = {"seed": seed, "long": long, "count": count, "pairs": len(shown_pairs)}
    name = "tasks" if long else "steps"
    return [data.write(data_dir, name, RECORD, states, actions, prompts, settings, images)]


class Asked(NamedTuple):
    """Says what an episode asks for.

    Attributes:
        first: of which the thing is drawn that is named first.
        alike: see `scene`.
        told: "first", the first thing alone, and where the point is at the end counts; "shuffled",
            the same, but the prompt is another episode's. The others ask for all three in order:
            "all" in one prompt, "oracle" for the next one that is not reached, "high level" for the
            next one whenever the point has come to rest, wherever that is.
        noise: standard deviation of the image's noise, in parts of full brightness.
    """

    first: tuple[Thing, ...] = SEEN
    alike: bool = False
    told: Literal["first", "shuffled", "all", "oracle", "high level"] = "first"
    noise: float = 0.0


class Table:
    """Is a sim.worlds.World: an episode above a table."""

    action_names = tuple(dim.name for dim in RECORD.actions)
    robot = RECORD.name

    def __init__(self, *asked: object) -> None:
        """Takes the fields of Asked."""
        self._asked = Asked(*asked)  # type: ignore[arg-type]
        self._long = self._asked.told not in ("first", "shuffled")
        self.group = _LONG if self._long else "one step"

    @property
    def prompt(self) -> str:
        """Returns what the policy is told now."""
        names, told = self._scene.names, self._asked.told
        if told == "all":
            return in_order(names)
        if told == "shuffled":
            return single(self._another)
        step = {"first": 0, "oracle": self._done, "high level": self._believed}[told]
        return single(names[min(step, NAMED - 1)])

    def begin(self, seed: int) -> None:
        """Draws a scene."""
        self._rng = np.random.default_rng([seed, 0x7AB1])
        self._scene = scene(self._rng, self._asked.first, self._asked.alike)
        self._another = " ".join(SEEN[self._rng.integers(len(SEEN))])
        self._position, self._ticks = self._scene.start, 0
        self._done = self._believed = self._since = 0

    def observe(self) -> RawObservation:
        """Returns the place, the image and the prompt."""
        noise = self._asked.noise and self._asked.noise * self._rng.normal(size=(SIDE, SIDE, 3))
        images, state = {_CAMERA: self._scene.image(noise)}, self._position.astype(np.float32)
        return RawObservation(images=images, state=state, prompt=self.prompt)

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        """Moves the point."""
        target = np.asarray(action, np.float64)
        way = np.linalg.norm(target - self._position)
        self._position = worlds.move(self._position[None], target[None], _SPEED)[0]
        self._ticks += 1
        self._since += 1
        rests = way < NEAR / 2
        away = self._away()
        if self._long:
            self._done += bool(rests and self._done < NAMED and away[self._done] < NEAR)
            if rests and self._since > _REST:
                self._believed, self._since = self._believed + 1, 0
            return self._done == NAMED, self._done == NAMED or self._ticks >= NAMED * STEP_TICKS
        over = self._ticks >= STEP_TICKS
        return bool(over and away[0] < NEAR), over

    def snapshot(self) -> np.ndarray:
        """Returns the distances from the three things, and how many steps are done, float64[4]."""
        return np.append(self._away(), self._done)

    def _away(self) -> np.ndarray:
        return np.linalg.norm(self._scene.places - self._position, axis=1)


def outcomes(recordings: Sequence[Recording]) -> dict[str, list[float]]:
    """Returns what each episode shows, by quantity: see QUANTITIES."""
    ends = np.array([one.snapshots[-1] for one in recordings])
    found = {"success": [float(one.result.success) for one in recordings]}
    if recordings[0].result.group == _LONG:
        return {**found, "steps": (ends[:, NAMED] / NAMED).tolist()}
    nearest = ends[:, :NAMED].argmin(axis=1)
    return {
        **found,
        "distance": ends[:, 0].tolist(),
        "right": (nearest == 0).astype(float).tolist(),
    }


QUANTITIES = {
    "distance": "from the thing that is meant, at the episode's end (workspace: 2)",
    "right": "share of episodes at whose end no other thing is nearer",
    "success": f"share of episodes that end closer than {NEAR} to it, or that do all three steps",
    "steps": "share of the three steps that are done, in order",
}
