"""Episodes are serialised without TensorFlow, to the bytes that TFDS gives."""

import numpy as np
import pytest

from pi0_jax.data.write import ArrayFeature, ImageFeature, TextFeature, serialised, write_rlds
from pi0_jax.errors import InputError

STEPS = {
    "observation": {
        "base": ImageFeature(8, 12),
        "mask": ImageFeature(4, 4, "png"),
        "state": ArrayFeature((3,), np.float32),
    },
    "action": ArrayFeature((2, 2), np.float32),
    "language_instruction": TextFeature(),
    "is_first": ArrayFeature((), np.bool_),
    "count": ArrayFeature((), np.int64),
    "reward": ArrayFeature((), np.float32),
}
METADATA = {"seed": ArrayFeature((), np.int64), "task": TextFeature()}


def episode(number: int, length: int) -> dict:
    rng = np.random.default_rng(number)
    steps = [
        {
            "observation": {
                "base": rng.integers(0, 255, (8, 12, 3), dtype=np.uint8),
                "mask": rng.integers(0, 255, (4, 4, 3), dtype=np.uint8),
                "state": rng.normal(size=3).astype(np.float32),
            },
            "action": rng.normal(size=(2, 2)).astype(np.float32),
            "language_instruction": "reach the π block",
            "is_first": i == 0,
            "count": -(2**40) + i,
            "reward": 0.5 * i,
        }
        for i in range(length)
    ]
    return {"steps": steps, "episode_metadata": {"seed": 2**62 + number, "task": "reach"}}


def test_the_bytes_are_those_of_tfds(tmp_path):
    import tensorflow as tf

    episodes = [episode(0, 1), episode(1, 200)]
    folder = write_rlds(
        tmp_path, "one", "1.0.0", steps=STEPS, metadata=METADATA, splits={"train": episodes}
    )
    (shard,) = folder.glob("*.tfrecord*")
    theirs = [bytes(record.numpy()) for record in tf.data.TFRecordDataset(str(shard))]
    assert [serialised(STEPS, METADATA, one) for one in episodes] == theirs


def test_serialised_episodes_are_written_as_they_are(tmp_path):
    ours = [serialised(STEPS, METADATA, episode(i, 3)) for i in range(2)]
    about = dict(steps=STEPS, metadata=METADATA)
    one = write_rlds(tmp_path, "one", "1.0.0", **about, splits={"train": ours})
    plain = [episode(i, 3) for i in range(2)]
    two = write_rlds(tmp_path, "two", "1.0.0", **about, splits={"train": plain})
    (first,), (second,) = one.glob("*.tfrecord*"), two.glob("*.tfrecord*")
    assert first.read_bytes() == second.read_bytes()


def test_a_value_of_another_shape_is_named():
    wrong = episode(0, 2)
    wrong["steps"][1]["observation"]["state"] = np.zeros(4, np.float32)
    with pytest.raises(InputError, match=r"steps/observation/state, step 1: .*\[3\], found \[4\]"):
        serialised(STEPS, METADATA, wrong)
