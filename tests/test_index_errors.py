"""What the index refuses: one line that names dataset, split, episode, file, step and field, expected and found."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from pi0_jax.data.datasets import ROWS, find_row
from pi0_jax.data.index import build_or_open
from pi0_jax.data.rows import CameraField
from pi0_jax.data.write import ArrayFeature
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
    assert not list(tmp_path.glob("*/*/pi0_index/*"))  # nothing is left


def encoded(mode, format):
    file = io.BytesIO()
    Image.new(mode, (24, 16)).save(file, format)
    return file.getvalue()


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
    ],
)
def test_an_image_that_is_not_8_bit_rgb(tmp_path, image, found):
    episodes = reach_episodes((2, 3))
    episodes[1]["steps"][2]["observation"]["wrist"] = image
    write_reach(tmp_path, episodes=episodes)
    place = r"dataset reach_arm3: split train episode 1 \(reach_arm3-train.tfrecord-00000-of-00001 record 1\): step 2"
    refuses(tmp_path, f"{place}: field steps/observation/wrist: expected an 8-bit RGB JPEG or PNG, found .*{found}")


def test_an_image_cut_short(tmp_path):
    """A sampled image is decoded when the index is built, every other one when it is drawn."""
    whole = encoded("RGB", "JPEG")
    for step, act in ((0, lambda: build(tmp_path / "0")), (1, lambda: build(tmp_path / "1").observation(1))):
        episodes = reach_episodes((3,))
        episodes[0]["steps"][step]["observation"]["base"] = whole[:-20]
        write_reach(tmp_path / str(step), episodes=episodes)
        with pytest.raises(InputError, match=f"record 0.*: step {step}: field steps/observation/base: .* do not decode"):
            act()


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


def test_an_episode_without_steps(tmp_path):
    write_reach(tmp_path, episodes=[*reach_episodes((2,)), {"steps": []}])
    refuses(tmp_path, r"split train episode 1 \(.* record 1\): expected at least one step, found none")


def test_features_unlike_the_rows(tmp_path):
    step = reach_step(0, 0)
    four = {**REACH_STEPS, "action": ArrayFeature((4,), np.float32)}
    write_reach(tmp_path / "four", steps=four, episodes=[{"steps": [{**step, "action": np.zeros(4, np.float32)}]}])
    refuses(tmp_path / "four", r"field steps/action: expected float32\[3\], found Tensor float32\[4\]")

    missing = {name: feature for name, feature in REACH_STEPS.items() if name != "action"}
    write_reach(tmp_path / "missing", steps=missing, episodes=[{"steps": [{k: v for k, v in step.items() if k != "action"}]}])
    refuses(tmp_path / "missing", "expected field steps/action, found steps/language_instruction, steps/observation/base")

    text = dataclasses.replace(ROW, cameras={**ROW.cameras, "base": CameraField("steps/language_instruction")})
    write_reach(tmp_path / "text")
    refuses(tmp_path / "text", r"field steps/language_instruction: expected a uint8 RGB image, found Text string\[\]", text)


def test_dimensions_and_cameras_unlike_the_embodiments(tmp_path):
    write_reach(tmp_path)
    robot = dataclasses.replace(ROW.embodiment, actions=ROW.embodiment.actions[:2])
    message = r"record 0\): action: expected 3 steps of 2 dimensions as embodiment reach_arm3 declares, found \[3, 3\]"
    refuses(tmp_path, message, dataclasses.replace(ROW, embodiment=robot))
    with pytest.raises(
        InputError,
        match=r"dataset row reach_arm3: expected cameras \['base', 'wrist'\].* found \['base', 'top', 'wrist'\]",
    ):
        dataclasses.replace(ROW, cameras={**ROW.cameras, "top": CameraField("steps/observation/top")})


def test_files_that_are_missing_or_wrong(tmp_path):
    refuses(tmp_path, r"dataset reach_arm3: expected a readable directory .*/reach_arm3, found: No such file or directory")
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
    with pytest.raises(InputError, match=r"cannot write an index to .*/pi0_index \(File exists\); give another index_dir"):
        build(tmp_path)
    assert build(tmp_path, index_dir=tmp_path / "indices").steps == 12


def test_a_shard_that_shrank_after_it_was_indexed(tmp_path):
    directory = write_reach(tmp_path)
    index = build(tmp_path)
    next(shard_files(directory)).write_bytes(b"")
    with pytest.raises(InputError, match="expected [0-9]+ bytes at byte [0-9]+, found 0: the file has changed since it was indexed"):
        index.observation(0)


def test_an_unknown_dataset():
    with pytest.raises(InputError, match="dataset 'bridge' is unknown; expected one of bridge_dataset, reach_arm3"):
        find_row("bridge")
