"""TFRecord framing and tf.train.Example agree with TensorFlow's own."""

import numpy as np
import pytest

from pi0_jax.data.records.example import ByteRanges, decode_varints, parse_example
from pi0_jax.data.records.tfrecord import read_records, scan_records
from pi0_jax.errors import InputError

PAYLOADS = [b"first", b"", b"x" * 3_000_000]


@pytest.fixture
def record_file(tmp_path):
    import tensorflow as tf

    path = tmp_path / "data.tfrecord-00000-of-00001"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in PAYLOADS:
            writer.write(payload)
    return path


def test_records_are_what_tensorflow_wrote_and_offsets_point_at_them(record_file):
    records = list(read_records(record_file))
    assert [r.payload for r in records] == PAYLOADS
    assert [r.number for r in records] == [0, 1, 2]
    data = record_file.read_bytes()
    assert all(data[r.offset : r.offset + len(r.payload)] == r.payload for r in records)


# The first record takes bytes 0 to 20: length 0-7, its checksum 8-11, payload 12-16, its checksum
# 17-20.
@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (2, "record 0 at byte 0: corrupted length"),
        (9, "record 0 at byte 0: corrupted length"),
        (14, "record 0 at byte 0: corrupted payload"),
        (19, "record 0 at byte 0: corrupted payload"),
        (40, "record 2 at byte 37: corrupted length"),
    ],
)
def test_a_flipped_bit_is_found_and_placed(record_file, place, problem):
    data = bytearray(record_file.read_bytes())
    data[place] ^= 1
    record_file.write_bytes(data)
    with pytest.raises(InputError, match=rf"{record_file.name}: {problem}: expected .*, found 0x"):
        list(read_records(record_file))


def test_records_after_a_damaged_payload_are_found(record_file):
    data = bytearray(record_file.read_bytes())
    data[14] ^= 1
    record_file.write_bytes(data)
    found = [
        (record.number, record.offset, bytes(record.payload), record.damage[:42])
        for record in scan_records(record_file)
    ]
    assert found == [
        (0, 12, b"fi" + bytes([b"r"[0] ^ 1]) + b"st", "record 0 at byte 0: corrupted payload: exp"),
        (1, 33, b"", ""),
        (2, 49, PAYLOADS[2], ""),
    ]


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (30, "record 1 at byte 21: truncated: expected a header of 12 bytes, found 9"),
        (18, "record 0 at byte 0: truncated: expected 21 bytes, found 18"),
        (1000, "record 2 at byte 37: truncated: expected 3000016 bytes, found 963"),
    ],
)
def test_a_truncated_file_is_refused(record_file, size, problem):
    record_file.write_bytes(record_file.read_bytes()[:size])
    with pytest.raises(InputError, match=problem):
        list(read_records(record_file))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="gone.tfrecord: expected .*, found: No such file"):
        list(read_records(tmp_path / "gone.tfrecord"))


def _example(features):
    import tensorflow as tf

    return tf.train.Example(features=tf.train.Features(feature=features))


def test_example_equals_the_protobuf_parse():
    import tensorflow as tf

    floats = np.linspace(-3, 3, 1000, dtype=np.float32)
    integers = [0, 1, 127, 128, -1, -(2**63), 2**63 - 1, 300]
    images = [b"", b"a" * 100, b"b" * 200, b"c" * 70_000]
    example = _example({
        "steps/state": tf.train.Feature(float_list=tf.train.FloatList(value=floats)),
        "steps/count": tf.train.Feature(int64_list=tf.train.Int64List(value=integers)),
        "steps/image": tf.train.Feature(bytes_list=tf.train.BytesList(value=images)),
        "steps/said": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"pick it up"] * 50)),
        "steps/empty": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b""] * 3)),
        "steps/one": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"])),
        "steps/none": tf.train.Feature(float_list=tf.train.FloatList()),
        "steps/unset": tf.train.Feature(),
        "other": tf.train.Feature(int64_list=tf.train.Int64List(value=[1])),
    })  # fmt: skip
    payload = example.SerializeToString()
    names = {name for name in example.features.feature if name.startswith("steps/")}
    found = parse_example(payload, names)

    assert set(found) == names
    np.testing.assert_array_equal(found["steps/state"], floats)
    # a view, not a copy
    assert found["steps/state"].dtype == np.float32 and not found["steps/state"].flags.owndata
    np.testing.assert_array_equal(found["steps/count"], np.array(integers, np.int64))
    ranges = found["steps/image"]
    assert isinstance(ranges, ByteRanges)
    assert [
        payload[o : o + n] for o, n in zip(ranges.offsets, ranges.lengths, strict=True)
    ] == images
    assert not ranges.equal
    for name, values in (("steps/said", [b"pick it up"] * 50), ("steps/empty", [b""] * 3)):
        said = found[name]
        assert (
            said.equal
            and [payload[o : o + n] for o, n in zip(said.offsets, said.lengths, strict=True)]
            == values
        )
    assert found["steps/none"].size == 0
    assert found["steps/unset"] is None


def test_lists_that_a_writer_did_not_pack_are_read_too():
    # field 1 as two 32-bit values: 1.0, 2.0
    two_floats = b"\x0d\x00\x00\x80\x3f" + b"\x0d\x00\x00\x00\x40"
    two_integers = b"\x08\x05" + b"\x08\xac\x02"  # field 1 as two varints: 5, 300
    features = b"".join(
        _entry(name, feature)
        for name, feature in ((b"f", b"\x12\x0a" + two_floats), (b"i", b"\x1a\x05" + two_integers))
    )
    found = parse_example(b"\x0a" + bytes([len(features)]) + features, {"f", "i"})
    np.testing.assert_array_equal(found["f"], [1.0, 2.0])
    np.testing.assert_array_equal(found["i"], [5, 300])


def _entry(name: bytes, feature: bytes) -> bytes:
    entry = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(feature)]) + feature
    return b"\x0a" + bytes([len(entry)]) + entry


def test_varints():
    np.testing.assert_array_equal(
        decode_varints(np.array([0x01, 0xAC, 0x02, 0x00], np.uint8)), [1, 300, 0]
    )
    assert decode_varints(np.empty(0, np.uint8)).shape == (0,)
    with pytest.raises(ValueError, match="ends within a number"):
        decode_varints(np.array([0x01, 0x80], np.uint8))


@pytest.mark.parametrize("payload", [b"\xff" * 40, b"\x0a\x50abc", b"\x0a\x03\x0a\x01\x0f"])
def test_what_is_no_example_is_refused(payload):
    with pytest.raises(ValueError):
        parse_example(payload, {"steps/state"})
