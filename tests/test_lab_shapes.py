"""The laboratory's world that must be seen."""

from functools import partial

import numpy as np
import pytest

from pi0_jax.data.index import build_or_open
from pi0_jax.execution import OpenLoop
from pi0_jax.lab import shapes, worlds
from pi0_jax.lab.shapes import Asked, Table
from pi0_jax.sim.rollouts import recordings, rollout
from pi0_jax.sim.workers import Workers


def scenes(count, *args):
    return [shapes.scene(np.random.default_rng(seed), *args) for seed in range(count)]


def driven(asked, aim, seed=3):
    """Runs an episode that aims where `aim` says, and returns its prompts and whether it succeeded."""
    world = Table(*asked)
    world.begin(seed)
    prompts, ended = [], False
    while not ended:
        prompts.append(world.observe()["prompt"])
        success, ended = world.advance(aim(world, prompts[-1]))
    return world, prompts, success


def as_told(world, prompt):
    """Goes where the thing lies that a prompt names; where none of it lies, to the first one."""
    names, name = world._scene.names, prompt.removeprefix("to ")
    return world._scene.places[names.index(name) if name in names else 0]


def test_unseen_pairs_are_never_shown_and_their_words_are():
    shown = {thing for one in scenes(300) for thing in one.things}
    assert shown == set(shapes.SEEN) and not shown & set(shapes.UNSEEN)
    for part in range(2):
        assert {one[part] for one in shapes.UNSEEN} == {one[part] for one in shown}
    every = {
        thing for one in scenes(300, shapes.THINGS, False, shapes.THINGS) for thing in one.things
    }
    assert every == set(shapes.THINGS)


def test_look_alikes_share_a_word_each_with_the_named_thing():
    for first in (shapes.SEEN, shapes.UNSEEN):
        for one in scenes(100, first, True):
            (colour, shape), same_colour, same_shape = one.things
            assert (colour, shape) in first and len(set(one.things)) == 3
            assert same_colour[0] == colour and same_shape[1] == shape


def test_the_image_shows_each_thing_in_its_patch():
    """Its place is the patch's middle, and nothing is outside."""
    for one in scenes(20):
        image, rest = one.image(), one.image()
        for (colour, shape), place in zip(one.things, one.places, strict=True):
            column, row = np.floor((place + 1) / 2 * shapes.SIDE).astype(int) - 4
            patch = image[row : row + 8, column : column + 8]
            drawn = (patch == shapes.COLOURS[colour]).all(axis=2)
            assert drawn.sum() == "".join(shapes.SHAPES[shape]).count("#")
            rest[row : row + 8, column : column + 8] = image[0, 0]
        assert len(np.unique(rest)) == 1


def test_shapes_differ_in_many_pixels():
    pictures = ["".join(lines) for lines in shapes.SHAPES.values()]
    differ = [sum(a != b for a, b in zip(x, y, strict=True)) for x in pictures for y in pictures]
    assert sorted(differ)[: len(pictures)] == [0] * 4 and sorted(differ)[4] >= 8


def test_steps_and_tasks_are_the_same_frames(tmp_path):
    """And what the files hold is what was shown; a step's prompt is part of the task's."""
    (steps,), (tasks,) = (shapes.write(long, 3, tmp_path, 5) for long in (False, True))
    one, whole = (build_or_open(row, tmp_path, progress=False) for row in (steps, tasks))
    frames = one.frames("train")
    assert one.steps == whole.steps == len(frames) and (frames == whole.frames("train")).all()
    prompts = []
    for frame in frames:
        seen, same = one.observation(frame), whole.observation(frame)
        np.testing.assert_array_equal(seen["state"], same["state"])
        np.testing.assert_array_equal(seen["images"]["above"], same["images"]["above"])
        assert seen["prompt"].removeprefix("to ") in same["prompt"]
        prompts.append((seen["prompt"], same["prompt"]))
    assert len(set(prompts)) == 9
    drawn = shapes.scene(np.random.default_rng([5, 0x5EE4]))
    first = one.observation(frames[0])
    np.testing.assert_array_equal(first["images"]["above"], drawn.image())
    np.testing.assert_allclose(first["state"], drawn.start, rtol=1e-6)
    # A step ends at rest where its thing lies.
    actions, _ = one.chunks(frames[:1], 16)
    np.testing.assert_allclose(actions[0, -1], drawn.places[0], atol=1e-6)


def sees(observations, seeds=None):
    """Is a policy of chunks of 8 that finds what its prompt names in the image, and goes there."""
    chunks = []
    for seen in observations:
        colour, shape = seen["prompt"].removeprefix("to ").split()
        drawn = np.array([[dot == "#" for dot in line] for line in shapes.SHAPES[shape]])
        found = (seen["images"]["above"] == shapes.COLOURS[colour]).all(axis=2)
        patches = found.reshape(4, 8, 4, 8).swapaxes(1, 2)[:, :, 1:7, 1:7]
        row, column = np.argwhere((patches == drawn).all(axis=(2, 3)))[0]
        chunks.append(np.tile((np.array([column, row]) + 0.5) / 2 - 1, (8, 1)))
    return np.float32(chunks)


def test_a_rollouts_policy_reads_the_prompt_of_the_tick():
    with Workers(1) as workers:
        setting = partial(worlds.opened, Table, *Asked(told="oracle"))
        rollout(
            workers, setting, sees, episodes=4, seed=0, parallel=4, execution=OpenLoop(4), record=4
        )
        found = shapes.outcomes(recordings(workers))
    assert found == {"success": [1.0] * 4, "steps": [1.0] * 4}


@pytest.mark.parametrize("told", ["oracle", "high level"])
def test_who_goes_where_it_is_told_does_all_steps(told):
    for seed in range(10):
        world, prompts, success = driven(Asked(told=told), as_told, seed)
        assert success and world.snapshot()[-1] == 3
        assert list(dict.fromkeys(prompts)) == [shapes.single(name) for name in world._scene.names]


def test_the_high_level_goes_on_after_a_wrong_rest_and_the_oracle_does_not():
    elsewhere = np.array([0.0, 0.0])  # no cell's middle
    _, prompts, success = driven(Asked(told="high level"), lambda *_: elsewhere)
    assert not success and len(set(prompts)) == 3
    world, prompts, success = driven(Asked(told="oracle"), lambda *_: elsewhere)
    assert not success and len(set(prompts)) == 1
    assert len(prompts) == 3 * shapes.STEP_TICKS and world.snapshot()[-1] == 0


def test_steps_count_in_order_and_passing_by_does_not():
    world, _, success = driven(Asked(told="all"), lambda world, _: world._scene.places[1])
    assert not success and world.snapshot()[-1] == 0
    world, prompts, success = driven(Asked(), as_told)
    assert success and set(prompts) == {shapes.single(world._scene.names[0])}
    assert np.argmin(world.snapshot()[:3]) == 0 and world.snapshot()[0] < 1e-9


def test_a_shuffled_prompt_is_right_by_chance():
    tables = []
    for seed in range(600):
        world = Table(*Asked(told="shuffled"))
        world.begin(seed)
        tables.append(world)
    named = np.mean([one.prompt == shapes.single(one._scene.names[0]) for one in tables])
    assert named == pytest.approx(1 / 12, abs=0.035)
    assert {one.prompt for one in tables} == {shapes.single(" ".join(one)) for one in shapes.SEEN}


def test_noise_is_of_the_image_alone_and_each_look_has_its_own():
    world = Table(*Asked(noise=0.05))
    world.begin(3)
    clean = world._scene.image().astype(float)
    looks = [world.observe() for _ in range(200)]
    off = np.array([look["images"]["above"] for look in looks]) - clean
    inside = off[:, :8, :8][:, (clean[:8, :8] == 30).all(axis=2)]
    assert inside.std() == pytest.approx(0.05 * 255, rel=0.1)
    assert (looks[0]["state"] == looks[1]["state"]).all()
