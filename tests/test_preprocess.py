"""Both halves of preprocessing, and the way back, are checked on mixed robots."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from pi0_jax import preprocess
from pi0_jax.embodiments import EMBODIMENTS, ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError
from pi0_jax.observation import CAMERA_SLOTS, RawObservation, Sample
from pi0_jax.preprocess import Layout, Robot, deltas, normalize, record_fit
from pi0_jax.preprocess.tokenizer import Tokenizer

LAYOUT = Layout(
    CAMERA_SLOTS[:2],
    image_size=32,
    action_dim=8,
    max_tokens=12,
    normalization="zscore",
    normalization_clip=0.0,
)
CANVAS = (128, 128)
HORIZON = 4
TOKENIZER = Tokenizer.open("small")

# The joints are absolute, and only the first is learnt as a delta. There are fewer actions than
# state dimensions.
MIXED = Embodiment(
    name="mixed",
    robot="an arm",
    cameras={"left_wrist_0_rgb": "hand"},
    state=(StateDim("a", "rad"), StateDim("b", "rad"), StateDim("c", "m")),
    actions=(ActionDim("a", "rad", "absolute", delta=True), ActionDim("b", "rad", "absolute")),
    control_hz=10.0,
    execute_steps=2,
)


def robot(embodiment: Embodiment, seed: int = 0) -> Robot:
    """Returns a robot with statistics of no particular size and a constant state dimension."""
    rng = np.random.default_rng(seed)
    state, actions = (
        rng.normal(3, 2, (200, len(dims))) for dims in (embodiment.state, embodiment.actions)
    )
    state[:, 1] = 0.25
    for i, dim in enumerate(embodiment.actions):
        if dim.ends:
            actions[:, i] = rng.uniform(min(dim.ends), max(dim.ends), len(actions))
    return Robot(
        embodiment,
        normalize.Statistics(normalize.accumulate([state]), normalize.accumulate([actions])),
    )


ARM3, WIDOWX, OTHER = (
    robot(EMBODIMENTS["reach_arm3"]),
    robot(EMBODIMENTS["widowx"], 1),
    robot(MIXED, 2),
)


def observation(
    robot: Robot,
    size: tuple[int, int] = (40, 30),
    prompt: str = "reach the red block",
    seed: int = 0,
) -> RawObservation:
    rng = np.random.default_rng(seed)
    return RawObservation(
        images={
            camera: rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            for camera in robot.embodiment.cameras.values()
        },
        state=rng.normal(size=len(robot.embodiment.state)).astype(np.float32),
        prompt=prompt,
    )


def sample(robot: Robot, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    actions = rng.normal(3, 2, (HORIZON, len(robot.embodiment.actions))).astype(np.float32)
    return Sample(
        observation(robot, seed=seed), actions, np.arange(HORIZON) < 3, dataset=0, episode=0, step=0
    )


def host(observations, robots, layout: Layout = LAYOUT, canvas: tuple[int, int] = CANVAS):
    return preprocess.host(
        observations, robots, layout, TOKENIZER, dict.fromkeys(layout.slots, canvas)
    )


device = jax.jit(partial(preprocess.device, layout=LAYOUT))
ROBOTS = (ARM3, WIDOWX, OTHER)
SIZES = ((40, 30), (32, 32), (100, 128))
PROMPTS = ("reach the red block", "put the spoon in the pot", "open")


@pytest.fixture(scope="module")
def observations() -> list[RawObservation]:
    return [
        observation(*row, seed=i) for i, row in enumerate(zip(ROBOTS, SIZES, PROMPTS, strict=True))
    ]


def test_mixed_robots_fill_one_batch(observations):
    """Cameras are in their slots, masked where a robot has none.

    The state is in model units, and zero where a robot has no dimension.
    """
    batch = host(observations, ROBOTS)
    assert batch.image_masks["base_0_rgb"].tolist() == [True, True, False]
    assert batch.image_masks["left_wrist_0_rgb"].tolist() == [True, False, True]
    for slot in LAYOUT.slots:
        assert batch.images[slot].shape == (3, *CANVAS, 3)
        assert batch.images[slot].dtype == np.uint8
        for i, (raw, (height, width)) in enumerate(zip(observations, SIZES, strict=True)):
            rest = batch.images[slot][i].copy()
            if batch.image_masks[slot][i]:
                assert batch.image_sizes[slot][i].tolist() == [height, width]
                camera = ROBOTS[i].embodiment.cameras[slot]
                np.testing.assert_array_equal(rest[:height, :width], raw["images"][camera])
                rest[:height, :width] = 0
            assert not rest.any()
    assert batch.state.shape == (3, 8)
    assert batch.state.dtype == np.float32
    for row, raw, one in zip(batch.state, observations, ROBOTS, strict=True):
        count = len(one.embodiment.state)
        np.testing.assert_array_equal(
            row[:count], normalize.normalize(raw["state"], one.statistics.state, "zscore")
        )
        assert not row[count:].any()
    for i, prompt in enumerate(PROMPTS):
        tokens, mask = TOKENIZER.encode(prompt, 12)
        np.testing.assert_array_equal(batch.tokens[i], tokens)
        np.testing.assert_array_equal(batch.token_mask[i], mask)


def test_an_observation_is_the_same_in_a_batch_as_alone(observations):
    """What the policy sees is what training saw, also on the smallest canvas that it needs."""
    together = device(host(observations, ROBOTS))
    for i, (raw, one) in enumerate(zip(observations, ROBOTS, strict=True)):
        canvas = preprocess.canvas_for([image.shape[:2] for image in raw["images"].values()])
        alone = device(host([raw], [one], canvas=canvas))
        for slot in LAYOUT.slots:
            np.testing.assert_allclose(together.images[slot][i], alone.images[slot][0], atol=1e-5)
            assert together.image_masks[slot][i] == alone.image_masks[slot][0]
        for field in ("tokens", "token_mask", "state"):
            np.testing.assert_array_equal(together._asdict()[field][i], alone._asdict()[field][0])


def test_the_device_half_gives_unit_range_images(observations):
    result = device(host(observations, ROBOTS))
    base = result.images["base_0_rgb"]
    assert base.shape == (3, 32, 32, 3)
    assert base.dtype == np.float32
    raw = observations[1]["images"]["image_0"]  # 32 x 32: no resizing
    np.testing.assert_allclose(base[1], raw / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(base[2], -1.0)  # no such camera: black, and masked


@pytest.mark.parametrize(
    ("size", "reduced"),
    [
        ((128, 256), (64, 128)),
        ((225, 100), (128, 56)),
        ((130, 129), (128, 127)),
        ((5000, 1), (128, 1)),
    ],
)
def test_an_image_larger_than_its_canvas_is_reduced_to_fit(size, reduced):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    fitted = preprocess.fit(image, CANVAS)
    assert fitted.shape == (*reduced, 3)
    np.testing.assert_array_equal(
        fitted, Image.fromarray(image).resize(reduced[::-1], Image.Resampling.BILINEAR)
    )
    batch = host([observation(WIDOWX, size)], [WIDOWX])
    assert batch.image_sizes["base_0_rgb"].tolist() == [list(reduced)]


def test_a_reduced_image_fills_a_side_of_any_canvas():
    """In floating point, 225 / (225 / 224) is 223.99..."""
    for canvas in ((224, 224), (256, 480), (360, 640)):
        for longest in range(max(canvas) + 1, max(canvas) + 60):
            height, width, _ = preprocess.fit(
                np.zeros((longest, longest, 3), np.uint8), canvas
            ).shape
            assert height == width == min(canvas)


def test_an_image_that_fits_its_canvas_is_left_alone():
    image = np.zeros((*CANVAS, 3), np.uint8)
    assert preprocess.fit(image, CANVAS) is image


def test_canvas_for_holds_every_image():
    assert preprocess.canvas_for([(64, 40), (30, 100)]) == (128, 128)
    assert preprocess.canvas_for([(480, 640), (64, 64)]) == (512, 640)
    assert preprocess.canvas_for([]) == (64, 64)


BROKEN = {
    "a field is missing": (
        lambda o: o.pop("state"),
        "field 'state' is missing; expected images, state and prompt",
    ),
    "a camera is missing": (
        lambda o: o["images"].pop("wrist"),
        r"camera 'wrist' is missing; got \['base'\]",
    ),
    "float pixels": (
        lambda o: o["images"].update(base=np.zeros((40, 30, 3), np.float32)),
        r"image 'base' must be uint8\[height, width, 3\] RGB, got float32\[40, 30, 3\]",
    ),
    "an alpha channel": (
        lambda o: o["images"].update(base=np.zeros((40, 30, 4), np.uint8)),
        r"got uint8\[40, 30, 4\]",
    ),
    "a grey image": (
        lambda o: o["images"].update(base=np.zeros((40, 30), np.uint8)),
        r"got uint8\[40, 30\]",
    ),
    "a batch of images": (
        lambda o: o["images"].update(base=np.zeros((1, 40, 30, 3), np.uint8)),
        r"got uint8\[1, 40, 30, 3\]",
    ),
    "an image without pixels": (
        lambda o: o["images"].update(base=np.zeros((0, 30, 3), np.uint8)),
        r"got uint8\[0, 30, 3\]",
    ),
    "not an array": (
        lambda o: o["images"].update(base=[[[0, 0, 0]]]),
        "image 'base' must be .*, got list",
    ),
    "a state too long": (
        lambda o: o.update(state=np.zeros(4)),
        r"state must have 3 dimensions \(joint_0, joint_1, joint_2\), got shape \[4\]",
    ),
    "a batch of states": (lambda o: o.update(state=np.zeros((1, 3))), r"got shape \[1, 3\]"),
    "NaN": (lambda o: o.update(state=np.array([0, np.nan, 0])), "state 'joint_1' is nan"),
    "infinity": (lambda o: o.update(state=np.array([0, 0, -np.inf])), "state 'joint_2' is -inf"),
    "infinity in float32": (
        lambda o: o.update(state=np.array([1e300, 0, 0])),
        r"state 'joint_0' is 1e\+300",
    ),
    "not numbers": (lambda o: o.update(state=["0", "0", "0"]), "state must hold numbers, got <U1"),
    "a prompt of several texts": (
        lambda o: o.update(prompt=np.array(["reach", "push"])),
        "prompt must be a string, got ndarray",
    ),
    "a prompt in bytes that are no UTF-8": (
        lambda o: o.update(prompt=b"\xff"),
        "prompt must be a string, got bytes",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_input_is_named(case):
    damage, message = BROKEN[case]
    broken = observation(ARM3)
    damage(broken)
    with pytest.raises(InputError, match=rf"^observation 1 \(reach_arm3\): .*{message}") as error:
        host([observation(ARM3), broken], [ARM3, ARM3])
    assert "\n" not in str(error.value)


def test_a_prompt_over_the_limit_is_an_error():
    with pytest.raises(InputError, match=r"^prompt has \d+ tokens, the limit is 12: 'reach reach"):
        host([observation(ARM3, prompt="reach " * 20)], [ARM3])


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
@pytest.mark.parametrize("one", ROBOTS, ids=lambda one: one.embodiment.name)
def test_actions_come_back_in_robot_units(one, mode):
    drawn = sample(one)
    batch = preprocess.host_actions([drawn], [one], LAYOUT._replace(normalization=mode))
    back = preprocess.to_robot(batch.actions[0], drawn.observation["state"], one, mode)
    assert back.shape == drawn.actions.shape
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, drawn.actions, atol=1e-5)


def test_states_and_targets_are_clipped_where_the_layout_says_so():
    """Values far out are cut off.

    The statistics of the robots here have mean 3 and standard deviation 2, about, so normal samples
    lie far out.
    """
    drawn, layout = sample(ARM3), LAYOUT._replace(normalization_clip=0.5)
    for clipped, plain in (
        (host([drawn.observation], [ARM3], layout).state, host([drawn.observation], [ARM3]).state),
        (
            preprocess.host_actions([drawn], [ARM3], layout).actions,
            preprocess.host_actions([drawn], [ARM3], LAYOUT).actions,
        ),
    ):
        assert np.abs(plain).max() > 0.5
        np.testing.assert_array_equal(clipped, np.minimum(np.maximum(plain, -0.5), 0.5))


def test_to_robot_takes_a_batch_of_chunks():
    drawn = [sample(OTHER, seed) for seed in range(3)]
    batch = preprocess.host_actions(drawn, [OTHER] * 3, LAYOUT)
    back = preprocess.to_robot(
        batch.actions, np.stack([s.observation["state"] for s in drawn]), OTHER, "zscore"
    )
    np.testing.assert_allclose(back, np.stack([s.actions for s in drawn]), atol=1e-5)


def test_deltas_are_taken_from_the_state_before_the_chunk():
    """Every step of the chunk is taken from the same state, in the declared dimensions only."""
    state = np.array([10.0, 20.0, 30.0], np.float32)
    actions = np.array([[11.0, 1.0], [12.0, 2.0], [14.0, 3.0]], np.float32)
    expected = [[1.0, 1.0], [2.0, 2.0], [4.0, 3.0]]
    np.testing.assert_array_equal(deltas.to_delta(actions, state, MIXED), expected)
    np.testing.assert_array_equal(deltas.to_delta(actions[None], state[None], MIXED), [expected])


def test_targets_are_normalised_deltas_padded_with_zeros():
    drawn = [sample(one, seed) for seed, one in enumerate(ROBOTS)]
    batch = preprocess.host_actions(drawn, ROBOTS, LAYOUT)
    assert batch.actions.shape == (3, HORIZON, 8)
    assert batch.actions.dtype == np.float32
    assert batch.dims.tolist() == [[True] * count + [False] * (8 - count) for count in (3, 7, 2)]
    np.testing.assert_array_equal(batch.valid, [[True, True, True, False]] * 3)
    np.testing.assert_array_equal(preprocess.dimension_masks(ROBOTS, 8), batch.dims)
    for row, one, known, dims in zip(batch.actions, ROBOTS, drawn, batch.dims, strict=True):
        delta = deltas.to_delta(known.actions, known.observation["state"], one.embodiment)
        statistics = one.statistics.actions
        np.testing.assert_allclose(
            row[:, dims], (delta - statistics.mean) / (statistics.std + 1e-6), rtol=1e-5
        )
        assert not row[:, ~dims].any()


@pytest.fixture(scope="module")
def halves():
    """Returns one row per robot; every camera shows two colours side by side."""
    image = np.full((32, 32, 3), (200, 80, 60), np.uint8)
    image[:, 10:] = (60, 90, 180)
    raw = RawObservation(
        images={"base": image, "wrist": image}, state=np.zeros(3, np.float32), prompt="open"
    )
    return host([raw, raw], [ARM3, ARM3])


def test_augmentation_moves_base_images_and_recolours_all(halves):
    """Two colours stay two colours in a wrist image: nothing was interpolated, so nothing moved."""
    keys = jax.random.split(jax.random.key(0), 2)
    plain, augmented = (
        preprocess.device(halves, LAYOUT),
        preprocess.device(halves, LAYOUT, augmentation_keys=keys),
    )
    for slot, interpolated in (("base_0_rgb", True), ("left_wrist_0_rgb", False)):
        first, second = np.asarray(augmented.images[slot])
        assert (len(np.unique(first[..., 0])) > 2) == interpolated
        assert np.abs(first - plain.images[slot][0]).max() > 0.02
        assert np.abs(first - second).max() > 0.02  # a key per row
        assert first.min() >= -1
        assert first.max() <= 1


def test_a_cameras_augmentation_does_not_depend_on_the_other_cameras(halves):
    keys = jax.random.split(jax.random.key(0), 2)
    both = preprocess.device(halves, LAYOUT, augmentation_keys=keys)
    wrist = preprocess.device(
        halves, LAYOUT._replace(slots=("left_wrist_0_rgb",)), augmentation_keys=keys
    )
    np.testing.assert_array_equal(both.images["left_wrist_0_rgb"], wrist.images["left_wrist_0_rgb"])


def test_check_robot_names_what_does_not_fit():
    preprocess.check_robot(WIDOWX, LAYOUT)
    with pytest.raises(InputError, match=r"^widowx has 7 state .*, the model 6 \(action_dim\)$"):
        preprocess.check_robot(WIDOWX, LAYOUT._replace(action_dim=6))
    with pytest.raises(InputError, match=r"^widowx has 7 state dimensions, its statistics 3$"):
        preprocess.check_robot(Robot(WIDOWX.embodiment, ARM3.statistics), LAYOUT)
    crossed = normalize.Statistics(WIDOWX.statistics.state, ARM3.statistics.actions)
    with pytest.raises(InputError, match=r"^widowx has 7 action dimensions, its statistics 3$"):
        preprocess.check_robot(Robot(WIDOWX.embodiment, crossed), LAYOUT)


def test_used_slots_are_those_that_any_robot_fills_in_the_models_order():
    assert preprocess.used_slots([MIXED]) == ("left_wrist_0_rgb",)
    assert preprocess.used_slots([MIXED, WIDOWX.embodiment]) == ("base_0_rgb", "left_wrist_0_rgb")


# The action names its joints in another order than the state. The wrist turns, and is told in
# [0, 2 pi).
TURNING = Embodiment(
    name="turning",
    robot="an arm",
    cameras={"left_wrist_0_rgb": "hand"},
    state=(StateDim("shoulder", "rad"), StateDim("wrist", "rad", low=0.0, periodic=True)),
    actions=(
        ActionDim("wrist", "rad", "absolute", low=0.0, delta=True, periodic=True),
        ActionDim("shoulder", "rad", "absolute", delta=True),
        ActionDim("heading", "rad", "absolute", periodic=True),
    ),
    control_hz=10.0,
    execute_steps=1,
)


def test_deltas_are_taken_by_name_and_the_short_way():
    state = np.array([1.0, 6.2], np.float32)
    actions = np.array([[0.1, 1.5, 3.0], [6.1, 0.5, -3.0]], np.float32)
    turn = 2 * np.pi
    np.testing.assert_allclose(
        deltas.to_delta(actions, state, TURNING),
        [[0.1 + turn - 6.2, 0.5, 3.0], [-0.1, -0.5, -3.0]],
        atol=1e-6,
    )


def test_angles_that_turn_are_normalised_about_their_mean():
    """Headings about pi: recorded as 3.1 and -3.1 they lie 0.08 apart, for the model too."""
    state = np.array([[0.0, 0.1], [1.0, 6.2]])
    actions = np.array([[-0.1, -1.0, np.pi - 0.2], [0.1, 1.0, np.pi + 0.2]])
    one = Robot(TURNING, normalize.Statistics(*map(normalize.accumulate, ([state], [actions]))))
    seen = np.array([0.5, 6.2], np.float32)
    chunk = np.array([[0.05, 0.5, 3.1], [6.15, 0.4, -3.1]], np.float32)
    in_model = preprocess.actions_to_model(chunk, seen, one, "zscore")
    np.testing.assert_allclose(in_model[:, 2], np.array([-0.0416, 0.0416]) / 0.2, atol=1e-3)
    np.testing.assert_allclose(preprocess.to_robot(in_model, seen, one, "zscore"), chunk, atol=1e-6)


def test_a_state_one_turn_further_is_the_same_state():
    one = Robot(TURNING, normalize.Statistics(*map(normalize.accumulate, (
        [np.array([[0.0, 6.0], [1.0, 6.6]])], [np.array([[0.0, 0, 0], [1, 1, 1]])]
    ))))  # fmt: skip
    turns = np.array([[0.5, 0.1], [0.5, 0.1 + 2 * np.pi], [0.5, 0.1 - 4 * np.pi]])
    found = preprocess.state_to_model(turns, one, "zscore")
    np.testing.assert_allclose(found, found[:1].repeat(3, axis=0), atol=1e-5)
    np.testing.assert_allclose(found[0, 1], (0.1 + 2 * np.pi - 6.3) / 0.3, atol=1e-4)


def test_what_a_robot_is_told_lies_in_its_own_turn():
    """Its wrist counts from 0 to a turn, its heading half a turn either way."""
    one = Robot(TURNING, normalize.Statistics(*map(normalize.accumulate, (
        [np.array([[0.0, 0], [1, 1]])], [np.array([[-1.0, -1, -1], [1, 1, 1]])]
    ))))  # fmt: skip
    said = np.array([[-0.2, 0.0, 4.0], [0.2, 0.0, -4.0], [0.0, 9.0, 1.0]], np.float32)
    told = preprocess.to_robot(said, np.array([0.0, 0.1], np.float32), one, "zscore")
    turn = 2 * np.pi
    np.testing.assert_allclose(told[:, 0], [turn - 0.1, 0.3, 0.1], atol=1e-5)
    np.testing.assert_allclose(told[:, 1], [0, 0, 9], atol=1e-5)  # what does not turn is left alone
    np.testing.assert_allclose(told[:, 2], [4 - turn, turn - 4, 1], atol=1e-5)


def test_an_error_of_an_angle_is_the_short_way():
    found = deltas.action_error(np.array([0.1, 3.0, 3.1]), np.array([6.2, -3.0, -3.1]), TURNING)
    np.testing.assert_allclose(found, [0.1 + 2 * np.pi - 6.2, 6.0, 2 * np.pi - 6.2], atol=1e-5)


def test_angles_in_their_turn_keep_every_bit():
    rng = np.random.default_rng(0)
    x = rng.uniform(-3.14, 3.14, (1000, 3)).astype(np.float32)
    np.testing.assert_array_equal(deltas.in_turn(x, TURNING.actions, 0.0), x)


@pytest.mark.parametrize(
    "prompt",
    [np.str_("open"), np.array("open"), np.bytes_(b"open"), np.array(b"open"), b"open", np.array("open", object)],
)  # fmt: skip
def test_prompts_as_numpy_holds_them_are_read(prompt):
    expected, _ = TOKENIZER.encode("open", LAYOUT.max_tokens)
    np.testing.assert_array_equal(
        host([observation(ARM3, prompt=prompt)], [ARM3]).tokens[0], expected
    )


def test_a_camera_that_nobody_needs_is_not_read_and_named_once(caplog):
    seen = observation(ARM3)
    plain = host([seen], [ARM3])
    seen["images"] = seen["images"] | {"ceiling": np.zeros((4000, 4000, 3), np.float64)}
    for _ in range(3):
        for canvas in (CANVAS, None):
            found = preprocess.host([seen], [ARM3], LAYOUT, TOKENIZER, canvas and [canvas])
    np.testing.assert_array_equal(found.state, plain.state)
    assert [record.message for record in caplog.records] == [
        "reach_arm3: camera 'ceiling' is not read: the robot's record does not name it"
    ]


def statistics_of(gripper: np.ndarray, embodiment: Embodiment) -> normalize.Statistics:
    rng = np.random.default_rng(0)
    state, actions = (rng.normal(size=(len(gripper), len(dims))) for dims in (embodiment.state, embodiment.actions))  # fmt: skip
    actions[:, 6] = gripper
    return normalize.Statistics(normalize.accumulate([state]), normalize.accumulate([actions]))


BINARY = np.resize([0.0, 1.0], 100)


def test_statistics_of_another_grippers_convention_are_refused():
    """A released LIBERO checkpoint counts from -1 to +1."""
    libero, widowx = EMBODIMENTS["libero"], EMBODIMENTS["widowx"]
    released = statistics_of(2 * BINARY - 1, libero)
    preprocess.check_robot(Robot(libero, released), LAYOUT)
    assert record_fit.doubtful_dimensions(libero, released) == []
    other = Robot(widowx, statistics_of(2 * BINARY - 1, widowx))
    expected = "expected values from 0 to 1 as its record declares, found 98% of them from -1 to 1"
    with pytest.raises(InputError, match=f"^widowx: statistics of action gripper: {expected}"):
        preprocess.check_robot(other, LAYOUT)


@pytest.mark.parametrize(
    ("gripper", "said"),
    [
        (BINARY, "libero: action gripper: its record says -1 for open and 1 for closed, by its statistics 98% of the values lie"),
        (np.full(100, -1.0), "libero: action gripper: by its statistics it never moves: it is always -1"),
    ],
)  # fmt: skip
def test_statistics_that_hardly_are_the_records_are_told(gripper, said):
    libero = EMBODIMENTS["libero"]
    robot = Robot(libero, statistics_of(gripper, libero))
    preprocess.check_robot(robot, LAYOUT)
    (line,) = record_fit.doubtful_dimensions(*robot)
    assert line.startswith(said)


def test_statistics_of_a_state_outside_its_declared_range_are_refused():
    low = dataclasses.replace(
        MIXED, state=(*MIXED.state[:2], StateDim("c", "m", low=-0.1, high=0.1))
    )
    with pytest.raises(InputError, match="^mixed: .*state c: expected values from -0.1 to 0.1"):
        preprocess.check_robot(robot(low), LAYOUT)


def test_an_exported_policy_turns_angles_as_a_policy_does():
    """export.py writes the same functions, compiled."""
    rng = np.random.default_rng(0)
    state, actions = rng.uniform(-3, 3, (50, 2)), rng.uniform(-3, 3, (50, 3))
    one = Robot(TURNING, normalize.Statistics(*map(normalize.accumulate, ([state], [actions]))))
    seen = rng.uniform(0, 6, (4, 2)).astype(np.float32)
    said = rng.normal(0, 2, (4, 5, 8)).astype(np.float32)
    to_model = jax.jit(lambda state: preprocess.state_to_model(state, one, "zscore"))
    to_robot = jax.jit(lambda said, state: preprocess.to_robot(said, state, one, "zscore"))
    np.testing.assert_allclose(
        to_model(seen), preprocess.state_to_model(seen, one, "zscore"), atol=1e-5
    )
    np.testing.assert_allclose(
        to_robot(said, seen), preprocess.to_robot(said, seen, one, "zscore"), atol=1e-5
    )
