"""Starting weights come from real files of several formats onto real meshes.

The tests check what is loaded, fresh and ignored, mistakes, and runs that start so.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from pi0_jax import policy_config
from pi0_jax.convert import tree
from pi0_jax.errors import InputError
from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import VARIANTS, Pi0Config
from pi0_jax.policy_config import model_config
from pi0_jax.train import config
from pi0_jax.train.config import RunConfig
from pi0_jax.train.loop import train
from pi0_jax.train.optimizer import make_optimizer
from pi0_jax.train.state import abstract_state, jit_init, make_model, run_mesh
from pi0_jax.train.weights import state_from_weights
from tests import training
from tests.checkpoints_of_others import (
    hugging_face,
    random_parameters,
    write_big_vision,
    write_openpi,
)
from tests.own_process import run
from tests.test_config import load
from tests.test_train import tiny_config
from tests.training import ROOT, arrays, command

# a PaliGemma has neither
EXPERT_FRESH = (
    ("PaliGemma/llm/.*_1/", "fresh"),
    ("^(state|action)_", "fresh"),
)
EMBEDDING = "PaliGemma/llm/embedder/input_embedding"


def values() -> dict:
    small = dict(variant="pico", action_dim=6, horizon=4, max_tokens=12)
    return load(ROOT / "configs" / "reach.py").to_dict() | small


def run_config(weights: object, rules: tuple = (), **changes) -> RunConfig:
    start = dict(initial_weights=str(weights), initial_rules=rules)
    return config.from_mapping(values() | start | changes)


def start(run: RunConfig):
    return state_from_weights(run, run_mesh(run, jax.devices()))


def from_scratch(run: RunConfig):
    mesh, trainable = run_mesh(run, jax.devices()), policy_config.trainable_part(run)
    create = jit_init(make_model(run, mesh), make_optimizer(run), mesh, trainable)
    return create(jax.random.key(run.seed))


def flat(tree_: object) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten(tree_).items()}


def assert_bits(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path].tobytes() != theirs[path].tobytes()] == []


@pytest.fixture(scope="module")
def pico() -> Pi0Config:
    return model_config(config.from_mapping(values()))


@pytest.fixture(scope="module")
def parameters(pico) -> dict[str, np.ndarray]:
    return random_parameters(pico)


@pytest.fixture(scope="module")
def npz(parameters, tmp_path_factory) -> Path:
    return write_big_vision(tmp_path_factory.mktemp("paligemma") / "pt_32.npz", parameters)


@pytest.fixture(scope="module")
def released(parameters, tmp_path_factory) -> Path:
    return write_openpi(tmp_path_factory.mktemp("released") / "pi0", parameters)


def test_a_paligemma_fills_the_backbone_and_the_rest_is_as_from_scratch(npz, parameters, capsys):
    run = run_config(npz, EXPERT_FRESH)
    state, scratch = start(run), from_scratch(run)
    ours, theirs = flat(state.params), flat(scratch.params)
    assert ours.keys() == theirs.keys() == parameters.keys()
    for path in ours:
        expected = parameters if path in tree.BACKBONE_AXES else theirs
        np.testing.assert_array_equal(ours[path], expected[path], err_msg=path)
    assert flat(state.ema).keys() == ours.keys()
    assert all(np.array_equal(leaf, ours[path]) for path, leaf in flat(state.ema).items())
    assert jax.tree.all(jax.tree.map(np.array_equal, state.opt_state, scratch.opt_state))
    assert int(state.step) == int(state.skipped) == 0
    lines = capsys.readouterr().out.splitlines()
    backbone = sum(parameters[path].size for path in tree.BACKBONE_AXES)
    fresh = sum(array.size for array in parameters.values()) - backbone
    for said in (f"big_vision {npz}: ", f"32 leaves ({backbone:,}", f"18 leaves ({fresh:,}"):
        assert said in lines[0]
    assert f"  loaded          16,384  {EMBEDDING} [512, 32]" in lines
    assert "  fresh              144  state_proj/kernel [6, 24]" in lines
    assert len(lines) == 1 + 32 + 18


def test_a_released_model_is_taken_whole_and_its_statistics_are_not(released, parameters, capsys):
    assert_bits(flat(start(run_config(released)).params), parameters)
    assert "note: not used: the statistics of droid" in capsys.readouterr().out


def test_rules_take_a_part_and_the_first_that_matches_counts(released, parameters, capsys):
    """The last projection is the file's, and the rest of the action expert is from scratch."""
    run = run_config(released, (("action_out_proj", "load"), ("^(state|action)_", "fresh")))
    ours, scratch = flat(start(run).params), flat(from_scratch(run).params)
    began = ("state_proj", "action_in_proj", "action_time_mlp")
    new = {path for path in ours if path.startswith(began)}
    assert len(new) == 8
    assert_bits(ours, parameters | {path: scratch[path] for path in new})
    text = capsys.readouterr().out
    for said in ("loaded 42 leaves", "fresh 8 leaves", "ignored 8 leaves"):
        assert said in text
    for kind in ("fresh  ", "ignored"):
        assert f"  {kind}            144  state_proj/kernel [6, 24]" in text


def test_another_action_dimension_starts_with_new_projections(released, parameters, capsys):
    fresh = (("(state_proj|action_in_proj)/kernel|action_out_proj", "fresh"),)
    ours = flat(start(run_config(released, fresh, action_dim=8)).params)
    assert ours["state_proj/kernel"].shape == (8, 24) and ours["action_out_proj/bias"].shape == (8,)
    np.testing.assert_array_equal(ours["state_proj/bias"], parameters["state_proj/bias"])
    text = capsys.readouterr().out
    assert "  fresh              192  state_proj/kernel [8, 24]" in text
    assert "  ignored            144  state_proj/kernel [6, 24]" in text


def test_hugging_face_tensors_and_narrow_ones_are_widened(parameters, pico, tmp_path, capsys):
    backbone = {path: parameters[path] for path in tree.BACKBONE_AXES}
    tensors = hugging_face(backbone, pico)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = np.arange(4)[None]
    tensors = {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array
        for name, array in tensors.items()
    }
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"vision_config": {"num_attention_heads": 2}, "text_config": {"head_dim": 8}}'
    )
    ours = flat(start(run_config(tmp_path, EXPERT_FRESH)).params)
    for path, array in backbone.items():
        assert ours[path].dtype == np.float32
        widened = array.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(ours[path], widened, err_msg=path)
    ignored = "  ignored              4  vision_tower.vision_model.embeddings.position_ids [1, 4]"
    assert ignored in capsys.readouterr().out


@pytest.mark.parametrize(
    "mesh",
    [
        dict(data=8, fsdp=1, tensor=1),
        dict(data=1, fsdp=8, tensor=1),
        dict(data=1, fsdp=4, tensor=2),
    ],
    ids=str,
)
def test_every_mesh_gets_the_same_numbers_each_device_its_part(npz, parameters, mesh):
    run = run_config(npz, EXPERT_FRESH, mesh=mesh)
    devices = run_mesh(run, jax.devices())
    state = start(run)
    expected = abstract_state(make_model(run, devices), make_optimizer(run), devices)
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert leaf.shape == like.shape and leaf.dtype == like.dtype
        assert leaf.sharding == like.sharding
    for path, array in flat(state.params).items():
        if path in tree.BACKBONE_AXES:
            np.testing.assert_array_equal(array, parameters[path], err_msg=path)
    embedding = state.params["PaliGemma"]["llm"]["embedder"]["input_embedding"]
    parts = {shard.data.shape for shard in embedding.addressable_shards}
    assert parts == {(512 // mesh["tensor"], 32 // mesh["fsdp"])}


def test_what_is_frozen_or_adapted_is_loaded_and_the_rest_begins_as_it_would(released, parameters):
    """The image encoder is frozen, in bfloat16, and one weight is adapted.

    There are no averages of those, and the factors are as from scratch.
    """
    rule = {"path": r"llm/layers/mlp/linear$", "rank": 2, "alpha": 2.0}
    run = run_config(released, frozen=("PaliGemma/img/",), frozen_dtype="bfloat16", lora=(rule,))
    state, scratch = start(run), from_scratch(run)
    assert jax.tree.structure(state) == jax.tree.structure(scratch)
    ours, average, linear = flat(state.params), flat(state.ema), "PaliGemma/llm/layers/mlp/linear"
    for path, array in parameters.items():
        narrow = path == linear or path.startswith("PaliGemma/img/")
        expected = array.astype(ml_dtypes.bfloat16) if narrow else array
        np.testing.assert_array_equal(ours[path], expected, err_msg=path)
        assert (path in average) == (not narrow)
    factors = flat(scratch.factors)
    for path in (f"{linear}/a", f"{linear}/b"):
        np.testing.assert_array_equal(average[path], factors[path])


# ---- mistakes


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (
            "npz",
            {},
            r"config.initial_weights .*pt_32.npz: PaliGemma/llm/\S+_1/\w+, .* and 15 more: .*big_v",
        ),
        (
            "npz",
            {"initial_rules": EXPERT_FRESH[:1]},
            r"action_in_proj/.* and 7 more: not in the file",
        ),
        (
            "npz",
            {"initial_rules": (*EXPERT_FRESH, ("lm_head", "fresh"))},
            r"config.initial_rules: 'lm_head' matches no parameter",
        ),
        (
            "npz",
            {"initial_rules": EXPERT_FRESH, "variant": "nano"},
            r"PaliGemma/img/.*: expected image_width 64, found 16",
        ),
        (
            "released",
            {"action_dim": 8},
            r"config.initial_weights .*pi0: action_in_proj/kernel: expected action_dim 8, found 6 ",
        ),
        ("nothing", {}, r"nothing: expected a checkpoint, found nothing$"),
    ],
)
def test_a_leaf_that_no_rule_explains_is_named(npz, released, tmp_path, source, changes, message):
    place = {"npz": npz, "released": released, "nothing": tmp_path / "nothing"}[source]
    with pytest.raises(InputError, match=message) as error:
        start(config.from_mapping({**values(), "initial_weights": str(place), **changes}))
    assert "\n" not in str(error.value)


def test_missing_weights_are_told_before_the_data_are_looked_for(tmp_path):
    run = run_config(tmp_path / "nothing", data_dir=str(tmp_path / "no data"))
    with pytest.raises(InputError, match=r"nothing: expected a checkpoint, found nothing$"):
        train(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            (("state_proj", "freeze"),),
            "config.initial_rules[0][1] is 'freeze'; expected one of load, fresh",
        ),
        ((("state_proj",),), "config.initial_rules[0] is ('state_proj',); expected 2 entries"),
        (
            (("(state", "fresh"),),
            "config.initial_rules[0] is '(state'; expected a regular expression, found: ",
        ),
        (("state_proj", "fresh"), "config.initial_rules[0] is 'state_proj'; expected a tuple"),
    ],
)
def test_a_wrong_rule_is_named(rules, message):
    with pytest.raises(InputError) as error:
        run_config("", rules)
    assert str(error.value).startswith(message)


# ---- runs


data_dir = training.data_dir
SHORT = dict(steps=3, warmup_steps=1, learning_rate=1e-9, save_every=3, validate_every=3)


class Run(NamedTuple):
    workdir: Path
    weights: Path


@pytest.fixture(scope="module")
def first(data_dir, npz, tmp_path_factory) -> Run:
    """Starts a run of the real command from a PaliGemma, which is gone when the run is done."""
    folder = tmp_path_factory.mktemp("runs")
    weights = shutil.copy(npz, folder / "pt.npz")
    flags = [f"--config.initial_rules={EXPERT_FRESH!r}"]
    run(command(data_dir, folder / "run", *flags, initial_weights=weights, **SHORT))
    weights.unlink()
    return Run(folder / "run", weights)


def test_the_command_starts_from_the_weights(first, parameters):
    trained = arrays(first.workdir, 3, "params")
    for path in tree.BACKBONE_AXES:  # at so small a rate they hardly move
        np.testing.assert_allclose(trained[path], parameters[path], atol=1e-6, err_msg=path)


def test_a_run_goes_on_without_its_starting_weights(data_dir, first, capsys):
    """Only a new run reads the weights, but they stay part of what the run is."""
    weights = dict(initial_weights=str(first.weights), initial_rules=EXPERT_FRESH)
    train(tiny_config(data_dir, **weights, **SHORT), first.workdir)
    assert "starting weights" not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"initial_weights: '' now, .*; initial_rules: \(\) now"):
        train(tiny_config(data_dir, **SHORT), first.workdir)


def test_a_checkpoint_of_our_own_gives_its_moving_average_to_the_bit(first, capsys):
    state = start(run_config(first.workdir, horizon=5))
    assert_bits(flat(state.params), arrays(first.workdir, 3, "ema"))
    assert "loaded 50 leaves" in capsys.readouterr().out


def test_the_published_sizes_have_the_leaves_that_weights_come_for():
    """The recipes' rules load 32 leaves of the full-size PaliGemma, and make 18 leaves fresh.

    The 18 leaves are the action expert's. No file is needed.
    """
    assert len(tree.BACKBONE_AXES) == 32 and len(tree.PI0_AXES) == 50
    assert tree.expected_shapes(tree.sizes_of_config(VARIANTS["pi0"]))[EMBEDDING] == (257_152, 2048)
