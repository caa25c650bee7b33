"""Rollouts run in any Gymnasium environment.

The tests have the reach world through Gymnasium's own interface, a tiny world, and a policy behind
a server.
"""

import contextlib
import dataclasses
import json
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from PIL import Image

from pi0_jax.embodiments import EMBODIMENTS, ActionDim, Embodiment, StateDim
from pi0_jax.embodiments.record import ClientKeys
from pi0_jax.errors import InputError
from pi0_jax.evaluated_policies import opened, served
from pi0_jax.execution import OpenLoop
from pi0_jax.serve.client import Client
from pi0_jax.sim.evaluation import Case, Contestant, chosen_execution, evaluate
from pi0_jax.sim.gym_rollouts import GymWorld, gym_setting
from pi0_jax.sim.reach_rollouts import in_reach_world, reach_setting
from pi0_jax.sim.rollouts import recordings, rollout
from pi0_jax.sim.video import camera_pictures
from pi0_jax.sim.workers import Slots, Workers
from pi0_jax.sim.worlds import Episode, Setting
from tests import policies
from tests.numpy_server import serving
from tests.own_process import python

SLIDER = Embodiment(
    name="slider",
    robot="a point on a line",
    cameras={"base_0_rgb": "front"},
    state=(StateDim("x", "m"), StateDim("goal", "m")),
    actions=(ActionDim("dx", "m", "relative"),),
    control_hz=5.0,
    execute_steps=2,
    client_keys=ClientKeys(cameras={"front": "cameras/front"}, state=(("x", 1), ("target", 1))),
)


class Slider(gymnasium.Env):
    """Is a world in which one goes to the goal in steps of at most 0.1 m, within 20 ticks.

    The image is as bright as the goal is far.
    """

    observation_space = Dict(
        {
            "cameras": Dict({"front": Box(0, 255, (8, 12, 3), np.uint8)}),
            **{name: Box(-100, 100, (1,)) for name in ("x", "target", "clock")},
        }
    )
    action_space = Box(-0.1, 0.1, (1,))

    def __init__(self, key: str = "success", side: int = 1) -> None:
        self._key, self._side = key, side

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._x, self._goal, self._ticks = 0.0, self._side * self.np_random.uniform(0.2, 1.0), 0
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self._x, self._ticks = self._x + float(action[0]), self._ticks + 1
        near = abs(self._goal - self._x) < 0.05
        return self._observe(), 0.0, False, self._ticks == 20, {self._key: near}

    def _observe(self):
        image = np.full((8, 12, 3), int(80 * abs(self._goal - self._x)), np.uint8)
        numbers = {"x": self._x, "target": self._goal, "clock": self._ticks}
        return {"cameras": {"front": image}} | {
            name: np.array([value], np.float32) for name, value in numbers.items()
        }


gymnasium.register("Slider-v0", Slider)
KNOWN = dict(arguments="{}", success="success", prompt="slide to the goal")
slider = partial(gym_setting, env="tests.test_gym_rollouts:Slider-v0", **KNOWN)
REACH = "pi0_jax.sim.reach:pi0_jax/Reach-v0"


def towards_the_goal(observations, seeds):
    """Goes half a metre at once, which is more than the action space allows."""
    ways = np.array([np.sign(o["state"][1] - o["state"][0]) for o in observations], np.float32)
    return np.broadcast_to(0.5 * ways[:, None, None], (len(observations), 4, 1))


def away(observations, seeds):
    return -towards_the_goal(observations, seeds)


class Dial(Slider):
    """Is turned by whole numbers for 3 ticks; every picture is rendered into the same array."""

    action_space = Box(-3, 3, (1,), np.int64)

    def __init__(self):
        super().__init__()
        self._rendered, self.turned = np.zeros((8, 12, 3), np.uint8), []

    def step(self, action):
        self.turned.append(action)
        return self._observe(), 0.0, False, len(self.turned) == 3, {"success": False}

    def _observe(self):
        observation = super()._observe()
        self._rendered[:] = observation["cameras"]["front"] + len(self.turned)
        return {**observation, "cameras": {"front": self._rendered}}


def outcomes(result):
    return [(r.episode, r.seed, r.prompt, r.success, r.ticks) for r in result.episodes]


@pytest.fixture(scope="module")
def workers():
    with Workers(2) as workers:
        yield workers


# ---- a tiny world


def test_a_world_by_its_record(workers):
    """Keys that the record names, actions cut to the space, success from info ends an episode."""
    setting = partial(slider, SLIDER)
    how = dict(seed=0, execution=OpenLoop(2))
    result = rollout(workers, setting, towards_the_goal, episodes=10, parallel=4, **how)
    assert result.successes == 10
    for episode in result.episodes:
        # As Gymnasium seeds.
        random = np.random.default_rng(np.random.SeedSequence(episode.seed))
        goal = random.uniform(0.2, 1.0)
        assert episode.ticks == int(np.ceil((goal - 0.05) / 0.1))
        assert episode.prompt == episode.group == "slide to the goal"
    result = rollout(workers, setting, away, episodes=3, **how)
    assert [(r.success, r.ticks) for r in result.episodes] == [(False, 20)] * 3


def test_success_can_have_another_name_or_be_termination(workers):
    other = partial(slider, SLIDER, arguments='{"key": "is_success"}')
    how = dict(episodes=2, seed=0, execution=OpenLoop(2))
    named = rollout(workers, partial(other, success="is_success"), towards_the_goal, **how)
    assert named.successes == 2
    ended = rollout(workers, partial(other, success="terminated"), towards_the_goal, **how)
    assert ended.successes == 0
    with pytest.raises(InputError, match="expected 'success', which says success, found is_succ"):
        rollout(workers, other, away, **how)


def test_whole_numbers_are_rounded_and_pictures_kept():
    env = Dial()
    world = GymWorld(env, "dial", SLIDER, success="success", prompt="turn")
    slots = Slots()
    slots.open(lambda: contextlib.nullcontext(Setting(lambda: world, camera_pictures)))
    slots.begin({0: Episode(0, seed=0, record=True)})
    slots.observe([0])
    ended = slots.execute({0: np.array([[0.97], [-1.6], [7.0]], np.float32)}, 3)
    assert ended[0].ticks == 3 and not ended[0].success
    assert [turned.tolist() for turned in env.turned] == [[1], [-2], [3]]
    assert env.turned[0].dtype == np.int64
    (recording,) = slots.recordings()
    assert len({pictures[0].tobytes() for pictures in recording.snapshots}) == 4


def test_an_evaluation_has_intervals_videos_and_json(tmp_path):
    contestants = [
        Contestant(Case("slider", "right"), towards_the_goal, SLIDER),
        Contestant(Case("slider", "shuffled"), away, SLIDER),
    ]
    how = dict(seed=0, record=1, directory=tmp_path, workers=2)
    rows, seconds = evaluate(contestants, slider, episodes=4, parallel=3, **how)
    assert set(seconds) == {"physics", "rendering", "policy", "videos"}
    assert [(row.case.condition, row.group, row.successes, row.episodes) for row in rows] == [
        ("right", "all", 4, 4),
        ("shuffled", "all", 0, 4),
    ]
    assert rows[0].interval == pytest.approx((0.5101, 1.0), abs=1e-4)
    with Image.open(tmp_path / "rollouts" / "slider-shuffled-0.gif") as gif:
        # ms: 5 Hz
        assert gif.n_frames == 21 and gif.size == (336, 224 + 26) and gif.info["duration"] == 200
    words = "slide along the line until you are at the goal, and do not go past it"
    evaluate(contestants[:1], partial(slider, prompt=words), episodes=1, parallel=1, **how)
    with Image.open(tmp_path / "rollouts" / "slider-right-0.gif") as gif:
        assert gif.size == (336, 224 + 43)  # a line more


def test_an_evaluation_executes_as_the_record_says_or_as_it_is_told():
    turning = dataclasses.replace(
        SLIDER.actions[0], unit="rad", kind="absolute", delta=False, periodic=True
    )
    robot = dataclasses.replace(SLIDER, actions=(turning,), execute_steps=3)
    assert chosen_execution(robot, None, None).steps == 3
    assert chosen_execution(robot, 2, None).steps == 2
    ensemble = chosen_execution(robot, None, 0.5)
    assert ensemble.decay == 0.5 and ensemble.turns == (turning.turn,)
    with pytest.raises(InputError, match="found both"):
        chosen_execution(robot, 2, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "tests.test_gym_rollouts:Slider-v9"}, "environment .*:Slider-v9': "),
        ({"env": "no_such_module:Slider-v0"}, "environment 'no_such_module:Slider-v0': "),
        ({"arguments": '{"colour": 3}'}, "environment .*:Slider-v0': .*colour"),
        ({"arguments": "[1]"}, r"expected a map as JSON, found '\[1\]'"),
        ({"arguments": "{"}, "expected a map as JSON, found '{'"),
        ({"prompt": None}, "expected 'prompt', found cameras, x, target, clock; --prompt"),
    ],
)
def test_what_is_wrong_with_an_environment_is_named(workers, changes, message):
    setting = partial(slider, SLIDER, **changes)
    with pytest.raises(InputError, match=message):
        rollout(workers, setting, away, episodes=1, seed=0, execution=OpenLoop(2))


def test_a_record_of_another_robot_is_refused(workers):
    with pytest.raises(InputError, match=r"expected a Box of 8 dimensions \(droid\), found Box"):
        workers.open(partial(slider, EMBODIMENTS["droid"]))


# ---- the reach world


def some_function_of_what_is_seen(observations, seeds):
    """Returns a function of every pixel."""
    seen = [
        [o["images"][c].astype(np.int64).sum() % 1000 / 1000 for c in ("base", "wrist")]
        + [len(o["prompt"]) / 50]
        for o in observations
    ]
    chunks = [np.linspace(o["state"], s, 6) for o, s in zip(observations, seen, strict=True)]
    return np.array(chunks, np.float32)


@pytest.mark.parametrize("prompts", ["right", "shuffled"])
def test_the_reach_world_is_a_gymnasium_environment(workers, prompts):
    """Gymnasium's reset and step give the same episodes as the halves that render on demand."""
    embodiment, act = EMBODIMENTS["reach_arm3"], some_function_of_what_is_seen
    how = dict(episodes=3, seed=2, parallel=2, execution=OpenLoop(5), record=1, prompts=prompts)
    expected = rollout(workers, partial(reach_setting, embodiment), act, **how)
    (drawn,) = recordings(workers)
    about = dict(arguments='{"robot": "reach_arm3"}', success="success", prompt=None)
    gym = partial(gym_setting, embodiment, env=REACH, **about)
    found = rollout(workers, gym, act, **how)
    assert outcomes(found) == outcomes(expected)
    (recording,) = recordings(workers)
    np.testing.assert_array_equal(recording.chunks, drawn.chunks)
    assert next(iter(camera_pictures(recording))).size == (448, 224)


# ---- policies


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "either --checkpoint or --server"),
        (["--server=127.0.0.1:1", "--num_steps=2"], "--num_steps: expected with --checkpoint"),
        (["--checkpoint=/nowhere", "--api_key_file=key"], "--api_key_file: expected with --server"),
        (
            ["--checkpoint=/nowhere", "--env=a:B-v0", "--prompt= "],
            "--prompt: expected an instruction, found empty",
        ),
        (["--checkpoint=/nowhere", "--prompt=a"], "--prompt: expected with --env of Gymnasium"),
        (["--server=127.0.0.1:1", "--api_key_file=/nowhere"], "--api_key_file: /nowhere: "),
        (
            ["--checkpoint=/nowhere", "--execute_steps=2", "--temporal_ensemble=0.01"],
            "--execute_steps: expected with open loop, found --temporal_ensemble",
        ),
    ],
)
def test_flags_that_do_not_go_together(flags, said, tmp_path):
    ended = python("-m", "launch.evaluate", f"--output={tmp_path}", *flags, status=2)
    assert said in ended.stderr.splitlines()[-1]


def test_a_robot_that_the_reach_world_lacks_needs_an_environment():
    assert in_reach_world(["reach_arm4", "droid", "reach_arm3"]) == ["reach_arm3", "reach_arm4"]
    with pytest.raises(InputError, match="has no droid; expected reach_arm3, .* --env="):
        in_reach_world(["droid"])


def test_no_server():
    for port, said in (1, "cannot connect: "), (99999, "expected an address like ws://host:port"):
        with (
            Client(f"127.0.0.1:{port}", start_timeout=0.1) as client,
            pytest.raises(InputError, match=f"ws://127.0.0.1:{port}: {said}"),
        ):
            served(client, conditions=["right"], embodiment=None)


@pytest.mark.slow
def test_a_policy_behind_a_server_does_what_the_policy_does(tmp_path):
    """A real server on a socket has batches of several rows, and the command itself is run."""
    checkpoint = policies.write_checkpoint(tmp_path / "run", ["reach_arm3"], sampling_steps=2)
    how = dict(episodes=3, seed=1, parallel=2, record=0, directory=tmp_path / "out")
    what = dict(conditions=["right"], embodiment=None)
    (local,) = opened(str(checkpoint), robots=[None], num_steps=None, seed=0, **what)
    rows = evaluate([local], reach_setting, **how).rows
    (tmp_path / "key").write_text("s3cret\n")
    key = f"--api_key_file={tmp_path / 'key'}"
    with serving(checkpoint, "--image_sizes=64x64", "--batch_sizes=1,2", key) as address:
        with Client(address, api_key="s3cret") as client:
            (remote,) = served(client, **what)
            assert (remote.case, remote.embodiment) == (local.case, local.embodiment)
            assert evaluate([remote], reach_setting, **how).rows == rows
            observation = policies.observation("reach_arm3", size=(64, 64))
            asked = [observation] * 2, [3, 4]
            np.testing.assert_array_equal(remote.act(*asked), local.act(*asked))
            with pytest.raises(InputError, match="untrained: expected a checkpoint"):
                served(client, conditions=["untrained"], embodiment=None)
        done = python(
            "-m", "launch.evaluate", f"--server={address}", f"--output={tmp_path / 'out'}", key,
            f"--env={REACH}", '--env_args={"robot": "reach_arm3"}', "--episodes=2", "--parallel=2",
            "--record=1", "--temporal_ensemble=0.01",
        )  # fmt: skip
    assert "reach_arm3   right      all" in done.stdout
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["checkpoint"] == address and record["rows"][0]["episodes"] == 2
    assert (record["temporal_ensemble"], record["execute_steps"]) == (0.01, None)
    (gif,) = (tmp_path / "out" / "rollouts").iterdir()
    assert gif.name == "reach_arm3-right-0.gif"
