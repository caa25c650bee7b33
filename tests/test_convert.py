"""Checkpoints are converted: published files, every format there and back, full-size name lists.

A conversion is streamed, and its output is whole or not there.
"""

import dataclasses
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from launch import formats_page
from pi0_jax import convert, verify
from pi0_jax.convert import lerobot, openpi, rules, tree
from pi0_jax.convert.folder import Folder
from pi0_jax.convert.metadata import Metadata
from pi0_jax.convert.source import compare, torch_tensors
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.models.paths import flatten, unflatten
from pi0_jax.models.pi0 import VARIANTS
from pi0_jax.parity import Comparison
from pi0_jax.policy import Policy
from pi0_jax.policy_config import model_config
from tests.checkpoints_of_others import (
    GOLDEN,
    ROBOT,
    UNEVEN,
    random_parameters,
    shapes_of,
    write_openpi,
)
from tests.own_process import python

TOY = GOLDEN / "openpi_toy_checkpoint"
UNEVEN_OPTIONS = convert.Options(
    embodiment="droid", tokenizer="small", sizes={"horizon": 7, "max_tokens": 11}
)
PICO = dataclasses.replace(VARIANTS["pico"], action_dim=9)
PICO_OPTIONS = convert.Options(
    embodiment="droid", tokenizer="small", sizes={"horizon": 4, "max_tokens": 12}
)
HEADS = {"head_dim": 8, "image_heads": 2}  # of the toy, which PyTorch's flattened heads do not show


@pytest.fixture(scope="module")
def toy():
    return flatten(verify.load_vectors(verify.SHIPPED_VECTORS).params)


@pytest.fixture(scope="module")
def uneven():
    return random_parameters(UNEVEN)


@pytest.fixture(scope="module")
def theirs(uneven, tmp_path_factory):
    return write_openpi(tmp_path_factory.mktemp("openpi") / "theirs", uneven)


@pytest.fixture(scope="module")
def pico(tmp_path_factory):
    return write_openpi(tmp_path_factory.mktemp("openpi") / "pico", random_parameters(PICO))


def check_equal(source, flat):
    """Checks that names, shapes, dtypes and bits are equal."""
    assert source.leaves.keys() == flat.keys()
    for path, array in flat.items():
        found = source.read(path)
        leaf = source.leaves[path]
        for kept in (found, leaf):
            assert (kept.shape, kept.dtype) == (array.shape, array.dtype), path
        assert found.tobytes() == array.tobytes(), path


# ---- the published files


def test_a_published_checkpoint_loads_without_renaming(toy):
    source = convert.open(TOY)
    assert (
        source.format == "openpi_jax"
        and source.sizes["N"] == 8
        and len(source.metadata.robots["toy"].statistics.state.mean) == 6
    )
    check_equal(source, toy)


@pytest.mark.slow
def test_a_published_checkpoint_reproduces_the_known_answers():
    vectors = verify.load_vectors(verify.SHIPPED_VECTORS)._replace(params=convert.open(TOY).tree())
    assert [c for c in verify.compare(vectors, "float32") if not c.ok] == []


def test_our_export_is_the_published_port_bit_for_bit(toy, tmp_path):
    """All tensors are there but the expert's output head, which no part of π0 uses.

    The file leaves it out, and the ports' own loaders expect that.
    """
    robot = tmp_path / "robot.json"
    record = Embodiment(
        "arm", "six joints", {"base_0_rgb": "front"}, *_dims(6), control_hz=20.0, execute_steps=5
    )
    robot.write_text(json.dumps(record.to_json()))
    convert.run(
        TOY,
        tmp_path / "out",
        "lerobot",
        convert.Options(embodiment=str(robot), sizes={"horizon": 5}),
    )
    ours = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    published = safetensors.numpy.load_file(GOLDEN / "lerobot_toy.safetensors")
    head = ours.pop("model.paligemma_with_expert.gemma_expert.lm_head.weight")
    assert head.shape == (64, 16) and not head.any()
    assert ours.keys() == published.keys()
    for name, array in published.items():
        assert (ours[name].shape, ours[name].dtype, ours[name].tobytes()) == (
            array.shape,
            array.dtype,
            array.tobytes(),
        ), name
    check_equal(convert.open(GOLDEN / "lerobot_toy.safetensors", convert.Options(sizes=HEADS)), toy)


def _dims(count):
    names = [f"joint_{i}" for i in range(count)]
    return tuple(StateDim(name, "rad") for name in names), tuple(
        ActionDim(name, "rad", "absolute") for name in names
    )


@pytest.mark.parametrize(
    ("variant", "table", "file"),
    [
        ("pi0", lerobot.RULES, "lerobot_pi0_tensors.json"),
        ("pi0", openpi.TORCH_RULES, "openpi_pytorch_pi0_tensors.json"),
        ("pi05", lerobot.RULES, "lerobot_pi05_tensors.json"),
    ],
)
def test_at_full_size_every_tensor_of_the_ports_is_there_and_no_other(variant, table, file):
    """The backbone's output head is the embedding once more, and the expert's is zeros."""
    config = VARIANTS[variant]
    shapes, sizes = shapes_of(config), tree.sizes_of_config(config)
    assert tree.expected_shapes(sizes) == shapes
    entries = rules.entries(table, shapes, sizes, "full size")
    published = json.loads((GOLDEN / file).read_text())
    assert len(entries) == len(published)
    assert {entry.name: list(entry.shape) for entry in entries} == published


def test_openpis_port_of_pi05_has_lerobots_names():
    config = VARIANTS["pi05"]
    entries = rules.entries(
        openpi.TORCH_RULES, shapes_of(config), tree.sizes_of_config(config), "full size"
    )
    published = json.loads((GOLDEN / "lerobot_pi05_tensors.json").read_text())
    assert {f"model.{entry.name}" for entry in entries} == published.keys()


SLOTS = {slot: slot for slot in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")}


@pytest.mark.parametrize(
    ("variant", "folder", "cameras", "normalization"),
    [
        ("pi0", "lerobot_policy_directory", SLOTS, "zscore"),
        (
            "pi05",
            "lerobot_pi05_policy_directory",
            {"base_0_rgb": "exterior", "left_wrist_0_rgb": "wrist"},
            "quantile",
        ),
    ],
)
def test_the_files_of_a_policy_directory_are_lerobots_own(variant, folder, cameras, normalization):
    """All agree but the epsilon of the normalisation.

    It is ours (1e-6), because LeRobot adds what the file says.
    """
    published = GOLDEN / folder
    robot = Embodiment("arm", "eight joints", cameras, *_dims(8), control_hz=50.0, execute_steps=50)
    metadata = Metadata(normalization=normalization)
    files = lerobot.descriptions(VARIANTS[variant], metadata, robot, "float32")
    for name in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        text = json.dumps(files[name]).replace('"eps": 1e-06', '"eps": 1e-08')
        assert json.loads(text) == json.loads((published / name).read_text()), name


def test_a_policy_directory_of_lerobots_own_is_read():
    metadata = lerobot.read_metadata(Folder(GOLDEN / "lerobot_policy_directory"))
    ((statistics, robot),) = metadata.robots.values()
    assert (metadata.horizon, metadata.max_tokens, metadata.normalization) == (50, 48, "zscore")
    assert list(robot.cameras.values()) == ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]
    assert (len(robot.state), len(robot.actions), robot.execute_steps) == (8, 8, 50)
    published = safetensors.numpy.load_file(
        GOLDEN
        / "lerobot_policy_directory"
        / "policy_preprocessor_step_6_normalizer_processor.safetensors"
    )
    np.testing.assert_array_equal(
        statistics.state.mean, published["observation.state.mean"].astype(np.float64)
    )
    np.testing.assert_array_equal(
        statistics.actions.std, published["action.std"].astype(np.float64)
    )


# ---- there and back


@pytest.mark.parametrize("value_level", [False, True])
def test_openpis_trees_are_read_with_and_without_the_level_that_training_adds(
    uneven, tmp_path, value_level
):
    source = convert.open(write_openpi(tmp_path / "theirs", uneven, value_level=value_level))
    check_equal(source, uneven)
    assert source.sizes == tree.sizes_of_config(UNEVEN)


def test_every_format_there_and_back_bit_for_bit(uneven, theirs, tmp_path):
    path, options, travelled = theirs, UNEVEN_OPTIONS, []
    for number, to in enumerate(
        ["openpi_pytorch", "lerobot", "openpi_jax", "lerobot", "openpi_pytorch", "openpi_jax"]
    ):
        output = tmp_path / f"{number}_{to}"
        convert.run(path, output, to, options)
        source = convert.open(output)
        assert source.format == to and source.sizes == tree.sizes_of_config(UNEVEN)
        check_equal(source, uneven)
        travelled.append(source.metadata.to_json())
        path, options = output, convert.DEFAULTS  # the rest travels beside the weights
    assert (
        all(metadata == travelled[0] for metadata in travelled)
        and travelled[0]["robots"]["droid"]["embodiment"]["name"] == "droid"
    )
    with ocp.PyTreeCheckpointer() as checkpointer:  # openpi's own way of reading
        restored = checkpointer.restore(path / "params")
    jax.tree.map(np.testing.assert_array_equal, restored["params"], unflatten(uneven))


def test_a_cast_rounds_each_tensor_to_nearest(uneven, theirs, tmp_path):
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    report = convert.run(
        theirs, tmp_path / "out", "lerobot", convert.Options(embodiment="droid", dtype=bfloat16)
    )
    rounded = {path: array.astype(bfloat16) for path, array in uneven.items()}
    check_equal(convert.open(tmp_path / "out"), rounded)
    assert all(c.differing == 0 for c in compare(report.source, convert.open(tmp_path / "out")))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_sizes_that_no_variant_has_are_kept_in_the_config(tmp_path):
    # the small tokenizer has 512 pieces
    model = dataclasses.replace(UNEVEN, gemma=dataclasses.replace(UNEVEN.gemma, vocab_size=514))
    uneven = random_parameters(model)
    convert.run(
        write_openpi(tmp_path / "theirs", uneven), tmp_path / "ours", "ours", UNEVEN_OPTIONS
    )
    assert model_config(Policy.open(tmp_path / "ours").config) == model
    convert.run(tmp_path / "ours", tmp_path / "lerobot", "lerobot")
    convert.run(tmp_path / "lerobot", tmp_path / "again", "ours")
    check_equal(convert.open(tmp_path / "again"), uneven)


@pytest.mark.slow
def test_a_converted_checkpoint_opens_as_a_policy_and_goes_back(pico, tmp_path):
    """Actions are those of the parameters themselves; statistics and the rest came along.

    The rest is the cameras and the tokenizer.
    """
    flat = random_parameters(PICO)
    convert.run(pico, tmp_path / "ours", "ours", PICO_OPTIONS)
    policy = Policy.open(tmp_path / "ours", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, policy.params, unflatten(flat))
    assert (
        policy.config.variant == "pico"
        and policy.config.action_dim == 9
        and policy.robots.keys() == {"droid"}
    )
    images = {camera: np.zeros((32, 32, 3), np.uint8) for camera in ROBOT.cameras.values()}
    chunk = policy.act([{"images": images, "state": np.zeros(8), "prompt": "reach"}])
    assert chunk.shape == (1, 4, 8) and np.isfinite(chunk).all()
    convert.run(tmp_path / "ours", tmp_path / "lerobot", "lerobot")
    convert.run(tmp_path / "lerobot", tmp_path / "again", "ours")
    again = Policy.open(tmp_path / "again", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, again.params, policy.params)
    assert again.config == policy.config
    jax.tree.map(
        np.testing.assert_array_equal,
        again.robots["droid"].statistics,
        policy.robots["droid"].statistics,
    )


# ---- streamed, and whole or not there


def test_stacked_leaves_are_written_by_layer(theirs, tmp_path):
    source = convert.open(theirs)
    asked = []

    def spied(path, leaf):
        return dataclasses.replace(
            leaf, read=lambda layer: asked.append((path, layer)) or leaf.read(layer)
        )

    leaves = {path: spied(path, leaf) for path, leaf in source.leaves.items()}
    tensors = torch_tensors(dataclasses.replace(source, leaves=leaves), openpi.TORCH_RULES)
    for _, tensor in tensors:
        tensor.read(None)
    stacked = {path for path, layer in asked if layer is not None}
    assert stacked == {path for path in leaves if "/layers/" in path or "/encoderblock/" in path}
    path = "PaliGemma/llm/layers/attn/kv_einsum/w"
    assert [ask for ask in asked if ask[0] == path] == [(path, i) for i in range(3)]


@pytest.mark.parametrize("to", convert.OUTPUTS)
def test_an_interrupted_conversion_leaves_nothing(pico, tmp_path, monkeypatch, to):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    for late in (
        "openpi.write_statistics",
        "lerobot.safetensors_files.write_file",
        "ours.ocp.Checkpointer",
    ):
        monkeypatch.setattr(f"pi0_jax.convert.{late}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert.run(pico, tmp_path / "out", to, PICO_OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_the_command_converts_verifies_and_says_what_it_assumed(tmp_path):
    output = tmp_path / "out"
    command = ("-m", "launch.convert", f"--input={TOY}", f"--output={output}")
    command += ("--to=openpi_pytorch", "--verify")
    said = python(*command).stdout
    assert "openpi_jax -> openpi_pytorch: 57,912 parameters" in said
    assert "50 of 50 leaves read back bit for bit" in said
    assert "horizon shows in no file of this format: 50, as published" in said
    refusal = f"error: {output}: exists; expected a new path to write to"
    assert python(*command, status=2).stderr.strip() == refusal


def test_the_page_of_formats_is_up_to_date():
    """The measured errors do not count, because they change with the machine."""
    page = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()
    assert formats_page.renewed(page) == page


def test_a_page_gets_new_tables_under_its_own_sentences():
    page = "# Formats\n\n## Measured\n\nold\n\n## `ours`: (in)\n\nText.\n\n| a |\n|---|\n| b |\n"
    measured = [("toy", Comparison("actions", 1e-6, 1e-7))]
    assert formats_page.renewed(page, measured, "On a CPU.") == (
        "# Formats\n\n## Measured\n\nOn a CPU.\n\n"
        "| what | output | max abs error | relative to the largest |\n|---|---|---|---|\n"
        "| toy | actions | 1.0e-06 | 1.0e-07 |\n\n"
        "## `ours`: (in)\n\nText.\n\n"
        "| tensor | our leaf | layout |\n|---|---|---|\n| `{path}` | `{path}` | same |\n"
    )
