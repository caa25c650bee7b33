"""PaliGemma's files serve as initial weights: big_vision's npz and Hugging Face's safetensors.

They fill the backbone. Everything else is fresh, and the run says so.
"""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from pi0_jax import convert
from pi0_jax.convert import paligemma, tree
from pi0_jax.errors import InputError
from pi0_jax.models.paths import unflatten
from tests.checkpoints_of_others import (
    UNEVEN,
    hugging_face,
    random_parameters,
    shapes_of,
    write_big_vision,
)

EXPERT = convert.Options(sizes={"expert_width": 16, "expert_mlp_dim": 44, "action_dim": 10}, seed=3)
HEADS = {"head_dim": 8, "image_heads": 4}


@pytest.fixture(scope="module")
def backbone():
    flat = random_parameters(UNEVEN)
    return {path: flat[path] for path in tree.BACKBONE_AXES}


@pytest.fixture
def npz(backbone, tmp_path):
    return write_big_vision(tmp_path / "pt_42.npz", backbone)


def test_an_npz_fills_the_backbone_and_the_rest_is_fresh(backbone, npz, tmp_path):
    source = convert.open(npz)
    assert source.format == "big_vision" and source.leaves.keys() == backbone.keys()
    np.testing.assert_array_equal(
        source.layer("PaliGemma/llm/layers/mlp/linear", 2),
        backbone["PaliGemma/llm/layers/mlp/linear"][2],
    )
    report = convert.run(npz, tmp_path / "out", "openpi_jax", EXPERT)
    whole = convert.open(tmp_path / "out")
    for path, array in backbone.items():
        assert whole.read(path).tobytes() == array.tobytes(), path
    fresh = whole.leaves.keys() - backbone.keys()
    (note,) = [
        note
        for note in report.notes
        if note.startswith("not in the input, freshly initialised with seed 3: ")
    ]
    assert set(note.partition(": ")[2].split(", ")) == fresh and len(fresh) == 18
    assert whole.tree().keys() == unflatten(random_parameters(UNEVEN)).keys()
    # by fan-in, as from scratch
    assert 0.1 < whole.read("PaliGemma/llm/layers/attn/q_einsum_1/w").std() * 16**0.5 < 1.1
    assert not whole.read("state_proj/bias").any()
    assert "no statistics: weights alone, to start training from" in report.notes


def test_bfloat16_in_an_npz_has_no_name_and_is_read(backbone, tmp_path):
    rounded = {path: array.astype(ml_dtypes.bfloat16) for path, array in backbone.items()}
    source = convert.open(write_big_vision(tmp_path / "pt.npz", rounded))
    for path, array in rounded.items():
        assert source.leaves[path].dtype == ml_dtypes.bfloat16
        assert source.read(path).tobytes() == array.tobytes()


@pytest.mark.parametrize("table", paligemma.HUGGING_FACE_RULES)
def test_shards_of_hugging_face_are_read_under_old_names_and_new(backbone, tmp_path, table):
    tensors = hugging_face(backbone, UNEVEN, table)
    names = sorted(tensors)
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(shards.values()):
        safetensors.numpy.save_file(
            {name: tensors[name] for name in names if shards[name] == shard}, tmp_path / shard
        )
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "config.json").write_text(
        json.dumps({"vision_config": {"num_attention_heads": 4}, "text_config": {"head_dim": 8}})
    )
    source = convert.open(tmp_path)
    assert source.format == "hugging_face"
    for path, array in backbone.items():
        assert source.read(path).tobytes() == array.tobytes(), path
    shapes = {name: leaf.shape for name, leaf in source.leaves.items()}
    assert shapes == {
        name: shape
        for name, shape in tree.expected_shapes(tree.sizes_of_config(UNEVEN)).items()
        if name in shapes
    }


def test_a_padded_embedding_is_cut_to_the_vocabulary(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(paligemma, "PUBLISHED_VOCABULARY", 66)
    tensors = hugging_face(backbone, UNEVEN)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        tensors[name] = np.concatenate([tensors[name], np.ones((6, 24), np.float32)])
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    source = convert.open(tmp_path, convert.Options(sizes=HEADS))
    embedding = "PaliGemma/llm/embedder/input_embedding"
    assert source.leaves[embedding].shape == (66, 24)
    np.testing.assert_array_equal(source.read(embedding), backbone[embedding])
    assert (
        "language_model.model.embed_tokens.weight: padded; kept 66 rows" in source.notes
        and source.differing_copies() == []
    )


def test_a_backbone_that_lacks_a_part_is_refused(backbone, tmp_path):
    left = {path: array for path, array in backbone.items() if "/llm/layers" not in path}
    missing = r"pt.npz: PaliGemma/llm/layers/attn/q_einsum/w, .* and 4 more: missing"
    with pytest.raises(InputError, match=missing):
        convert.open(write_big_vision(tmp_path / "pt.npz", left))


def test_the_fresh_tree_is_the_models(npz, tmp_path):
    convert.run(npz, tmp_path / "out", "openpi_jax", EXPERT)
    found = {path: leaf.shape for path, leaf in convert.open(tmp_path / "out").leaves.items()}
    assert found == shapes_of(UNEVEN)
