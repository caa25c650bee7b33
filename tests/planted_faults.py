"""Plants faults in a tiny dataset, one at a time: is each refused, told, or silent?

python -m tests.planted_faults

A fault is refused if the index is not built, or not opened, with one line of InputError. It is told
if launch.index prints a line that it does not print of the sound dataset. A crash is any other
exception. If a fault is silent although a file could show it, the fault is ours.
"""

import copy
import dataclasses
import io
import json
import shutil
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from absl import flags
from PIL import Image

from pi0_jax.data.index import build_or_open
from pi0_jax.data.records.tfrecord import masked_crc
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Rule, Standardised
from pi0_jax.data.statistics import index_statistics, remarkable_dimensions
from pi0_jax.data.write import ArrayFeature, ImageFeature, TextFeature, write_rlds
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError
from pi0_jax.preprocess import Robot
from pi0_jax.report.cards import summary

EPISODES, LENGTH, SIZE = 5, 12, 32
STATE, ACTION, PACKED, COUNT = "steps/observation/state", "steps/action", "steps/packed", "steps/count"  # fmt: skip
FRONT, HAND = "steps/observation/front", "steps/observation/hand"
TEXT, FIRST, LAST, TERMINAL = "steps/text", "steps/is_first", "steps/is_last", "steps/is_terminal"
SUCCESS = "success"
X, ROLL, QX, JOINT, PAD, GRIPPER = 0, 1, 2, 6, 7, 8  # of the state
DX, DROLL, TARGET, SPEED, TURN, OPEN = range(6)  # of the action

EVERY, FEW, ONE = slice(None), slice(3, 6), slice(2, 3)
Values = np.ndarray | list[bytes] | None
Record = dict[str, Values]  # feature -> floats, int64 or bytes, of all steps one after the other


def recorded(columns: Columns) -> Standardised:
    """Takes the columns as recorded, with a number that is stored compressed."""
    state = columns[STATE].copy()
    state[:, PAD] = [np.frombuffer(zlib.decompress(b), "<f4").reshape(()) for b in columns[PACKED]]
    keep = np.full(len(state), bool(columns[SUCCESS]))
    return Standardised(state, columns[ACTION], keep, len(state), bool(columns[SUCCESS]))


ROBOT = Embodiment(
    "planted",
    "an arm that only tests know",
    {"base_0_rgb": "front", "left_wrist_0_rgb": "hand"},
    (
        StateDim("x", "m"),
        StateDim("roll", "rad"),
        *(StateDim(f"q{part}", "1") for part in "xyzw"),
        StateDim("joint", "rad"),
        StateDim("pad", "1"),
        StateDim("gripper", "1", low=0.0, high=1.0, one_means="open"),
    ),
    (
        ActionDim("dx", "m", "relative"),
        ActionDim("droll", "rad", "relative"),
        ActionDim("joint", "rad", "absolute"),
        ActionDim("vx", "m/s", "relative"),
        ActionDim("vroll", "rad/s", "relative"),
        ActionDim("gripper", "1", "absolute", low=0.0, high=1.0, one_means="open"),
    ),
    control_hz=5.0,
    execute_steps=4,
)
ROW = Dataset(
    name="planted",
    tfds_name="planted",
    versions=("1.0.0",),
    embodiment=ROBOT,
    cameras={"front": CameraField(FRONT), "hand": CameraField(HAND)},
    fields={
        STATE: RawField((9,), "float32"),
        ACTION: RawField((6,), "float32"),
        PACKED: RawField((), "string"),
        COUNT: RawField((), "int32"),
        SUCCESS: RawField((), "bool"),
    },
    language=Language((TEXT,)),
    standardise=recorded,
    held_out=0.2,
)
STEP = {
    "observation": {
        "front": ImageFeature(SIZE, SIZE),
        "hand": ImageFeature(SIZE, SIZE),
        "state": ArrayFeature((9,), np.float32),
    },
    "action": ArrayFeature((6,), np.float32),
    "packed": TextFeature(),
    "count": ArrayFeature((), np.int32),
    "text": TextFeature(),
    **{name: ArrayFeature((), np.bool_) for name in ("is_first", "is_last", "is_terminal")},
}


def picture(seed: int, kind: str = "JPEG", mode: str = "RGB", size: int = SIZE) -> bytes:
    """Returns an encoded image of blurred noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((size, size)).convert(mode).save(file, kind, quality=95)
    return file.getvalue()


def flat(level: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (level,) * 3).save(file, kind)
    return file.getvalue()


def sound(episode: int) -> Record:
    """Returns an episode with nothing wrong.

    It moves, grips at step 4 and lets go at step 8.
    """
    rng, steps = np.random.default_rng(episode), np.arange(LENGTH)
    command = np.where((steps >= 4) & (steps < 8), 0.0, 1.0)
    grip = np.concatenate([command[:1], command[:-1]])
    angle = 0.05 * steps + 0.1 * episode
    state = np.column_stack(
        [0.3 + 0.01 * steps + 0.02 * episode, angle, np.sin(angle / 2)[:, None] * [2 / 3, 1 / 3, 2 / 3],
         np.cos(angle / 2), 0.5 + 0.03 * steps, np.zeros(LENGTH), grip]
    )  # fmt: skip
    action = np.column_stack(
        [rng.normal(0.01, 0.002, LENGTH), rng.normal(0.05, 0.01, LENGTH), 0.53 + 0.03 * steps,
         rng.normal(0.05, 0.01, (LENGTH, 2)), command]
    )  # fmt: skip
    return {
        STATE: state.ravel().astype(np.float32),
        ACTION: action.ravel().astype(np.float32),
        PACKED: [
            zlib.compress(np.float32(0.1 + 0.01 * i + 0.02 * episode).tobytes()) for i in steps
        ],
        COUNT: steps + 3,
        FRONT: [picture(100 * episode + i) for i in range(LENGTH)],
        HAND: [picture(100 * episode + i + 50) for i in range(LENGTH)],
        TEXT: [f"pick up block {episode}".encode()] * LENGTH,
        FIRST: (steps == 0).astype(np.int64),
        LAST: (steps == LENGTH - 1).astype(np.int64),
        TERMINAL: (steps == LENGTH - 1).astype(np.int64),
        SUCCESS: np.array([1]),
    }


def write_sound(data_dir: Path) -> Path:
    """Writes the dataset's folder, whole, as TFDS opens it."""
    blank = {"front": flat(0), "hand": flat(0), "state": np.zeros(9, np.float32)}
    step = {"observation": blank, "action": np.zeros(6, np.float32), "packed": "", "count": 0}
    step |= {"text": "", "is_first": True, "is_last": True, "is_terminal": True}
    folder = write_rlds(
        data_dir,
        "planted",
        "1.0.0",
        steps=STEP,
        metadata={},
        episode={"success": ArrayFeature((), np.bool_)},
        splits={"train": [{"steps": [step], "success": True}] * EPISODES},
    )
    write_records(shard_of(folder), [sound(episode) for episode in range(EPISODES)])
    return folder


def shard_of(folder: Path) -> Path:
    return next(folder.glob("*.tfrecord-*"))


def example(record: Record) -> bytes:
    import tensorflow as tf

    def feature(values: Values) -> Any:
        if values is None:
            return tf.train.Feature()
        if isinstance(values, list):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        if values.dtype.kind == "f":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values.ravel()))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values.ravel()))

    features = tf.train.Features(feature={name: feature(v) for name, v in record.items()})
    return tf.train.Example(features=features).SerializeToString(deterministic=True)


def framed(payload: bytes) -> bytes:
    parts = (struct.pack("<Q", len(payload)), payload)
    return b"".join(part + struct.pack("<I", masked_crc(part)) for part in parts)


def write_records(shard: Path, records: list[Record]) -> None:
    shard.write_bytes(b"".join(framed(example(record)) for record in records))


class Fault(NamedTuple):
    name: str
    # changes the folder's files, or the records to be written
    plant: Callable[[Path, list[Record]], None]
    row: Dataset = ROW
    unknowable: str = ""  # why the files cannot show it


def all_faults() -> list[Fault]:
    kinds = (_numbers, _fields, _images, _texts, _episodes, _files, _grippers, _unknowable)
    return [fault for kind in kinds for fault in kind()]


def _changed(
    change: Callable[[Any], Any],
    path: str,
    place: int | slice,
    steps: slice = slice(5, 6),
    episodes: slice = slice(1, 2),
):
    def plant(folder: Path, records: list[Record]) -> None:
        for record in records[episodes]:
            values = record[path].reshape(LENGTH, -1)
            values[steps, place] = change(values[steps, place])

    return plant


def _at(path: str, place: int | slice, value: float, *where: slice):
    return _changed(lambda values: value, path, place, *where)


def _scaled(path: str, place: int, factor: float, steps: slice = EVERY, episodes: slice = EVERY):
    return _changed(lambda values: values * factor, path, place, steps, episodes)


def _set(path: str, make: Callable[[Any], Any], episodes: slice = slice(1, 2)):
    def plant(folder: Path, records: list[Record]) -> None:
        for record in records[episodes]:
            record[path] = make(record[path])

    return plant


def _numbers() -> Iterator[Fault]:
    degrees = 180 / np.pi

    def padded(value: float):
        return _set(PACKED, lambda v: [_packed(value), *v[1:]])

    for what, path, place, factor in (("state", STATE, X, 1000), ("action", ACTION, DX, 3000)):
        yield Fault(f"{what} NaN", _at(path, place, np.nan))
        yield Fault(f"{what} infinity", _at(path, place, -np.inf))
        yield Fault(f"{what} a single 1e38", _at(path, place, 1e38))
        yield Fault(f"{what} mm for m", _scaled(path, place, factor))
        yield Fault(f"{what} mm for m in a few frames", _scaled(path, place, factor, FEW, ONE))
    joint = "state joint in degrees"
    yield Fault(joint, _scaled(STATE, JOINT, degrees))
    yield Fault(f"{joint} in a few frames", _scaled(STATE, JOINT, degrees, FEW, ONE))
    yield Fault("state roll in degrees", _scaled(STATE, ROLL, degrees))
    joint = "action joint in degrees"
    yield Fault(joint, _scaled(ACTION, TARGET, degrees))
    yield Fault(f"{joint} in one frame", _scaled(ACTION, TARGET, degrees, slice(4, 5)))
    yield Fault("action turn in degrees", _at(ACTION, DROLL, 5.0))
    yield Fault("action velocity in mm/s", _scaled(ACTION, SPEED, 1000))
    yield Fault("action turning speed in degrees/s", _at(ACTION, TURN, 30.0))
    yield Fault("state without unit 1e38", padded(1e38))
    yield Fault("state without unit 1e6 once", padded(1e6))
    yield Fault("state without unit infinite", padded(np.inf))
    yield Fault("gripper state above 1", _at(STATE, GRIPPER, 1.5))
    yield Fault("gripper state in percent", _scaled(STATE, GRIPPER, 100))
    yield Fault("gripper action of -1", _at(ACTION, OPEN, -1.0))
    yield Fault("gripper action in percent", _scaled(ACTION, OPEN, 100))
    yield Fault("quaternion of length 0", _at(STATE, QX + 3, 0.0, slice(0, 1), slice(0, 1)))
    yield Fault("quaternion not normalised", _scaled(STATE, QX + 3, 1.1))
    yield Fault("quaternion of zeros in one frame", _at(STATE, slice(QX, QX + 4), 0.0))
    width = _gripper_row(StateDim("gripper_width", "m", one_means="open"))
    yield Fault("gripper width in cm", _scaled(STATE, GRIPPER, 8), width)
    still = _set(STATE, lambda v: np.tile(v.reshape(LENGTH, -1)[0], LENGTH), EVERY)
    yield Fault("state that never changes", still)
    yield Fault("gripper stuck", _at(STATE, GRIPPER, 1.0, EVERY, EVERY))
    yield Fault("gripper never commanded", _at(ACTION, OPEN, 1.0, EVERY, EVERY))
    yield Fault("state dimension constant", _at(STATE, JOINT, 0.5, EVERY, EVERY))
    yield Fault("action dimension constant", _at(ACTION, SPEED, 0.5, EVERY, EVERY))
    large = _set(ACTION, lambda v: v.astype(np.int64) + (1 << 24) + 1)
    yield Fault("int64 beyond float32 for the action", large)


def _gripper_row(dim: StateDim) -> Dataset:
    """Returns the row of a robot whose gripper's state is this dimension."""
    robot = dataclasses.replace(ROBOT, state=(*ROBOT.state[:-1], dim))
    return dataclasses.replace(ROW, embodiment=robot)


def _packed(value: float) -> bytes:
    return zlib.compress(np.float32(value).tobytes())


def _fields() -> Iterator[Fault]:
    yield Fault("floats in an int field", _set(COUNT, lambda v: v + 0.5))
    yield Fault("whole floats in an int field", _set(COUNT, lambda v: v.astype(float)))
    yield Fault("int64 in a float field", _set(STATE, lambda v: np.zeros(len(v), np.int64)))
    yield Fault("int64 beyond int32", _set(COUNT, lambda v: v + (1 << 40)))
    yield Fault("bytes in a float field", _set(ACTION, lambda v: [v.tobytes()]))
    yield Fault("numbers in a bytes field", _set(PACKED, lambda v: np.zeros(LENGTH)))
    yield Fault("numbers for images", _set(FRONT, lambda v: np.zeros(LENGTH)))
    yield Fault("numbers for text", _set(TEXT, lambda v: np.zeros(LENGTH)))
    yield Fault("2 for a bool", _set(SUCCESS, lambda v: v + 1))
    yield Fault("bool field of two values", _set(SUCCESS, lambda v: np.array([1, 1])))
    for path in (STATE, ACTION, PACKED, FRONT, TEXT, SUCCESS):
        yield Fault(f"{path} missing", lambda folder, records, path=path: records[1].pop(path))
    for path in (STATE, ACTION, PACKED, COUNT, FRONT, HAND, TEXT):
        yield Fault(f"{path} without values", _set(path, lambda v: None))
        yield Fault(f"{path} of one step less", _set(path, lambda v: v[: -len(v) // LENGTH]))
    yield Fault("state of one number less", _set(STATE, lambda v: v[:-1]))
    yield Fault("state of one dimension more", _set(STATE, lambda v: np.zeros(10 * LENGTH)))
    yield Fault("compressed field not compressed", _set(PACKED, lambda v: [b"1234", *v[1:]]))
    yield Fault("compressed field cut", _set(PACKED, lambda v: [*v[:4], v[4][:-3], *v[5:]]))
    yield Fault("compressed field with a flipped bit", _set(PACKED, lambda v: [*v[:-1], bytes([*v[-1][:-1], v[-1][-1] ^ 1])]))  # fmt: skip
    yield Fault("compressed field empty", _set(PACKED, lambda v: [b"", *v[1:]]))
    two = _set(PACKED, lambda v: [*v[:-1], zlib.compress(bytes(8))])
    yield Fault("compressed field of two numbers", two)


def _images() -> Iterator[Fault]:
    def one(make: Callable[[bytes], bytes], step: int = 7, path: str = FRONT):
        return _set(path, lambda v: [*v[:step], make(v[step]), *v[step + 1 :]], slice(2, 3))

    yield Fault("JPEG without its end", one(lambda image: image[:-2]))
    yield Fault("JPEG cut to a half", one(lambda image: image[: len(image) // 2]))
    yield Fault("JPEG cut in its header", one(lambda image: image[:40]))
    yield Fault("PNG without its end", one(lambda image: picture(1, "PNG")[:-12]))
    yield Fault("PNG cut to a half", one(lambda image: picture(1, "PNG")[:600]))
    yield Fault("image of no bytes", one(lambda image: b""))
    yield Fault("image of zeros", one(lambda image: bytes(len(image))))
    yield Fault("text for an image", one(lambda image: b"<html>404</html>"))
    yield Fault("greyscale JPEG", one(lambda image: picture(1, mode="L")))
    yield Fault("CMYK JPEG", one(lambda image: picture(1, mode="CMYK")))
    yield Fault("PNG with alpha", one(lambda image: picture(1, "PNG", "RGBA")))
    yield Fault("palette PNG", one(lambda image: picture(1, "PNG", "P")))
    yield Fault("16 bit PNG", one(lambda image: picture(1, "PNG", "I;16")))
    yield Fault("GIF", one(lambda image: picture(1, "GIF")))
    yield Fault("WebP", one(lambda image: picture(1, "WEBP")))
    yield Fault("one image of another size", one(lambda image: picture(1, size=48)))
    larger = _set(FRONT, lambda v: [picture(i, size=48) for i in range(LENGTH)], EVERY)
    yield Fault("all images of another size than declared", larger)
    yield Fault("black image once", one(lambda image: flat(0)))
    yield Fault("black camera", _set(HAND, lambda v: [flat(0)] * LENGTH, EVERY))
    yield Fault("black camera in one episode", _set(HAND, lambda v: [flat(0)] * LENGTH))
    yield Fault("black camera, PNG", _set(HAND, lambda v: [flat(0, "PNG")] * LENGTH))
    yield Fault("white camera", _set(FRONT, lambda v: [flat(255)] * LENGTH))
    yield Fault("frozen camera", _set(FRONT, lambda v: [v[0]] * LENGTH))
    frozen = _set(FRONT, lambda v: [*v[:6], *[v[5]] * (LENGTH - 6)])
    yield Fault("camera frozen for a while", frozen)
    yield Fault("image repeated once", _set(HAND, lambda v: [*v[:4], v[3], *v[5:]]))
    yield Fault("JPEG to be turned (EXIF)", one(lambda image: _turned()))


def _turned() -> bytes:
    file = io.BytesIO()
    image = Image.open(io.BytesIO(picture(1)))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def _texts() -> Iterator[Fault]:
    for name, text in (
        ("None", b"None"), ("nan", b"nan"), ("null", b"NULL"), ("n/a", b"N/A"), ("b'pick'", b"b'pick'"), ("a list", b"['pick']"),
        ("NUL bytes", b"pick\0\0\0"), ("a control character", b"pick\x1b[0m"), ("1 MB", b"pick " * 200_000), ("digits", b"12345"),
        ("a replacement sign", "p\ufffdck".encode()), ("a line break", b"pick\nplace"), ("quotes", b'"pick"'), ("markup", b"<pad>"),
    ):  # fmt: skip
        yield Fault(f"instruction {name}", _set(TEXT, lambda v, text=text: [text] * LENGTH))
    yield Fault("instruction no UTF-8", _set(TEXT, lambda v: [b"pick \xff\xfe"] * LENGTH))
    yield Fault("instruction Latin-1", _set(TEXT, lambda v: ["für".encode("latin-1")] * LENGTH))
    yield Fault("instruction empty in one episode", _set(TEXT, lambda v: [b""] * LENGTH))
    yield Fault("instruction of blanks", _set(TEXT, lambda v: [b"  "] * LENGTH))
    yield Fault("no instruction anywhere", _set(TEXT, lambda v: [b""] * LENGTH, EVERY))
    yield Fault("one instruction for all", _set(TEXT, lambda v: [b"pick"] * LENGTH, EVERY))


def _episodes() -> Iterator[Fault]:
    def every_field(change: Callable[..., Any]):
        """Changes all fields of the steps of one episode; the next one's come with them."""

        def plant(folder: Path, records: list[Record]) -> None:
            mine, other = records[1], records[2]
            mine |= {name: change(mine[name], other[name]) for name in mine if name != SUCCESS}

        return plant

    def joined(mine: Any, other: Any) -> Any:
        return mine + other if isinstance(mine, list) else np.concatenate([mine, other])

    def marks(path: str, steps: slice, value: int):
        return _changed(lambda values: value, path, 0, steps)

    yield Fault("two episodes in a record", every_field(joined))
    yield Fault("is_first in the middle", marks(FIRST, slice(6, 7), 1))
    yield Fault("is_last in the middle", marks(LAST, slice(6, 7), 1))
    yield Fault("is_terminal in the middle", marks(TERMINAL, slice(6, 7), 1))
    yield Fault("is_first nowhere", marks(FIRST, EVERY, 0))
    yield Fault("is_last nowhere", marks(LAST, EVERY, 0))
    yield Fault("is_last at several steps at the end", marks(LAST, slice(9, None), 1))
    yield Fault("is_first at every step", marks(FIRST, EVERY, 1))
    yield Fault("is_last at every step", marks(LAST, EVERY, 1))
    yield Fault("is_first of 2", marks(FIRST, slice(3, 4), 2))
    yield Fault("is_first of one step less", _set(FIRST, lambda v: v[:-1]))
    yield Fault("an episode without its end", every_field(lambda v, _: v[: len(v) // 2]))
    yield Fault("an episode without its begin", every_field(lambda v, _: v[len(v) // 2 :]))
    yield Fault("an episode without steps", every_field(lambda v, _: v[:0]))
    yield Fault("the same episode twice", lambda folder, records: records[2].update(records[1]))
    yield Fault("all episodes failed", _set(SUCCESS, lambda v: v * 0, EVERY))
    yield Fault("one episode failed", _set(SUCCESS, lambda v: v * 0))
    yield _ruled("a rule that drops every step", nothing)
    yield _ruled("a rule with states of another size", narrow)
    yield _ruled("a rule with NaN", not_finite)
    yield _ruled("a rule with large whole numbers", large)


def as_written(folder: Path, records: list[Record]) -> None:
    """Leaves the files as they are: the fault is in the row."""


def nothing(columns: Columns) -> Standardised:
    result = recorded(columns)
    return result._replace(keep=result.keep & False)


def narrow(columns: Columns) -> Standardised:
    result = recorded(columns)
    return result._replace(state=result.state[:, :-1])


def not_finite(columns: Columns) -> Standardised:
    result = recorded(columns)
    return result._replace(action=result.action * np.nan)


def large(columns: Columns) -> Standardised:
    result = recorded(columns)
    return result._replace(state=np.full(result.state.shape, (1 << 24) + 1, np.int64))


def turned_round(columns: Columns) -> Standardised:
    result = recorded(columns)
    action = result.action.copy()
    action[:, OPEN] = 1 - action[:, OPEN]
    return result._replace(action=action)


class _Bytes:
    """Plants by changing the shard's bytes after it was written."""

    def __init__(self, change: Callable[[bytearray], bytes | bytearray]) -> None:
        self.change = change

    def __call__(self, folder: Path, records: list[Record]) -> None:
        """Does nothing before the records are written."""


def _files() -> Iterator[Fault]:
    def flip(place: int):
        def change(data: bytearray) -> bytearray:
            data[place] ^= 4
            return data

        return _Bytes(change)

    yield Fault("a bit of a payload", flip(5000))
    yield Fault("a bit of a record's length", flip(1))
    yield Fault("a bit of the length's checksum", flip(9))
    yield Fault("a bit of the last checksum", flip(-2))
    yield Fault("a shard cut in a record", _Bytes(lambda data: data[:-1000]))
    yield Fault("a shard cut in a header", _Bytes(lambda data: data + b"12345"))
    yield Fault("a shard of no bytes", _Bytes(lambda data: b""))
    yield Fault("zeros at the end of a shard", _Bytes(lambda data: data + bytes(4096)))
    hole = _Bytes(lambda data: data[:3000] + bytes(2000) + data[5000:])
    yield Fault("a shard with a hole of zeros", hole)
    yield Fault("a shard that is a web page", _Bytes(lambda data: b"<html>not found</html>" * 20))
    no_example = _Bytes(lambda data: framed(b"\x01\x02\x03\x04" * 20) * EPISODES)
    yield Fault("a record that is no Example", no_example)
    yield Fault("a record less", lambda folder, records: records.pop())
    yield Fault("a record more", lambda folder, records: records.append(records[0]))
    yield Fault("a shard missing", _Bytes(lambda data: None))

    def info(change: Callable[[dict], None], name: str = "dataset_info.json"):
        def plant(folder: Path, records: list[Record]) -> None:
            record = json.loads((folder / name).read_text())
            change(record)
            (folder / name).write_text(json.dumps(record))

        return plant

    def text(name: str, content: str | None):
        def plant(folder: Path, records: list[Record]) -> None:
            (folder / name).unlink() if content is None else (folder / name).write_text(content)

        return plant

    def steps_of(record: dict) -> dict:
        steps = record["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        return steps["featuresDict"]["features"]

    for name in ("dataset_info.json", "features.json"):
        yield Fault(f"{name} missing", text(name, None))
        yield Fault(f"{name} cut", text(name, '{"a": ['))
        yield Fault(f"{name} of no bytes", text(name, ""))
        yield Fault(f"{name} a list", text(name, "[]"))
    yield Fault("dataset_info.json without splits", info(lambda r: r.pop("splits")))
    yield Fault("another file format", info(lambda r: r.update(fileFormat="riegeli")))

    def action(**changes: Any):
        return info(lambda r: steps_of(r)["action"]["tensor"].update(changes), "features.json")

    def images(record: dict) -> None:
        observed = steps_of(record)["observation"]["featuresDict"]["features"]
        observed["front"]["image"]["shape"].update(dimensions=["64", "64", "3"])

    yield Fault("the action declared of another size", action(shape={"dimensions": ["7"]}))
    yield Fault("the action declared of another dtype", action(dtype="float64"))
    yield Fault("images declared of another size", info(images, "features.json"))
    yield Fault("a field not declared", info(lambda r: steps_of(r).pop("text"), "features.json"))
    yield Fault(
        "a shard that no metadata names",
        lambda folder, records: (folder / "planted-train.tfrecord-00001-of-00002").write_bytes(b""),
    )
    yield Fault("another version", lambda folder, records: folder.rename(folder.with_name("2.0.0")))
    yield Fault("a LeRobot dataset", lambda folder, records: _lerobot(folder))
    yield Fault("a folder of HDF5 files", lambda folder, records: _other(folder, "episode_0.hdf5"))


def _other(folder: Path, name: str) -> None:
    shutil.rmtree(folder)
    (folder.parent / name).write_bytes(b"\x89HDF\r\n\x1a\n")


def _lerobot(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder.parent / "meta").mkdir()
    (folder.parent / "meta" / "info.json").write_text('{"codebase_version": "v2.1"}')
    (folder.parent / "data" / "chunk-000").mkdir(parents=True)


def _ruled(name: str, rule: Rule) -> Fault:
    """Returns the fault that a row has this rule."""
    return Fault(name, as_written, dataclasses.replace(ROW, standardise=rule))


def _grippers() -> Iterator[Fault]:
    def other(values: np.ndarray) -> np.ndarray:
        return 1 - values

    yield Fault("gripper action inverted", _changed(other, ACTION, OPEN, EVERY, EVERY))
    yield Fault("gripper state inverted", _changed(other, STATE, GRIPPER, EVERY, EVERY))
    yield _ruled("a rule that inverts the gripper", turned_round)
    closed = _gripper_row(StateDim("gripper", "1", one_means="closed"))
    yield Fault("gripper state declared the other way", as_written, closed)


def _unknowable() -> Iterator[Fault]:
    def both(folder: Path, records: list[Record]) -> None:
        for path, place in ((ACTION, OPEN), (STATE, GRIPPER)):
            _changed(lambda values: 1 - values, path, place, EVERY, EVERY)(folder, records)

    def exchanged(folder: Path, records: list[Record]) -> None:
        for record in records:
            record[FRONT], record[HAND] = record[HAND], record[FRONT]

    def images_of_another(folder: Path, records: list[Record]) -> None:
        records[1][FRONT] = records[2][FRONT]

    swap = dataclasses.replace(ROW, cameras={**ROW.cameras, "front": CameraField(FRONT, "BGR")})
    another = _set(TEXT, lambda v: [b"pick up block 3"] * LENGTH)
    late = _set(ACTION, lambda v: np.roll(v, 6), EVERY)
    for name, plant, why in (
        ("red and blue swapped", as_written, "either order is a picture; the card shows both"),
        ("gripper inverted in state and action", both, "they agree; only frames show it"),
        ("another episode's instruction", another, "any instruction may be true"),
        ("images of another episode", images_of_another, "any picture may go with any state"),
        ("state 5% too large", _scaled(STATE, X, 1.05), "as plausible as the right one"),
        ("two cameras exchanged", exchanged, "either is a picture"),
        ("actions shifted by a step", late, "a slower robot looks the same"),
    ):
        yield Fault(name, plant, swap if name == "red and blue swapped" else ROW, why)


class Result(NamedTuple):
    fault: Fault
    answer: str  # refused, told, silent, crash
    line: str


def run(faults: list[Fault], folder: Path) -> list[Result]:
    """Plants each fault in a copy of the sound dataset below `folder`."""
    original = write_sound(folder / "sound")
    records = [sound(episode) for episode in range(EPISODES)]
    # an index is written to be there after a power cut, which takes most of the time here
    with mock.patch("os.fsync"):
        return [_try(fault, original, records, folder / str(i)) for i, fault in enumerate(faults)]


def _try(fault: Fault, original: Path, records: list[Record], data_dir: Path) -> Result:
    planted = data_dir / "planted" / "1.0.0"
    shutil.copytree(original, planted, ignore=shutil.ignore_patterns("pi0_index"))
    mine = copy.deepcopy(records)
    fault.plant(planted, mine)
    if planted.exists():
        shard = shard_of(planted)
        write_records(shard, mine)
        if isinstance(fault.plant, _Bytes):
            changed = fault.plant.change(bytearray(shard.read_bytes()))
            shard.unlink() if changed is None else shard.write_bytes(changed)
    result = _answer(fault, data_dir, printed_lines(ROW, original.parents[1]))
    shutil.rmtree(data_dir)
    return result


def _answer(fault: Fault, data_dir: Path, usual: set[str]) -> Result:
    try:
        lines = printed_lines(fault.row, data_dir)
    except InputError as error:
        text = str(error)
        return Result(fault, "refused" if "\n" not in text else "crash", text)
    except BaseException as error:  # of whatever kind: it is what a user would see
        return Result(fault, "crash", f"{type(error).__name__}: {error}")
    new = sorted(lines - usual)
    return Result(fault, "told" if new else "silent", new[0] if new else "")


def printed_lines(row: Dataset, data_dir: Path) -> set[str]:
    """Returns the lines that launch.index prints of findings, and training of its dimensions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = build_or_open(row, data_dir, progress=False)
        printed = summary(opened, 0.0).splitlines()
        lines = {line for line in printed if line.startswith(("- ", "left out"))}
        if len(opened.frames("train")):
            robot = Robot(opened.embodiment, index_statistics(opened, 4, progress=False))
            lines |= set(remarkable_dimensions(row.name, robot, "quantile"))
    return {line.split("(correlation")[0] for line in lines}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        results = run(all_faults(), Path(folder))
    for result in results:
        unknowable = result.fault.unknowable
        why = (
            f"cannot be known: {unknowable}"
            if unknowable
            else result.line[-150:] or "the files show it"
        )
        print(f"{result.answer:<8} {result.fault.name:<45} {why}")
    counts = Counter(
        "silent, unknowable" if r.answer == "silent" and r.fault.unknowable else r.answer
        for r in results
    )
    print(
        f"{len(results)} kinds: {', '.join(f'{n} {answer}' for answer, n in sorted(counts.items()))}"
    )
    return 0 if set(counts) <= {"refused", "told", "silent, unknowable"} else 1


if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    sys.exit(main())
