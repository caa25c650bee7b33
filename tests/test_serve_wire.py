"""Messages and keys: what survives the wire, and what is said of everything else."""

import dataclasses

import msgpack
import numpy as np
import pytest
from msgpack import ExtType

from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.embodiments.keys import UnreadKeys, to_message, to_observation
from pi0_jax.embodiments.record import ClientKeys
from pi0_jax.errors import InputError
from pi0_jax.serve import wire

ARRAY = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}


@pytest.mark.parametrize(
    "value",
    [
        {"a": np.arange(6, dtype=np.uint8).reshape(1, 2, 3), "b": {"c": np.float32([0.5, np.inf])}},
        {
            "empty": np.zeros((0, 3), np.int64),
            "none": np.array(True),
            "big-endian": np.array([1.5], ">f8"),
        },
        [1, -2.5, "text", None, True, {"deep": [[np.int32(7)]]}],
    ],
)
def test_values_survive(value):
    def same(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, np.ndarray | np.generic):
            alike = type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
            return alike and np.array_equal(a, b)
        return type(a) is type(b) and a == b

    assert same(value, wire.unpack(wire.pack(value)))


def test_arrays_travel_as_the_published_client_packs_them():
    packed = msgpack.packb(
        {"x": {b"__ndarray__": True, b"data": b"\x01\x02", b"dtype": "|u1", b"shape": (2, 1)}}
    )
    assert wire.pack({"x": np.array([[1], [2]], np.uint8)}) == packed
    assert wire.unpack(packed)["x"].tolist() == [[1], [2]]


def test_a_transposed_image_is_sent_as_it_looks():
    image = np.moveaxis(np.arange(24, dtype=np.uint8).reshape(2, 4, 3), -1, 0)
    np.testing.assert_array_equal(wire.unpack(wire.pack(image)), image)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "message of 0 bytes: expected msgpack"),
        (b"\xc1", "message of 1 bytes: expected msgpack"),
        (wire.pack({"a": np.zeros(9)})[:-3], "expected msgpack: Unpack failed: incomplete input"),
        (wire.pack(1) + b"\x01", "expected msgpack: unpack"),
        (b"\x91" * 5000, "expected msgpack"),  # lists in lists
        (b"\x91" * 20 + b"\x01", "expected at most 8 levels of maps and lists, found more"),
        (b"\xdd\xff\xff\xff\xff", "expected msgpack"),  # says that it holds 4 billion values
        (msgpack.packb([[0] * 9000] * 5), "expected at most 10000 values, found more; numbers travel as arrays"),
        (b"\x82\xa1a\x01\xa1a\x02", "expected every key once, found 'a' twice"),
        (b"\x81\x01\x02", "expected msgpack: int is not allowed for map key"),
        (b"\xa2\xff\xff", "expected msgpack: 'utf-8' codec can't decode"),
        (msgpack.packb({"a": ARRAY | {b"dtype": "|O"}}), "'a': expected an array of numbers, found dtype '|O'"),
        (msgpack.packb({"a": [ARRAY | {b"dtype": "<U4"}]}), "'a/0': expected an array of numbers, found dtype '<U4'"),
        (msgpack.packb({"a": ARRAY | {b"dtype": [["f", "<f4"]]}}), r"'a': expected an array of numbers, found dtype \[\["),
        (msgpack.packb({"a": ARRAY | {b"dtype": "<f4,<f4"}}), "'a': expected an array of numbers"),
        (msgpack.packb({"a": ARRAY | {b"shape": [3]}}), r"'a': array of float32\[3\]: expected 12 bytes, found 8"),
        (msgpack.packb({"a": ARRAY | {b"shape": [-2]}}), r"'a': array shape: expected a list of at most 8 sizes from 0, found \[-2\]"),
        (msgpack.packb({"a": ARRAY | {b"shape": [1] * 9}}), "'a': array shape: expected a list of at most 8 sizes from 0"),
        (msgpack.packb({"a": ARRAY | {b"shape": [2**40, 2**40]}}), "expected 4835703278458516698824704 bytes, found 8"),
        (msgpack.packb({"a": ARRAY | {b"data": b"", b"shape": [0, 2**62, 2**62]}}), "'a': array shape: expected sizes that an array"),
        (msgpack.packb({"x" * 201: 1}), "message: expected keys of at most 200 characters, found 201"),
        (msgpack.packb({"a": ARRAY | {b"data": "text"}}), "'a': array data: expected bytes, found str"),
        (msgpack.packb({"a": {b"__ndarray__": True, b"dtype": "<f4"}}), "'a': array without 'data'"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"dtype": "|u1", b"data": 300}}), "'a': expected a uint8, found 300"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"dtype": "|u1", b"data": {}}}), "'a': expected a uint8, found {}"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"dtype": "|u1", b"data": 3.7}}), "'a': expected a uint8, found 3.7"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"dtype": "<f4", b"data": [1, 2]}}), r"'a': expected a float32, found \[1, 2\]"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"dtype": "<f4", b"data": None}}), "'a': expected a float32, found None"),
        (msgpack.packb({"a": ExtType(5, b"x")}), "message: expected no extension types, found number 5"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_named(message, said):
    with pytest.raises(InputError, match=said) as error:
        wire.unpack(message)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "value",
    [{"a": np.array(["text"])}, {"a": np.array([object()])}, {"a": {1, 2}}, {"a": np.complex64(1)}],
)
def test_only_numbers_are_packed(value):
    with pytest.raises(TypeError, match="cannot pack"):
        wire.pack(value)


# ---- keys


def image(channel_first=False, seed=0, size=(6, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) if channel_first else pixels


def droid(**changes):
    message = {
        "observation/exterior_image_1_left": image(seed=0),
        "observation/wrist_image_left": image(seed=1),
        "observation/joint_position": np.arange(7, dtype=np.float64),
        "observation/gripper_position": np.array([0.25]),
        "prompt": "pick up the cup",
    }
    return {key: value for key, value in (message | changes).items() if value is not None}


def test_droid_clients_send_joints_and_gripper_apart():
    seen = to_observation(droid(), EMBODIMENTS["droid"])
    assert seen["state"].dtype == np.float32 and seen["state"].tolist() == [*range(7), 0.25]
    np.testing.assert_array_equal(seen["images"]["wrist"], image(seed=1))
    assert sorted(seen["images"]) == ["exterior", "wrist"] and seen["prompt"] == "pick up the cup"
    for gripper in (0.25, np.float32(0.25), [0.25], np.array(0.25)):
        message = droid(**{"observation/gripper_position": gripper})
        assert to_observation(message, EMBODIMENTS["droid"])["state"][7] == 0.25


def test_libero_clients_send_one_state():
    images = {"observation/image": image(), "observation/wrist_image": image()}
    message = {**images, "observation/state": np.arange(8.0), "prompt": "open"}
    assert to_observation(message, EMBODIMENTS["libero"])["state"].tolist() == list(range(8))


@pytest.mark.parametrize("nested", [True, False])
def test_aloha_clients_send_channels_first_and_four_cameras(nested):
    names = "cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"
    cameras = {camera: image(True, i) for i, camera in enumerate(names)}
    flat = {f"images/{camera}": pixels for camera, pixels in cameras.items()}
    images = {"images": cameras} if nested else flat
    seen = to_observation({"state": np.zeros(14), "prompt": "fold", **images}, EMBODIMENTS["aloha"])
    assert sorted(seen["images"]) == ["cam_high", "cam_left_wrist", "cam_right_wrist"]
    np.testing.assert_array_equal(seen["images"]["cam_high"], image(seed=0))


@pytest.mark.parametrize("name", EMBODIMENTS)
def test_every_robot_can_be_served(name):
    embodiment = EMBODIMENTS[name]
    seen = {
        "images": {camera: image(seed=i) for i, camera in enumerate(embodiment.cameras.values())},
        "state": np.arange(len(embodiment.state), dtype=np.float32),
        "prompt": "go",
    }
    back = to_observation(wire.unpack(wire.pack(to_message(seen, embodiment.keys))), embodiment)
    np.testing.assert_equal(back, seen)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (None, "expected an observation, a map, found NoneType"),
        ({b"a": 1}, "expected keys that are text, found b'a'"),
        (droid(prompt=None), "'prompt' is missing; expected observation/exterior_image_1_left, "),
        (droid(extra=1), "'extra' is not expected; expected observation/"),
        (droid(observation={"joint_position": np.zeros(7)}), "'observation/joint_position' comes twice"),
        (droid(**{"observation/wrist_image_left": image().astype(np.float32)}),
         r"'observation/wrist_image_left': expected uint8\[height, width, 3\] RGB, found float32\[6, 8, 3\]"),
        (droid(**{"observation/wrist_image_left": image(True)}), r"expected uint8\[height, width, 3\] RGB, found uint8\[3, 6, 8\]"),
        (droid(**{"observation/wrist_image_left": image(size=(0, 4))}), r"of 1 to 4096 pixels a side, found uint8\[0, 4, 3\]"),
        (droid(**{"observation/wrist_image_left": image(size=(5000, 1))}), r"of 1 to 4096 pixels a side, found uint8\[5000, 1, 3\]"),
        (droid(**{"observation/wrist_image_left": "pixels"}), "found str"),
        (droid(**{"observation/joint_position": np.zeros(6)}), r"'observation/joint_position': expected float32\[7\], found float64\[6\]"),
        (droid(**{"observation/joint_position": np.zeros(7, bool)}), r"expected float32\[7\], found bool\[7\]"),
        (droid(**{"observation/joint_position": ["1"] * 7}), r"expected float32\[7\], found list"),
        (droid(**{"observation/joint_position": np.float32([0, 0, np.nan, 0, 0, 0, 0])}), "expected finite .*, found nan for joint_2"),
        (droid(**{"observation/joint_position": [0, 1e300, 0, 0, 0, 0, 0]}), r"expected finite float32 numbers, found 1e\+300 for joint_1"),
        (droid(**{"observation/gripper_position": -np.inf}), "'observation/gripper_position': expected finite .* for gripper"),
        (droid(prompt=" \n"), "'prompt': expected an instruction, found empty text"),
        (droid(prompt="x" * 2001), "'prompt': expected at most 2000 characters, found 2001"),
        (droid(prompt=3), "'prompt': expected text, found int"),
    ],
)  # fmt: skip
def test_what_is_no_observation_is_named(message, said):
    with pytest.raises(InputError, match=said) as error:
        to_observation(message, EMBODIMENTS["droid"])
    assert "\n" not in str(error.value)


def test_a_server_may_have_a_prompt_for_those_who_send_none():
    for sent, read in ((None, "tidy up"), ("pick up the cup", "pick up the cup")):
        seen = to_observation(droid(prompt=sent), EMBODIMENTS["droid"], "tidy up")
        assert seen["prompt"] == read


def test_keys_that_do_not_fit_the_robot_are_refused():
    fitting = EMBODIMENTS["droid"].client_keys
    for keys, said in (
        (dataclasses.replace(fitting, cameras={"exterior": "a"}), "expected cameras"),
        (dataclasses.replace(fitting, state=(("a", 7),)), "expected 8 values of state, found 7"),
        (ClientKeys(fitting.cameras, (("a", 7), ("prompt", 1))), "expected keys that differ"),
    ):
        with pytest.raises(InputError, match=f"client keys: {said}"):
            dataclasses.replace(EMBODIMENTS["droid"], client_keys=keys)


def test_keys_that_the_policy_does_not_need_are_named_once(caplog):
    embodiment = EMBODIMENTS["droid"]
    unread = UnreadKeys(embodiment.name)
    message = droid(extra=1, **{"observation/force": np.zeros(6)})
    for _ in range(3):
        seen = to_observation(message, embodiment, unread=unread)
        np.testing.assert_equal(seen, to_observation(droid(), embodiment))
    to_observation(droid(another=1, extra=2), embodiment, unread=unread)
    not_read = "droid: not read, since its record does not name them: "
    assert [record.message for record in caplog.records] == [
        f"{not_read}extra, observation/force",
        f"{not_read}another",
    ]


def test_no_client_fills_the_log_with_names_of_its_own(caplog):
    unread = UnreadKeys("droid")
    for i in range(1000):
        unread.name([f"key {i}"])
    assert len(caplog.records) == 100


@pytest.mark.parametrize(
    "prompt",
    [np.str_("heb den Würfel"), np.array("heb den Würfel"), np.bytes_("heb den Würfel".encode()),
     np.array("heb den Würfel".encode()), "heb den Würfel".encode()],
)  # fmt: skip
def test_prompts_come_as_numpy_holds_them(prompt):
    """openpi-client packs them so: an array of text is a map with its dtype, too."""
    assert to_observation(droid(prompt=prompt), EMBODIMENTS["droid"])["prompt"] == "heb den Würfel"
    packed = prompt
    if isinstance(prompt, np.ndarray):
        about = {b"dtype": prompt.dtype.str, b"shape": prompt.shape}
        packed = {b"__ndarray__": True, b"data": prompt.tobytes(), **about}
    sent = wire.unpack(wire.pack(droid(prompt=packed)))
    assert to_observation(sent, EMBODIMENTS["droid"])["prompt"] == "heb den Würfel"
    ours = to_message(to_observation(sent, EMBODIMENTS["droid"]), EMBODIMENTS["droid"].keys)
    assert wire.unpack(wire.pack(ours))["prompt"] == "heb den Würfel"


@pytest.mark.parametrize(
    ("dtype", "data"), [("|S2", b"\xff\xfe"), ("<U1", b"\xff" * 4), ("<U1", b"abc")]
)
def test_an_array_of_bytes_that_are_no_text_is_refused(dtype, data):
    packed = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": []}
    with pytest.raises(InputError, match="^'prompt': expected text, found bytes that are none$"):
        wire.unpack(wire.pack({"prompt": packed}))
