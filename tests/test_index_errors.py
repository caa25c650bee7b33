"""The index refuses bad data in one line.

The line names dataset, split, episode, file, step and field, what is expected and what was found.
"""

import dataclasses
import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pi0_jax.data.datasets import ROWS, datasets_in, find_row
from pi0_jax.data.index import build_or_open
from pi0_jax.data.mixture import Mixture, UniformOrder
from pi0_jax.data.rows import CameraField, Language, RawField, as_recorded
from pi0_jax.data.write import ArrayFeature
from pi0_jax.embodiments import ActionDim, StateDim
from pi0_jax.errors import InputError
from tests.tiny_data import (
    REACH_STEPS,
    reach_episodes,
    reach_step,
    shard_files,
    write_reach,
)

ROW = ROWS["reach_arm3"]


def build(data_dir, row=ROW, index_dir=None):
    return build_or_open(row, data_dir, index_dir, progress=False)


def refuses(tmp_path, message, row=ROW):
    with pytest.raises(InputError, match=message) as caught:
        build(tmp_path, row)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*/*/pi0_index/*/index.json"))


def encoded(mode, format, *, size=(24, 16), orientation=1):
    """Returns an image file; the EXIF data of a JPEG say how it is to be turned."""
    file = io.BytesIO()
    image = Image.new(mode, size)
    image.getexif()[0x0112] = orientation
    image.save(file, format, **({"exif": image.getexif()} if format == "JPEG" else {}))
    return file.getvalue()


def noise(format):
    """Returns an image file of random pixels."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(file, format, quality=95)
    return file.getvalue()


def empty_png(height, width):
    """Returns a PNG that claims this size and has no pixels."""
    data = encoded("RGB", "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (b"not an image", "12 bytes that start with 0x6e6f7420616e2069"),
        (b"", "0 bytes that start with 0x-"),
        (encoded("L", "JPEG"), "a JPEG with 8 bits a channel, 1 channels"),
        (encoded("CMYK", "JPEG"), "a JPEG with 8 bits a channel, 4 channels"),
        (encoded("RGBA", "PNG"), "a PNG with 8 bits a channel, RGB with alpha"),
        (encoded("I;16", "PNG"), "a PNG with 16 bits a channel, greyscale"),
        (encoded("RGB", "GIF"), "bytes that start with 0x474946"),
        (
            encoded("RGB", "JPEG", orientation=6),
            r"a JPEG that is to be turned when it is shown \(EXIF orientation 6\)",
        ),
        (empty_png(0, 24), "an image of 0x24 pixels"),
    ],
)
def test_an_image_that_is_not_8_bit_rgb(tmp_path, image, found):
    episodes = reach_episodes((2, 3))
    episodes[1]["steps"][2]["observation"]["wrist"] = image
    write_reach(tmp_path, episodes=episodes)
    place = r"dataset reach_arm3: split train episode 1 \(reach_arm3-train.tfrecord-00000-of-00001 record 1\): step 2"
    refuses(
        tmp_path,
        f"{place}: field steps/observation/wrist: expected an 8-bit RGB JPEG or PNG, found .*{found}",
    )


def test_images_of_several_sizes_and_kinds(tmp_path):
    """Headers that differ are read one by one; those that are alike need it once."""
    sizes = [(24, 16), (24, 16), (32, 8), (24, 16), (40, 20), (8, 48)]
    episodes = reach_episodes((3, 3))
    for number, (size, format) in enumerate(
        zip(sizes, ("JPEG", "PNG", "JPEG", "JPEG", "JPEG", "PNG"), strict=True)
    ):
        episodes[number // 3]["steps"][number % 3]["observation"]["base"] = encoded(
            "RGB", format, size=size
        )
    write_reach(tmp_path, episodes=episodes)
    index = build(tmp_path)
    assert index.image_sizes["steps/observation/base"] == {"min": [8, 8], "max": [48, 40]}
    assert index.image_sizes["steps/observation/wrist"] == {"min": [16, 24], "max": [16, 24]}
    assert [index.observation(frame)["images"]["base"].shape[1::-1] for frame in range(6)] == sizes


def broken(data):
    """Returns the image with a byte of its pixels changed, and its end in place."""
    return data[:-30] + b"\xff\xc0" + data[-28:]


def test_an_image_without_its_end(tmp_path):
    """It is found wherever it is; an image that decodes all the same is not refused."""
    for kind in ("JPEG", "PNG"):
        episodes = reach_episodes((3, 4))
        episodes[1]["steps"][2]["observation"]["base"] = encoded("RGB", kind)[:-20]
        write_reach(tmp_path / kind, episodes=episodes)
        refuses(
            tmp_path / kind,
            "split train episode 1 .*record 1.*: step 2: field steps/observation/base: .* do not decode",
        )
    for kind in ("JPEG", "PNG"):
        episodes = reach_episodes((3, 4))
        episodes[1]["steps"][2]["observation"]["base"] = encoded("RGB", kind) + b"and more"
        write_reach(tmp_path / f"{kind}-followed", episodes=episodes)
        assert build(tmp_path / f"{kind}-followed").observation(5)["images"]["base"].shape


def test_an_image_that_is_broken_inside(tmp_path):
    """A sampled image is decoded when the index is built, and all of them with decode_all.

    Every image is decoded when it is drawn.
    """
    for step in (0, 1):
        episodes = reach_episodes((3,))
        episodes[0]["steps"][step]["observation"]["base"] = broken(noise("JPEG"))
        write_reach(tmp_path / str(step), episodes=episodes)
    message = "split train episode 0 .*record 0.*: step {}: field steps/observation/base: .* do not decode"
    with pytest.raises(InputError, match=message.format(0)):
        build(tmp_path / "0")
    with pytest.raises(InputError, match=message.format(1)):
        build_or_open(ROW, tmp_path / "1", progress=False, decode_all=True)
    index = build(tmp_path / "1")
    with pytest.raises(
        InputError, match="record 0: step 1: field steps/observation/base: .* do not decode"
    ):
        index.observation(1)
    with pytest.raises(
        InputError,
        match=f"expected an index for which all images were decoded, found {index.path}; delete it to build one",
    ):
        build_or_open(ROW, tmp_path / "1", progress=False, decode_all=True)


def test_a_bad_image_in_training_is_left_out_with_its_episode_if_that_is_allowed(tmp_path, caplog):
    episodes = reach_episodes((3, 3, 3, 3))
    for episode, step in ((1, 2), (2, 2)):
        episodes[episode]["steps"][step]["observation"]["base"] = broken(noise("JPEG"))
    write_reach(tmp_path, episodes=episodes, per_shard=4)
    row = dataclasses.replace(ROW, held_out=0.0)
    # frame 5 is step 2 of episode 1; that of episode 2 is bad too, that of episode 3 is not
    for allowed in (0, 1):
        index = build_or_open(row, tmp_path, progress=False, skip_bad_episodes=allowed)
        with pytest.raises(InputError, match="record [12]: step 2: .* do not decode"):
            index.readable(5)
    for _ in range(2):  # as a run that is resumed does
        caplog.clear()
        index = build_or_open(row, tmp_path, progress=False, skip_bad_episodes=2)
        assert [index.readable(5)[0] for _ in range(3)] == [11] * 3
        assert index.readable(8)[0] == 11 and index.readable(4)[0] == 4
        assert len(caplog.records) == 2 and "record 1: step 2" in caplog.text
    order = UniformOrder(
        Mixture([index], {"reach_arm3": 1.0}, split="train", horizon=2, seed=0), 12
    )
    (draws,) = order.draws(0, 1, range(12))
    samples = order.mixture.samples(draws)
    drawn = [(sample.episode, sample.step) for sample in samples]
    assert drawn.count((3, 2)) == 3 and not {(1, 2), (2, 2)} & set(drawn)
    for sample in samples:
        assert sample.observation["state"][:2].tolist() == [sample.episode, sample.step]
        assert sample.actions[0, 0] == sample.episode + 0.5


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (empty_png(30_000, 30_000), "exceeds limit"),
        (encoded("RGB", "PNG")[:29] + b"????", "a broken header"),
    ],
)
def test_a_png_that_cannot_be_decoded(tmp_path, image, found):
    episodes = reach_episodes((3,))
    episodes[0]["steps"][0]["observation"]["base"] = image
    write_reach(tmp_path, episodes=episodes)
    refuses(
        tmp_path,
        f"step 0: field steps/observation/base: expected .* bytes that do not decode: .*{found}",
    )


def test_an_instruction_of_what_are_no_characters(tmp_path):
    steps = {**REACH_STEPS, "language_instruction": ArrayFeature((3,), np.int32)}
    episodes = reach_episodes((2, 2))
    for episode, code in zip(episodes, (66, 0xD800), strict=True):  # half of a pair
        for step in episode["steps"]:
            step["language_instruction"] = np.array([65, code, 0], np.int32)
    write_reach(tmp_path, steps=steps, episodes=episodes)
    row = dataclasses.replace(
        ROW, language=Language(("steps/language_instruction",), "code points")
    )
    refuses(
        tmp_path,
        r"episode 1 .*language_instruction: expected Unicode code points, found \[65, 55296\]",
        row,
    )


@pytest.mark.parametrize(("field", "value"), [("state", np.nan), ("action", np.inf)])
def test_a_number_that_is_not_finite(tmp_path, field, value):
    episodes = reach_episodes((2, 3))
    step = episodes[1]["steps"][1]
    vector = step["observation"]["state"] if field == "state" else step["action"]
    vector[2] = value
    write_reach(tmp_path, episodes=episodes)
    refuses(
        tmp_path,
        rf"1 \(.* record 1\): step 1: field steps/.*{field} dimension 2: expected a finite number, found {value}$",
    )


def test_a_quaternion_that_is_not_of_unit_length(tmp_path):
    pose = "steps/observation/pose"
    steps = {
        **REACH_STEPS,
        "observation": {**REACH_STEPS["observation"], "pose": ArrayFeature((7,), np.float32)},
    }
    row = dataclasses.replace(
        ROW, fields={**ROW.fields, pose: RawField((7,), "float32", quaternions=(3,))}
    )
    for name, last in (("rounded", 0.8004), ("wrong", 0.9)):
        episodes = reach_episodes((2, 3))
        for step in (step for episode in episodes for step in episode["steps"]):
            step["observation"]["pose"] = np.array([7, 8, 9, 0, 0, 0.6, 0.8], np.float32)
        episodes[1]["steps"][2]["observation"]["pose"][6] = last
        write_reach(tmp_path / name, steps=steps, episodes=episodes)
    assert build(tmp_path / "rounded", row).steps == 5
    message = f"episode 1 .* record 1.: step 2: field {pose} dimensions 3 to 6: expected a quaternion of unit length, found length 1.08167$"
    refuses(tmp_path / "wrong", message, row)


@pytest.mark.parametrize(
    ("dim", "right", "wrong", "expected"),
    [
        (
            ActionDim("gripper", "1", "absolute", low=0.0, high=1.0),
            1.00005,
            1.01,
            "at least 0 and at most 1",
        ),
        (
            ActionDim("gripper", "1", "absolute", low=0.0, high=1.0),
            -0.00005,
            -0.01,
            "at least 0 and at most 1",
        ),
        (
            ActionDim("gripper", "1", "absolute", one_means="open"),
            1.0,
            -1.0,
            "at least 0 and at most 1",
        ),
        (ActionDim("height", "m", "absolute", low=0.0), 9.9, -0.1, "at least 0 and at most 10 m"),
        (ActionDim("force", "N", "absolute", low=0.0), 1e9, -1.0, "at least 0 N"),
        (ActionDim("dx", "m", "relative"), -1.0, -1.1, "a plausible magnitude of at most 1 m"),
        (ActionDim("x", "m", "absolute"), 10.0, 11.0, "a plausible magnitude of at most 10 m"),
        (
            ActionDim("dyaw", "rad", "relative"),
            np.pi,
            180.0,
            "a plausible magnitude of at most 3.14159 rad",
        ),
        (
            ActionDim("joint", "rad", "absolute"),
            12.0,
            90.0,
            "a plausible magnitude of at most 12.5664 rad",
        ),
        (ActionDim("vx", "m/s", "relative"), 5.0, -6.0, "a plausible magnitude of at most 5 m/s"),
        (
            ActionDim("vyaw", "rad/s", "relative"),
            10.0,
            11.0,
            "a plausible magnitude of at most 10 rad/s",
        ),
    ],
)
def test_an_action_out_of_its_range(tmp_path, dim, right, wrong, expected):
    free = ActionDim("free", "1", "absolute")
    row = dataclasses.replace(
        ROW, embodiment=dataclasses.replace(ROW.embodiment, actions=(free, free, dim))
    )
    for name, value in (("right", right), ("wrong", wrong)):
        episodes = reach_episodes((2, 3))
        for step in (step for episode in episodes for step in episode["steps"]):
            step["action"] = np.array([1e6, 0, 0], np.float32)
        episodes[1]["steps"][1]["action"][2] = value
        write_reach(tmp_path / name, episodes=episodes)
    assert build(tmp_path / "right", row).steps == 5
    refuses(
        tmp_path / "wrong",
        rf"episode 1 .* record 1\): step 1: action dimension 2 \({dim.name}\): expected {expected}(, or low and high in .*)?,"
        f" found {wrong:g}$",
        row,
    )


@pytest.mark.parametrize(
    ("dim", "right", "wrong", "expected"),
    [
        (StateDim("joint", "rad"), 12.0, 57.3, "12.5664 rad"),
        (StateDim("x", "m"), 9.0, 300.0, "10 m"),
        (StateDim("gripper_width", "m"), 0.08, 8.0, "0.5 m"),
        (StateDim("finger_1", "m"), -0.04, -40.0, "0.5 m"),
        (StateDim("speed", "m/s"), 4.0, 100.0, "5 m/s"),
        (StateDim("pad", "1"), 1e9, 1e38, r"1e\+12"),
    ],
)
def test_a_state_that_is_not_plausible_in_one_frame(tmp_path, dim, right, wrong, expected):
    free = (StateDim("a", "1"), StateDim("b", "1"))
    actions = tuple(dataclasses.replace(action, delta=False) for action in ROW.embodiment.actions)

    def row(last):
        robot = dataclasses.replace(ROW.embodiment, state=(*free, last), actions=actions)
        return dataclasses.replace(ROW, embodiment=robot)

    for name, value in (("right", right), ("wrong", wrong)):
        episodes = reach_episodes((2, 30))
        for step in (step for episode in episodes for step in episode["steps"]):
            step["action"][:] = 0
        episodes[1]["steps"][17]["observation"]["state"][2] = value
        write_reach(tmp_path / name, episodes=episodes)
    assert build(tmp_path / "right", row(dim)).steps == 32
    place = rf"episode 1 .* record 1\): step 17: state dimension 2 \({dim.name}\)"
    found = f"expected a plausible magnitude of at most {expected}, or .*, found {re.escape(f'{wrong:g}')}$"
    refuses(tmp_path / "wrong", f"{place}: {found}", row(dim))
    declared = dataclasses.replace(dim, low=-1e39, high=1e39)
    assert build(tmp_path / "wrong", row(declared)).steps == 32


def test_a_state_out_of_its_range(tmp_path):
    """A state is refused if its step may be drawn; a rule may drop a step for such a state."""
    state = (
        StateDim("joint_0", "rad"),
        StateDim("joint_1", "rad", low=-1.0, high=1.0),
        StateDim("joint_2", "rad"),
    )
    row = dataclasses.replace(ROW, embodiment=dataclasses.replace(ROW.embodiment, state=state))
    write_reach(tmp_path)
    refuses(
        tmp_path,
        r"episode 0 .* step 2: state dimension 1 \(joint_1\): expected at least -1 and at most 1 rad, found 2$",
        row,
    )
    assert build(tmp_path, dataclasses.replace(row, standardise=nothing_kept)).steps == 12


def nothing_kept(columns):
    return as_recorded(columns)._replace(
        keep=np.zeros(len(columns["steps/action"]), bool), success=False
    )


def test_an_episode_without_steps(tmp_path):
    write_reach(tmp_path, episodes=[*reach_episodes((2,)), {"steps": []}])
    refuses(
        tmp_path, r"split train episode 1 \(.* record 1\): expected at least one step, found none"
    )


def test_features_unlike_the_rows(tmp_path):
    step = reach_step(0, 0)
    four = {**REACH_STEPS, "action": ArrayFeature((4,), np.float32)}
    write_reach(
        tmp_path / "four",
        steps=four,
        episodes=[{"steps": [{**step, "action": np.zeros(4, np.float32)}]}],
    )
    refuses(
        tmp_path / "four", r"field steps/action: expected float32\[3\], found Tensor float32\[4\]"
    )

    missing = {name: feature for name, feature in REACH_STEPS.items() if name != "action"}
    write_reach(
        tmp_path / "missing",
        steps=missing,
        episodes=[{"steps": [{k: v for k, v in step.items() if k != "action"}]}],
    )
    refuses(
        tmp_path / "missing",
        "expected field steps/action, found steps/language_instruction, steps/observation/base",
    )

    text = dataclasses.replace(
        ROW, cameras={**ROW.cameras, "base": CameraField("steps/language_instruction")}
    )
    write_reach(tmp_path / "text")
    refuses(
        tmp_path / "text",
        r"field steps/language_instruction: expected a uint8 RGB image, found Text string\[\]",
        text,
    )


def test_dimensions_and_cameras_unlike_the_embodiments(tmp_path):
    write_reach(tmp_path)
    robot = dataclasses.replace(ROW.embodiment, actions=ROW.embodiment.actions[:2])
    message = r"record 0\): action: expected 3 steps of 2 dimensions as embodiment reach_arm3 declares, found \[3, 3\]"
    refuses(tmp_path, message, dataclasses.replace(ROW, embodiment=robot))
    with pytest.raises(
        InputError,
        match=r"dataset row reach_arm3: expected cameras \['base', 'wrist'\].* found \['base', 'top', 'wrist'\]",
    ):
        dataclasses.replace(
            ROW, cameras={**ROW.cameras, "top": CameraField("steps/observation/top")}
        )


def test_files_that_are_missing_or_wrong(tmp_path):
    refuses(
        tmp_path,
        r"dataset reach_arm3: expected a readable directory .*/reach_arm3, found: No such file or directory",
    )
    directory = write_reach(tmp_path)
    info = json.loads((directory / "dataset_info.json").read_text())

    (tmp_path / "reach_arm3" / "1.0.0").rename(tmp_path / "reach_arm3" / "0.9.0")
    refuses(tmp_path, "expected version 1.0.0 in .*/reach_arm3, found 0.9.0")
    (tmp_path / "reach_arm3" / "0.9.0").rename(directory)

    shard = next(shard_files(directory))
    shard.rename(tmp_path / "away")
    refuses(tmp_path, f"split train: expected the shard file {shard}, found none")
    damaged = bytearray((tmp_path / "away").read_bytes())
    damaged[5000] ^= 1
    shard.write_bytes(damaged)
    refuses(tmp_path, f"{shard}: record [01] at byte [0-9]+: corrupted payload: expected checksum")
    (tmp_path / "away").rename(shard)

    features = (directory / "features.json").read_text()
    (directory / "features.json").write_text('{"pythonClassName": 3}')
    refuses(
        tmp_path,
        "expected metadata that TFDS can open, found: Failed to parse pythonClassName field",
    )
    (directory / "features.json").write_text(features)
    info["splits"][0]["shardLengths"] = ["1", "2"]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    refuses(tmp_path, f"{shard}: expected 1 records as dataset_info.json says, found 2")
    (directory / "dataset_info.json").write_text("{")
    refuses(tmp_path, "expected JSON in .*dataset_info.json, found: Expecting property name")
    (directory / "dataset_info.json").write_text("{}")
    refuses(tmp_path, "expected metadata that TFDS can open")
    (directory / "dataset_info.json").unlink()
    refuses(tmp_path, "expected a readable .*dataset_info.json, found: No such file")


def test_a_dataset_folder_that_cannot_be_written_to(tmp_path):
    directory = write_reach(tmp_path)
    (directory / "pi0_index").write_text("in the way")
    with pytest.raises(
        InputError,
        match=r"cannot write an index to .*/pi0_index \(File exists\); give another index_dir",
    ):
        build(tmp_path)
    assert build(tmp_path, index_dir=tmp_path / "indices").steps == 12


def test_a_shard_that_shrank_after_it_was_indexed(tmp_path):
    directory = write_reach(tmp_path)
    index = build(tmp_path)
    next(shard_files(directory)).write_bytes(b"")
    with pytest.raises(
        InputError,
        match="expected [0-9]+ bytes at byte [0-9]+, found 0: the file has changed since it was indexed",
    ):
        index.observation(0)


def test_an_unknown_dataset():
    with pytest.raises(
        InputError,
        match="dataset 'nonesuch' is unknown; expected one of .*bridge_dataset.*reach_arm3",
    ):
        find_row("nonesuch")
    with pytest.raises(InputError, match=r"dataset 'my_robt' is unknown; did you mean my_robot\?"):
        find_row("my_robt", {"my_robot": {}})


def test_datasets_of_other_formats_are_named(tmp_path):
    (tmp_path / "lab" / "meta").mkdir(parents=True)
    (tmp_path / "lab" / "meta" / "info.json").write_text("{}")
    (tmp_path / "reach_arm3").mkdir()
    (tmp_path / "reach_arm3" / "episode_0.hdf5").write_bytes(b"")
    for call, said in (
        (lambda: datasets_in(tmp_path / "lab"), f"{tmp_path}/lab is a LeRobot dataset"),
        (
            lambda: build(tmp_path / "lab"),
            f"dataset reach_arm3: {tmp_path}/lab is a LeRobot dataset",
        ),
        (lambda: build(tmp_path), r"reach_arm3 holds HDF5 files \(episode_0.hdf5\): expected RLDS"),
    ):
        with pytest.raises(InputError, match=said):
            call()
    directory = write_reach(tmp_path / "data")
    with pytest.raises(InputError, match=f"{directory} is one version of an RLDS dataset"):
        datasets_in(directory)


def no_instruction(episodes):
    for step in (step for episode in episodes for step in episode["steps"]):
        step["language_instruction"] = ""
    return episodes


@pytest.mark.parametrize(
    ("episodes", "changes", "cause"),
    [
        (no_instruction(reach_episodes((3, 3))), {}, r"\d have no instruction \(draw them with config.keep_empty_language"),
        (reach_episodes((3, 3)), {"standardise": nothing_kept}, r"of its . episodes in that split . are marked as failed"),
        (reach_episodes((3, 3)), {"held_out": 0.99}, "all of its 2 episodes are held out; lower the row's held_out"),
    ],
)  # fmt: skip
def test_why_there_is_no_frame_to_train_on(tmp_path, episodes, changes, cause):
    write_reach(tmp_path, episodes=episodes)
    index = build(tmp_path, dataclasses.replace(ROW, **changes))
    with pytest.raises(InputError, match=f"split train, found none: .*{cause}"):
        Mixture([index], {"reach_arm3": 1.0}, split="train", horizon=2, seed=0)


def test_a_folder_without_known_datasets(tmp_path):
    (tmp_path / "my_robot").mkdir()
    with pytest.raises(
        InputError, match=r"expected folders of known datasets, found my_robot; .* \(--config\)"
    ):
        datasets_in(tmp_path)
    with pytest.raises(InputError, match="none: expected a folder of datasets, found none"):
        datasets_in(tmp_path / "none")
