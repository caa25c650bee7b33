"""The index refuses bad data in one line.

The line names dataset, split, episode, file, step and field, what is expected and what was found.
"""

import dataclasses
import io
import json
import struct
import zlib
from collections.abc import Callable

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
from tests.tiny_data import REACH_STEPS, assert_in_order, reach_episodes, shard_files, write_reach

ROW = ROWS["reach_arm3"]
ROBOT = ROW.embodiment
BASE, WRIST, POSE = (f"steps/observation/{name}" for name in ("base", "wrist", "pose"))


def build(data_dir, row=ROW, index_dir=None, **options):
    return build_or_open(row, data_dir, index_dir, progress=False, **options)


def says(call: Callable, *parts: str) -> None:
    """Checks that a call raises one line of InputError that has these parts, in this order."""
    with pytest.raises(InputError) as caught:
        call()
    assert_in_order(str(caught.value), *parts)
    assert "\n" not in str(caught.value)


def refuses(data_dir, *parts, row=ROW):
    says(lambda: build(data_dir, row), "reach_arm3", *parts)
    assert not list(data_dir.glob("*/*/pi0_index/*/index.json"))


def robot_row(**changes):
    return dataclasses.replace(ROW, embodiment=dataclasses.replace(ROBOT, **changes))


def written(data_dir, lengths, *places, steps=REACH_STEPS, **options):
    """Writes episodes of which some fields have other values, and returns the folder of datasets.

    A place is (episode, step, field, value). The value of a vector's element is in `value[i]`.
    """
    episodes = reach_episodes(lengths)
    for episode, step, field, value in places:
        holder = episodes[episode]["steps"][step]
        holder = holder["observation"] if field in (*REACH_STEPS["observation"], "pose") else holder
        if isinstance(value, dict):
            for place, number in value.items():
                holder[field][place] = number
        else:
            holder[field] = value
    write_reach(data_dir, steps=steps, episodes=episodes, **options)
    return data_dir


def encoded(mode, format, *, size=(24, 16), orientation=1):
    """Returns an image file; the EXIF data of a JPEG say how it is to be turned."""
    file = io.BytesIO()
    image = Image.new(mode, size)
    image.getexif()[0x0112] = orientation
    image.save(file, format, **({"exif": image.getexif()} if format == "JPEG" else {}))
    return file.getvalue()


def broken_jpeg():
    """Returns a JPEG of random pixels with a byte of them changed, and its end in place."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()[:-30] + b"\xff\xc0" + file.getvalue()[-28:]


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
        (encoded("RGB", "JPEG", orientation=6), "EXIF orientation 6"),
        (empty_png(0, 24), "an image of 0x24 pixels"),
        (empty_png(30_000, 30_000), "exceeds limit"),
        (encoded("RGB", "PNG")[:29] + b"????", "a broken header"),
    ],
)
def test_an_image_that_is_not_8_bit_rgb(tmp_path, image, found):
    """The images of the first step are decoded, and of all others the headers are read."""
    place = ("split train episode 0", "reach_arm3-train.tfrecord-00000-of-00001 record 0", "step 0")
    written(tmp_path, (2, 3), (0, 0, "wrist", image))
    refuses(tmp_path, *place, WRIST, "expected an 8-bit RGB JPEG or PNG, found", found)


def test_a_header_is_read_in_every_step(tmp_path):
    written(tmp_path, (2, 3), (1, 2, "wrist", encoded("L", "JPEG")))
    refuses(tmp_path, "split train episode 1", "record 1", "step 2", WRIST, "1 channels")


def test_images_of_several_sizes_and_kinds(tmp_path):
    """Headers that differ are read one by one; those that are alike need it once."""
    sizes = [(24, 16), (24, 16), (32, 8), (24, 16), (40, 20), (8, 48)]
    kinds = ("JPEG", "PNG", "JPEG", "JPEG", "JPEG", "PNG")
    images = [encoded("RGB", kind, size=size) for kind, size in zip(kinds, sizes, strict=True)]
    places = [(i // 3, i % 3, "base", image) for i, image in enumerate(images)]
    index = build(written(tmp_path, (3, 3), *places))
    assert index.image_sizes[BASE] == {"min": [8, 8], "max": [48, 40]}
    assert index.image_sizes[WRIST] == {"min": [16, 24], "max": [16, 24]}
    assert [index.observation(frame)["images"]["base"].shape[1::-1] for frame in range(6)] == sizes


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_without_its_end(tmp_path, kind):
    """It is found wherever it is; an image that decodes all the same is not refused."""
    written(tmp_path / "cut", (3, 4), (1, 2, "base", encoded("RGB", kind)[:-20]))
    refuses(tmp_path / "cut", "split train episode 1", "record 1", "step 2", BASE, "do not decode")
    written(tmp_path / "more", (3, 4), (1, 2, "base", encoded("RGB", kind) + b"and more"))
    assert build(tmp_path / "more").observation(5)["images"]["base"].shape


def test_an_image_that_is_broken_inside(tmp_path):
    """A sampled image is decoded when the index is built, and all of them with decode_all.

    Every image is decoded when it is drawn.
    """
    folders = [
        written(tmp_path / str(step), (3,), (0, step, "base", broken_jpeg())) for step in (0, 1)
    ]
    refuses(folders[0], "split train episode 0", "record 0", "step 0", BASE, "do not decode")
    place = ("record 0", "step 1", BASE, "do not decode")
    says(lambda: build(folders[1], decode_all=True), "split train episode 0", *place)
    index = build(folders[1])
    says(lambda: index.observation(1), *place)
    # the index is there, but was not built with all images decoded
    says(lambda: build(folders[1], decode_all=True), str(index.path), "delete it")


def test_a_bad_image_in_training_is_left_out_with_its_episode_if_that_is_allowed(tmp_path, caplog):
    bad = [(episode, 2, "base", broken_jpeg()) for episode in (1, 2)]
    written(tmp_path, (3, 3, 3, 3), *bad, per_shard=4)
    row = dataclasses.replace(ROW, held_out=0.0)
    # frame 5 is step 2 of episode 1; that of episode 2 is bad too, that of episode 3 is not
    for allowed in (0, 1):
        index = build(tmp_path, row, skip_bad_episodes=allowed)
        says(lambda index=index: index.readable(5), "record ", "step 2", "do not decode")
    for _ in range(2):  # as a run that is resumed does
        caplog.clear()
        index = build(tmp_path, row, skip_bad_episodes=2)
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


def test_a_dataset_of_bad_images_alone(tmp_path):
    """Each frame's substitute is bad too, also if more episodes may be left out than there are."""
    index = build(written(tmp_path, (3,), (0, 2, "base", broken_jpeg())), skip_bad_episodes=5)
    says(lambda: index.readable(2), "record 0", "step 2", BASE, "do not decode")


def test_an_instruction_of_what_are_no_characters(tmp_path):
    codes = [  # the last is half of a pair
        (episode, step, "language_instruction", np.array([65, code, 0], np.int32))
        for episode, code in enumerate((66, 0xD800))
        for step in range(2)
    ]
    steps = {**REACH_STEPS, "language_instruction": ArrayFeature((3,), np.int32)}
    written(tmp_path, (2, 2), *codes, steps=steps)
    language = Language(("steps/language_instruction",), "code points")
    place = ("episode 1", "language_instruction", "Unicode code points", "[65, 55296]")
    refuses(tmp_path, *place, row=dataclasses.replace(ROW, language=language))


@pytest.mark.parametrize(("field", "value"), [("state", np.nan), ("action", np.inf)])
def test_a_number_that_is_not_finite(tmp_path, field, value):
    written(tmp_path, (2, 3), (1, 1, field, {2: value}))
    place = ("episode 1", "record 1", "step 1", field, "dimension 2")
    refuses(tmp_path, *place, "expected a finite number", f"found {value}")


def test_a_quaternion_that_is_not_of_unit_length(tmp_path):
    features = {**REACH_STEPS["observation"], "pose": ArrayFeature((7,), np.float32)}
    pose = np.array([7, 8, 9, 0, 0, 0.6, 0.8], np.float32)
    poses = [(e, s, "pose", pose.copy()) for e, length in enumerate((2, 3)) for s in range(length)]
    fields = {**ROW.fields, POSE: RawField((7,), "float32", quaternions=(3,))}
    row = dataclasses.replace(ROW, fields=fields)
    for name, last in (("rounded", 0.8004), ("wrong", 0.9)):
        changed = (1, 2, "pose", {6: last})
        written(
            tmp_path / name, (2, 3), *poses, changed, steps={**REACH_STEPS, "observation": features}
        )
    assert build(tmp_path / "rounded", row).steps == 5
    place = ("episode 1", "record 1", "step 2", POSE, "dimensions 3 to 6")
    refuses(tmp_path / "wrong", *place, "expected", "unit length", "found length 1.08167", row=row)


GRIPPER = ActionDim("gripper", "1", "absolute", low=0.0, high=1.0)


@pytest.mark.parametrize(
    ("dim", "right", "wrong", "expected"),
    [
        (GRIPPER, 1.00005, 1.01, "at least 0 and at most 1"),
        (GRIPPER, -0.00005, -0.01, "at least 0 and at most 1"),
        (
            ActionDim("grip", "1", "absolute", one_means="open"),
            1.0,
            -1.0,
            "at least 0 and at most 1",
        ),
        (ActionDim("height", "m", "absolute", low=0.0), 9.9, -0.1, "at least 0 and at most 10 m"),
        (ActionDim("force", "N", "absolute", low=0.0), 1e9, -1.0, "at least 0 N"),
        (ActionDim("dx", "m", "relative"), -1.0, -1.1, "at most 1 m"),
        (ActionDim("x", "m", "absolute"), 10.0, 11.0, "at most 10 m"),
        (ActionDim("dyaw", "rad", "relative"), np.pi, 180.0, "at most 3.14159 rad"),
        (ActionDim("joint", "rad", "absolute"), 12.0, 90.0, "at most 12.5664 rad"),
        (ActionDim("vx", "m/s", "relative"), 5.0, -6.0, "at most 5 m/s"),
        (ActionDim("vyaw", "rad/s", "relative"), 10.0, 11.0, "at most 10 rad/s"),
        (StateDim("joint", "rad"), 12.0, 57.3, "at most 12.5664 rad"),
        (StateDim("x", "m"), 9.0, 300.0, "at most 10 m"),
        (StateDim("gripper_width", "m"), 0.08, 8.0, "at most 0.5 m"),
        (StateDim("finger_1", "m"), -0.04, -40.0, "at most 0.5 m"),
        (StateDim("speed", "m/s"), 4.0, 100.0, "at most 5 m/s"),
        (StateDim("pad", "1"), 1e9, 1e38, "at most 1e+12"),
    ],
)
def test_one_number_out_of_its_range(tmp_path, dim, right, wrong, expected):
    """It is found in one frame of many, and passes where a robot's record declares it."""
    part, kind = ("action", "actions") if isinstance(dim, ActionDim) else ("state", "state")

    def row(last):
        free = {"state": StateDim("free", "1"), "actions": ActionDim("free", "1", "absolute")}
        vectors = {name: (one,) * 3 for name, one in free.items()}
        return robot_row(**vectors | {kind: (free[kind], free[kind], last)})

    for name, value in (("right", right), ("wrong", wrong)):
        zeros = [(1, step, part, np.zeros(3, np.float32)) for step in range(30)]
        written(tmp_path / name, (2, 30), *zeros, (1, 17, part, {0: 1e6, 2: value}))
    assert build(tmp_path / "right", row(dim)).steps == 32
    place = ("episode 1", "record 1", "step 17", f"{part} dimension 2 ({dim.name})")
    refuses(tmp_path / "wrong", *place, expected, f"found {wrong:g}", row=row(dim))
    if dim.low is None and (isinstance(dim, StateDim) or dim.ends is None):
        declared = dataclasses.replace(dim, low=-1e39, high=1e39)
        assert build(tmp_path / "wrong", row(declared)).steps == 32


def test_a_state_out_of_its_range(tmp_path):
    """A state is refused if its step may be drawn; a rule may drop a step for such a state."""
    bounded = dataclasses.replace(ROBOT.state[1], low=-1.0, high=1.0)
    row = robot_row(state=(ROBOT.state[0], bounded, ROBOT.state[2]))
    write_reach(tmp_path)
    place = ("episode 0", "step 2", "state dimension 1", bounded.name)
    refuses(tmp_path, *place, "at least -1 and at most 1 rad", "found 2", row=row)
    assert build(tmp_path, dataclasses.replace(row, standardise=nothing_kept)).steps == 12


def nothing_kept(columns):
    return as_recorded(columns)._replace(
        keep=np.zeros(len(columns["steps/action"]), bool), success=False
    )


def test_an_episode_without_steps(tmp_path):
    write_reach(tmp_path, episodes=[*reach_episodes((2,)), {"steps": []}])
    refuses(tmp_path, "split train episode 1", "record 1", "at least one step", "found none")


def test_features_unlike_the_rows(tmp_path):
    four = {**REACH_STEPS, "action": ArrayFeature((4,), np.float32)}
    written(tmp_path / "four", (1,), (0, 0, "action", np.zeros(4, np.float32)), steps=four)
    refuses(
        tmp_path / "four", "field steps/action", "expected float32[3]", "found Tensor float32[4]"
    )

    missing = {name: feature for name, feature in REACH_STEPS.items() if name != "action"}
    (episode,) = reach_episodes((1,))
    del episode["steps"][0]["action"]
    write_reach(tmp_path / "missing", steps=missing, episodes=[episode])
    refuses(tmp_path / "missing", "expected field steps/action", "found steps/language_instruction")

    text = {**ROW.cameras, "base": CameraField("steps/language_instruction")}
    write_reach(tmp_path / "text")
    place = ("field steps/language_instruction", "a uint8 RGB image", "found Text string[]")
    refuses(tmp_path / "text", *place, row=dataclasses.replace(ROW, cameras=text))


def test_dimensions_and_cameras_unlike_the_embodiments(tmp_path):
    write_reach(tmp_path)
    place = ("record 0", "action", "3 steps of 2 dimensions", "found [3, 3]")
    refuses(tmp_path, *place, row=robot_row(actions=ROBOT.actions[:2]))
    cameras = {**ROW.cameras, "top": CameraField("steps/observation/top")}
    place = ("row reach_arm3", "cameras ['base', 'wrist']", "found ['base', 'top', 'wrist']")
    says(lambda: dataclasses.replace(ROW, cameras=cameras), *place)


def test_files_that_are_missing_or_wrong(tmp_path):
    refuses(tmp_path, "directory", str(tmp_path / "reach_arm3"), "found: No such file or directory")
    directory = write_reach(tmp_path)
    directory.rename(directory.with_name("0.9.0"))
    refuses(tmp_path, "expected version 1.0.0", "found 0.9.0")
    directory.with_name("0.9.0").rename(directory)

    shard = next(shard_files(directory))
    whole = shard.read_bytes()
    shard.unlink()
    refuses(tmp_path, "split train", f"shard file {shard}", "found none")
    shard.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    refuses(tmp_path, f"{shard}: record ", "at byte ", "payload: expected checksum", "found")
    shard.write_bytes(whole)

    info, features = (directory / name for name in ("dataset_info.json", "features.json"))
    declared = json.loads(info.read_text())
    declared["splits"][0]["shardLengths"] = ["1", "2"]
    for file, content, said in (
        (features, '{"pythonClassName": 3}', "found: Failed to parse pythonClassName field"),
        (info, json.dumps(declared), f"{shard}: expected 1 records as dataset_info.json says, found 2"),
        (info, "{", f"expected JSON in {info}, found: Expecting property name"),
        (info, "{}", "expected metadata that TFDS can open"),
        (info, None, f"{info}, found: No such file"),
    ):  # fmt: skip
        before = file.read_text()
        file.unlink() if content is None else file.write_text(content)
        refuses(tmp_path, said)
        file.write_text(before)
    assert build(tmp_path).steps == 12


def test_a_dataset_folder_that_cannot_be_written_to(tmp_path):
    directory = write_reach(tmp_path)
    (directory / "pi0_index").write_text("in the way")
    says(lambda: build(tmp_path), f"{directory}/pi0_index", "File exists", "index_dir")
    assert build(tmp_path, index_dir=tmp_path / "indices").steps == 12


def test_a_shard_that_shrank_after_it_was_indexed(tmp_path):
    directory = write_reach(tmp_path)
    index = build(tmp_path)
    next(shard_files(directory)).write_bytes(b"")
    place = ("expected ", " bytes at byte ", "found 0", "has changed since it was indexed")
    says(lambda: index.observation(0), *place)


def test_an_unknown_dataset():
    says(lambda: find_row("nonesuch"), "'nonesuch'", "expected", "bridge_dataset", "reach_arm3")
    says(lambda: find_row("my_robt", {"my_robot": {}}), "'my_robt'", "did you mean my_robot?")


def test_datasets_of_other_formats_are_named(tmp_path):
    lab = tmp_path / "lab"
    (lab / "meta").mkdir(parents=True)
    (lab / "meta" / "info.json").write_text("{}")
    (tmp_path / "reach_arm3").mkdir()
    (tmp_path / "reach_arm3" / "episode_0.hdf5").write_bytes(b"")
    directory = write_reach(tmp_path / "data")
    says(lambda: datasets_in(lab), f"{lab} is a LeRobot dataset")
    says(lambda: build(lab), f"dataset reach_arm3: {lab} is a LeRobot dataset")
    says(lambda: build(tmp_path), "reach_arm3 holds HDF5 files", "episode_0.hdf5", "expected RLDS")
    says(lambda: datasets_in(directory), f"{directory} is one version of an RLDS dataset")


@pytest.mark.parametrize(
    ("instruction", "changes", "cause"),
    [
        ("", {}, "have no instruction (draw them with config.keep_empty_language"),
        ("go", {"standardise": nothing_kept}, "are marked as failed"),
        ("go", {"held_out": 0.99}, "all of its 2 episodes are held out; lower the row's held_out"),
    ],
)
def test_why_there_is_no_frame_to_train_on(tmp_path, instruction, changes, cause):
    said = [(e, step, "language_instruction", instruction) for e in (0, 1) for step in range(3)]
    index = build(written(tmp_path, (3, 3), *said), dataclasses.replace(ROW, **changes))
    says(
        lambda: Mixture([index], {"reach_arm3": 1.0}, split="train", horizon=2, seed=0),
        "split train, found none",
        cause,
    )


def test_a_folder_without_known_datasets(tmp_path):
    (tmp_path / "my_robot").mkdir()
    says(lambda: datasets_in(tmp_path), "known datasets", "found my_robot", "--config")
    says(lambda: datasets_in(tmp_path / "none"), "none: expected a folder", "found none")
