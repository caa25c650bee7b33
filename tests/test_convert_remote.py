"""Checkpoints behind URLs, here in fsspec's memory:// in place of gs:// or s3://."""

import fsspec
import numpy as np
import pytest

from pi0_jax import convert
from pi0_jax.errors import InputError
from tests.checkpoints_of_others import GOLDEN, UNEVEN, random_parameters, write_big_vision


@pytest.fixture
def bucket():
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


def test_a_directory_behind_a_url_is_written_whole_and_read(bucket, tmp_path, monkeypatch):
    put = []
    memory = type(fsspec.filesystem("memory"))
    original = memory.put_file
    monkeypatch.setattr(
        memory,
        "put_file",
        lambda self, file, target, **how: put.append(target) or original(self, file, target, **how),
    )
    convert.run(GOLDEN / "openpi_toy_checkpoint", f"{bucket}/toy", "openpi_pytorch")
    # what makes it a checkpoint comes last
    assert put[-1].endswith("toy/config.json") and len(put) == 4
    theirs, ours = convert.open(f"{bucket}/toy"), convert.open(GOLDEN / "openpi_toy_checkpoint")
    assert theirs.format == "openpi_pytorch" and theirs.metadata.robots.keys() == {"toy"}
    for path in ours.leaves:
        assert theirs.read(path).tobytes() == ours.read(path).tobytes()
    with pytest.raises(InputError, match="memory://bucket/toy: exists; expected a new path"):
        convert.run(GOLDEN / "openpi_toy_checkpoint", f"{bucket}/toy", "openpi_jax")


def test_a_file_behind_a_url_is_read(bucket):
    fsspec.filesystem("memory").put_file(
        str(GOLDEN / "lerobot_toy.safetensors"), "/bucket/toy.safetensors"
    )
    source = convert.open(
        f"{bucket}/toy.safetensors", convert.Options(sizes={"head_dim": 8, "image_heads": 2})
    )
    assert source.read("state_proj/kernel").shape == (8, 16)


def test_an_npz_behind_a_url_is_read(bucket, tmp_path):
    flat = random_parameters(UNEVEN)
    file = write_big_vision(tmp_path / "pt.npz", flat)
    fsspec.filesystem("memory").put_file(str(file), "/bucket/pt.npz")
    source = convert.open(f"{bucket}/pt.npz")
    np.testing.assert_array_equal(
        source.read("PaliGemma/img/head/kernel"), flat["PaliGemma/img/head/kernel"]
    )


def test_nothing_behind_a_url_is_named(bucket):
    with pytest.raises(InputError, match="^memory://bucket/none: expected .*, found nothing$"):
        convert.open(f"{bucket}/none")
