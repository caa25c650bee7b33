"""Wrong input gets one line that names the culprit; some oddities are allowed."""

import dataclasses
import json
import shutil

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from pi0_jax import convert
from pi0_jax.convert import paligemma, rules
from pi0_jax.convert.source import cast
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import VARIANTS
from tests.checkpoints_of_others import (
    GOLDEN,
    UNEVEN,
    nested,
    norm_stats,
    random_parameters,
    write_openpi,
)
from tests.small_disk import small_disk

LAYER = "model.paligemma_with_expert.paligemma.model.language_model.layers"
EMBEDDING = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
OPTIONS = convert.Options(sizes={"head_dim": 8, "image_heads": 2})


@pytest.fixture
def tensors():
    return safetensors.numpy.load_file(GOLDEN / "lerobot_toy.safetensors")


def opened(tmp_path, tensors, options=OPTIONS):
    safetensors.numpy.save_file(tensors, tmp_path / "toy.safetensors")
    return convert.open(tmp_path / "toy.safetensors", options)


def refused(message, function, *args):
    with pytest.raises(InputError, match=message) as error:
        function(*args)
    assert "\n" not in str(error.value)


# ---- tensors


def test_a_missing_tensor_is_named(tmp_path, tensors):
    del tensors[f"{LAYER}.1.self_attn.k_proj.weight"]
    refused(
        rf"toy.safetensors: {LAYER}.1.self_attn.k_proj.weight: missing$", opened, tmp_path, tensors
    )


def test_a_missing_part_is_named(tmp_path, tensors):
    left = {name: array for name, array in tensors.items() if "vision_tower" not in name}
    refused(
        r"vision_model.embeddings.patch_embedding.weight, .* and \d+ more: missing",
        opened,
        tmp_path,
        left,
    )


def test_a_tensor_that_no_rule_covers_is_named(tmp_path, tensors):
    refused(
        "model.value_head.weight: no rule covers it",
        opened,
        tmp_path,
        tensors | {"model.value_head.weight": np.zeros(3, np.float32)},
    )


def test_shapes_that_contradict_each_other_are_both_named(tmp_path, tensors):
    name = "model.paligemma_with_expert.gemma_expert.model.layers.2.mlp.up_proj.weight"
    message = r"layers.2.mlp.up_proj.weight: expected expert_mlp_dim 40 \(by .*down_proj.weight\), found 41"
    refused(message, opened, tmp_path, tensors | {name: np.zeros((41, 16), np.float32)})


def test_heads_that_do_not_divide_are_named(tmp_path, tensors):
    refused(
        "k_proj.weight: expected num_kv_heads 1 x head_dim 16, found 8",
        opened, tmp_path, tensors, convert.Options(sizes={"head_dim": 16, "image_heads": 2}),
    )  # fmt: skip
    refused(
        "shows only num_kv_heads x head_dim = 8; give one, as in --sizes=head_dim=",
        opened,
        tmp_path,
        tensors,
        convert.DEFAULTS,
    )
    refused(
        "depth is 3 by the tensors, 4 as given",
        opened,
        tmp_path,
        tensors,
        convert.Options(sizes={**OPTIONS.sizes, "depth": 4}),
    )
    refused(
        "--sizes: head_dim: expected at least 1, found 0",
        opened,
        tmp_path,
        tensors,
        convert.Options(sizes={"head_dim": 0}),
    )
    refused(
        "--sizes: wide is unknown", opened, tmp_path, tensors, convert.Options(sizes={"wide": 4})
    )


def test_two_dtypes_in_one_leaf_are_named(tmp_path, tensors):
    name = f"{LAYER}.1.self_attn.v_proj.weight"
    refused(
        rf"q?.*{name} is float16; expected one dtype for",
        opened,
        tmp_path,
        tensors | {name: tensors[name].astype(np.float16)},
    )


def test_weights_that_are_no_finite_floats_are_named(tmp_path, tensors):
    name = f"{LAYER}.1.self_attn.v_proj.weight"
    refused(
        r"model.*: expected one of the dtypes float32, .*, found int64$",
        opened,
        tmp_path,
        {n: a.astype(np.int64) for n, a in tensors.items()},
    )
    tensors[name][0, :2] = np.nan, -np.inf
    source = opened(tmp_path, tensors)
    message = "toy.safetensors: PaliGemma/llm/layers/attn/kv_einsum/w layer 1: expected weights that are finite in float32, found 2 NaN"
    refused(message, source.layer, "PaliGemma/llm/layers/attn/kv_einsum/w", 1)
    tensors[name][0, :2] = 0, 3.4e38  # bfloat16 would round this up
    message = (
        "kv_einsum/w layer 1: expected weights that are finite in bfloat16, found 1 NaN or infinite"
    )
    refused(
        message,
        cast(opened(tmp_path, tensors), np.dtype(ml_dtypes.bfloat16)).layer,
        "PaliGemma/llm/layers/attn/kv_einsum/w",
        1,
    )


@pytest.mark.parametrize("kept", [EMBEDDING, HEAD])
def test_a_tied_tensor_may_be_saved_under_either_name(tmp_path, tensors, kept):
    (other,) = {EMBEDDING, HEAD} - {kept}
    source = opened(tmp_path, {name: array for name, array in tensors.items() if name != other})
    np.testing.assert_array_equal(
        source.read("PaliGemma/llm/embedder/input_embedding"), tensors[kept]
    )


def test_a_copy_that_is_not_equal_is_said(tmp_path, tensors):
    assert opened(tmp_path, tensors).differing_copies() == []
    assert opened(tmp_path, tensors | {HEAD: tensors[HEAD] + 1}).differing_copies() == [HEAD]


def test_the_first_rule_that_matches_counts():
    table = [rules.rule("params/{path}/value", "{path}"), rules.rule("params/{path}", "{path}")]
    assert rules.match("params/a/b/value", table).path == "a/b"
    assert rules.match("params/a/b", table).path == "a/b"
    assert rules.match("opt/a", table) is None


def test_adarms_and_lora_are_refused_by_name(tmp_path, tensors):
    refused(r"model.time_mlp_in.weight: an adaRMS \(π0.5\) checkpoint", opened, tmp_path,
            tensors | {"model.time_mlp_in.weight": np.zeros((16, 16), np.float32)})  # fmt: skip
    flat = {
        path: array
        for path, array in random_parameters(UNEVEN).items()
        if "pre_ffw_norm_1" not in path
    }
    flat |= {
        "PaliGemma/llm/layers/pre_ffw_norm_1/Dense_0/kernel": np.zeros((3, 16, 48), np.float32)
    }
    refused(
        r"pre_ffw_norm_1/Dense_0/kernel: an adaRMS \(π0.5\) checkpoint",
        convert.open,
        write_openpi(tmp_path / "a", flat),
    )


def test_lora_leaves_are_merged_only_where_asked_for(tmp_path, tensors):
    flat, rng = random_parameters(UNEVEN), np.random.default_rng(3)
    q, linear = "PaliGemma/llm/layers/attn/q_einsum", "PaliGemma/llm/layers/mlp_1/linear"
    a, b = (
        rng.standard_normal((3, 6, 24, 2), np.float32),
        rng.standard_normal((3, 6, 2, 8), np.float32),
    )
    c, d = rng.standard_normal((3, 44, 2), np.float32), rng.standard_normal((3, 2, 16), np.float32)
    adapted = flat | {
        f"{q}/lora_a": a,
        f"{q}/lora_b": b,
        f"{linear}_lora_a": c,
        f"{linear}_lora_b": d,
    }
    path = write_openpi(tmp_path / "lora", adapted, value_level=True)
    refused("q_einsum/lora_a/value: LoRA leaves; .* --merge_lora=ALPHA/RANK", convert.open, path)
    source = convert.open(path, convert.Options(merge_lora=0.5))
    assert source.leaves.keys() == flat.keys()
    np.testing.assert_allclose(
        source.read(f"{q}/w"),
        flat[f"{q}/w"] + 0.5 * np.einsum("lndr,lnrh->lndh", a, b),
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        source.layer(linear, 1), flat[linear][1] + 0.5 * c[1] @ d[1], rtol=1e-5, atol=1e-5
    )
    scale = convert.Options(merge_lora=1.0)
    refused(
        "plain: --merge_lora: expected LoRA leaves to merge, found none",
        convert.open,
        write_openpi(tmp_path / "plain", flat),
        scale,
    )
    refused("--merge_lora: expected LoRA leaves of openpi's JAX checkpoints, found lerobot", opened, tmp_path, tensors,
            dataclasses.replace(OPTIONS, merge_lora=1.0))  # fmt: skip
    other = write_openpi(tmp_path / "odd", flat | {f"{q}/lora_a": a})
    refused(
        "q_einsum/lora_a: LoRA leaves that fit no weight",
        convert.open,
        other,
        convert.Options(merge_lora=1.0),
    )


# ---- files


def test_a_truncated_safetensors_is_named(tmp_path):
    data = (GOLDEN / "lerobot_toy.safetensors").read_bytes()
    for length, message in (
        (4, "found 4 bytes"),
        (5000, "truncated: expected a header"),
        (len(data) - 1, "truncated: expected 255776"),
    ):
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        refused(f"cut.safetensors: .*{message}", convert.open, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"no such format, at all")
    refused(
        "cut.safetensors: expected a safetensors file, found another format",
        convert.open,
        tmp_path / "cut.safetensors",
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"data_offsets": [0, 8]},
            "b: expected its data where the tensor before ends, at byte 8, found byte 0",
        ),
        (
            {"data_offsets": [-8, 0]},
            "b: expected its data where the tensor before ends, at byte 0, found byte -8",
        ),
        ({"data_offsets": [8, 12]}, r"b: shape \[2\] of F32 is 8 bytes, found 4"),
        ({"shape": [2.0]}, "expected a safetensors header, found 'float' object"),
        ({"dtype": "U8"}, "b: expected one of the dtypes F64, F32, F16, BF16, I64, found U8"),
        ({"shape": [3]}, r"b: shape \[3\] of F32 is 12 bytes, found 8"),
    ],
)
def test_a_header_that_contradicts_its_file_is_named(tmp_path, entry, message):
    right = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = (
        json.dumps({"a": right, "b": {**right, "data_offsets": [8, 16], **entry}})
        .encode()
        .ljust(150)
    )
    (tmp_path / "odd.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(16)
    )
    refused(f"odd.safetensors: {message}", convert.open, tmp_path / "odd.safetensors")


def test_a_truncated_npz_is_named(tmp_path):
    np.savez(tmp_path / "whole.npz", **{"params/img/head/bias": np.zeros(8)})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-50])
    refused("cut.npz: expected an npz, whole", convert.open, tmp_path / "cut.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(8))
    refused(
        "other.npz: expected big_vision's .*, found weights", convert.open, tmp_path / "other.npz"
    )


def test_a_damaged_array_in_an_npz_is_named(tmp_path):
    np.savez(tmp_path / "whole.npz", **{"params/img/head/bias": np.arange(800.0)})
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    data[600] ^= 1
    (tmp_path / "whole.npz").write_bytes(data)
    refused(
        "whole.npz: params/img/head/bias: expected a whole array",
        paligemma.read_arrays(tmp_path / "whole.npz")["params/img/head/bias"].read,
        None,
    )


def test_a_missing_shard_is_named(tmp_path, tensors):
    names = sorted(tensors)
    for number, part in ((1, names[:30]), (2, names[30:60]), (3, names[60:])):
        safetensors.numpy.save_file(
            {name: tensors[name] for name in part},
            tmp_path / f"model-{number:05d}-of-00003.safetensors",
        )
    shutil.copy(GOLDEN / "lerobot_policy_directory" / "config.json", tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused("model-00002-of-00003.safetensors: a shard is missing", convert.open, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00009-of-00009.safetensors"}})
    )
    refused("model-00009-of-00009.safetensors: a shard is missing", convert.open, tmp_path)


def test_a_damaged_orbax_checkpoint_is_named(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a" / "params", {"params": nested(random_parameters(UNEVEN))})
    for file in (tmp_path / "a" / "params" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="a/params: params/.*: expected a whole array"):
        convert.open(tmp_path / "a").tree()


def test_unknown_and_mixed_formats_are_named(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    refused("expected a checkpoint of a known format, found notes.txt", convert.open, tmp_path)
    refused(
        "nothing-here: expected a checkpoint, found nothing",
        convert.open,
        tmp_path / "nothing-here",
    )
    refused(
        "notes.txt: expected a directory, an npz or a safetensors file",
        convert.open,
        tmp_path / "notes.txt",
    )
    (tmp_path / "params").mkdir()
    shutil.copy(GOLDEN / "lerobot_toy.safetensors", tmp_path / "model.safetensors")
    refused(
        "expected a checkpoint of one format, found an Orbax checkpoint and safetensors",
        convert.open,
        tmp_path,
    )
    (tmp_path / "else").mkdir()
    safetensors.numpy.save_file(
        {"bert.weight": np.zeros(3, np.float32)}, tmp_path / "else" / "model.safetensors"
    )
    refused(
        "expected the tensors of a π0 or a PaliGemma, found bert.weight",
        convert.open,
        tmp_path / "else",
    )


def test_a_place_that_cannot_be_written_or_is_full_is_named(tmp_path):
    path = write_openpi(tmp_path / "a", random_parameters(UNEVEN))
    refused(r"notes.txt/out: expected a place that can be written, found: (File exists|Not a directory)", convert.run, path,
            path / "params" / "_METADATA" / "notes.txt" / "out", "openpi_jax")  # fmt: skip
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        for to in ("openpi_jax", "openpi_pytorch"):
            refused(
                "disk/out: expected more space on its disk, found: No space left",
                convert.run,
                path,
                disk / "out",
                to,
            )
            assert not list(disk.iterdir())


# ---- what travels beside the weights


def policy_directory(tmp_path, tensors, **changes):
    """Writes LeRobot's own files around the toy's weights, whose model has 8 dimensions."""
    shutil.copytree(GOLDEN / "lerobot_policy_directory", tmp_path / "policy")
    config = (
        json.loads((tmp_path / "policy" / "config.json").read_text())
        | {"max_state_dim": 8, "max_action_dim": 8}
        | changes
    )
    (tmp_path / "policy" / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, tmp_path / "policy" / "model.safetensors")
    return tmp_path / "policy"


def test_another_policy_type_or_dimension_is_refused(tmp_path, tensors):
    refused(
        "config.json: expected a policy of type pi0, found pi05",
        convert.open,
        policy_directory(tmp_path, tensors, type="pi05"),
        OPTIONS,
    )
    shutil.rmtree(tmp_path / "policy")
    refused(
        "max_action_dim is 32, 8 by the tensors",
        convert.open,
        policy_directory(tmp_path, tensors, max_action_dim=32),
        OPTIONS,
    )
    shutil.rmtree(tmp_path / "policy")
    mapping = {"STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
    refused("normalization_mapping: expected MEAN_STD or QUANTILES", convert.open,
            policy_directory(tmp_path, tensors, normalization_mapping=mapping), OPTIONS)  # fmt: skip


def test_missing_statistics_are_named(tmp_path, tensors):
    folder = policy_directory(tmp_path, tensors)
    (folder / "policy_preprocessor_step_6_normalizer_processor.safetensors").unlink()
    refused(
        "policy_preprocessor.json: expected one normalizer_processor with its statistics beside it",
        convert.open,
        folder,
        OPTIONS,
    )
    bare = write_openpi(tmp_path / "bare", random_parameters(UNEVEN))
    shutil.rmtree(bare / "assets")
    for to in ("openpi_pytorch", "lerobot", "ours"):
        refused(
            "bare: expected a robot's statistics, found none",
            convert.run,
            bare,
            tmp_path / "out",
            to,
        )
    report = convert.run(
        bare, tmp_path / "out", "openpi_pytorch", convert.Options(weights_only=True)
    )
    assert "no statistics: weights alone, to start training from" in report.notes


def test_what_a_policy_needs_is_asked_for(tmp_path):
    path = write_openpi(tmp_path / "a", random_parameters(UNEVEN))
    for to, options, message in (
        (
            "lerobot",
            convert.DEFAULTS,
            "robot droid: expected its embodiment, found none; name a record with --embodiment",
        ),
        ("lerobot", convert.Options(embodiment="drone"), "embodiment 'drone' is unknown"),
        (
            "lerobot",
            convert.Options(embodiment="mobile_aloha"),
            "droid: state: expected at least the robot's 14 dimensions, found 8",
        ),
        (
            "ours",
            convert.Options(embodiment="droid", tokenizer="small"),
            "a: expected a tokenizer of at most 66 pieces, found 512",
        ),
        (
            "ours",
            convert.Options(embodiment="droid"),
            "carries no tokenizer; name its SentencePiece model with --tokenizer=PATH",
        ),
    ):
        refused(message, convert.run, path, tmp_path / "out", to, options)
    assert not (tmp_path / "out").exists()


def test_of_several_robots_one_is_chosen(tmp_path):
    path = write_openpi(tmp_path / "a", random_parameters(UNEVEN))
    (path / "assets" / "lab" / "franka").mkdir(parents=True)
    (path / "assets" / "lab" / "franka" / "norm_stats.json").write_text(
        json.dumps({"norm_stats": norm_stats(8, seed=5)})
    )
    assert convert.open(path).metadata.robots.keys() == {"droid", "lab/franka"}
    options = convert.Options(embodiment="droid")
    refused(
        "--robot: expected one of droid, lab/franka, found none",
        convert.run,
        path,
        tmp_path / "o",
        "lerobot",
        options,
    )
    report = convert.run(
        path, tmp_path / "o", "lerobot", dataclasses.replace(options, robot="lab/franka")
    )
    assert "left out: the statistics of droid" in report.notes
    assert convert.open(tmp_path / "o").metadata.robots.keys() == {"lab/franka"}
    convert.run(path, tmp_path / "all", "openpi_jax")
    assert convert.open(tmp_path / "all").metadata.robots.keys() == {"droid", "lab/franka"}


def test_a_record_that_contradicts_the_checkpoints_own_is_refused(tmp_path):
    """LeRobot's directory says which actions are deltas; DROID's droid_velocity has none."""
    path = write_openpi(tmp_path / "a", random_parameters(UNEVEN))
    convert.run(path, tmp_path / "o", "lerobot", convert.Options(embodiment="droid"))
    (tmp_path / "o" / "pi0_jax.json").unlink()
    sizes = {"head_dim": 8, "image_heads": 4}
    options = convert.Options(embodiment="droid_velocity", tokenizer="small", sizes=sizes)
    refused(
        "--embodiment=droid_velocity: actions learnt relative to the state: expected"
        " 0, 1, 2, 3, 4, 5, 6 as the checkpoint says, found none",
        convert.run,
        tmp_path / "o",
        tmp_path / "p",
        "openpi_jax",
        options,
    )
    droid = dataclasses.replace(options, embodiment="droid")
    convert.run(tmp_path / "o", tmp_path / "p", "openpi_jax", droid)


def test_statistics_that_are_not_of_the_record_are_refused_or_told(tmp_path):
    """A gripper from -1 to +1 is not DROID's; a gripper that never moves may be."""
    pico = dataclasses.replace(VARIANTS["pico"], action_dim=9)
    path = write_openpi(tmp_path / "a", random_parameters(pico))
    file = path / "assets" / "droid" / "norm_stats.json"
    known = norm_stats(8)
    options = convert.Options(
        embodiment="droid", tokenizer="small", sizes={"horizon": 4, "max_tokens": 12}
    )

    def with_gripper(low: float, high: float, std: float) -> None:
        for key, value in (("q01", low), ("q99", high), ("std", std), ("mean", high)):
            known["actions"][key][7] = value
        file.write_text(json.dumps({"norm_stats": known}))

    with_gripper(-1.0, 1.0, 0.9)
    refused(
        "droid: statistics of action gripper: expected values from 0 to 1 as its record declares, found 98% of them from -1 to 1",
        convert.run,
        path,
        tmp_path / "o",
        "ours",
        options,
    )
    with_gripper(1.0, 1.0, 0.0)
    report = convert.run(path, tmp_path / "o", "ours", options)
    assert "warning: droid: action gripper: by its statistics it never moves: it is always 1" in report.notes  # fmt: skip


def test_files_that_contradict_each_other_are_named(tmp_path):
    path = write_openpi(tmp_path / "a", random_parameters(UNEVEN))
    convert.run(path, tmp_path / "o", "openpi_pytorch")
    file = tmp_path / "o" / "assets" / "droid" / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": norm_stats(8, seed=9)}))
    refused(
        "pi0_jax.json: droid: state.mean is not that of the checkpoint's other files",
        convert.open,
        tmp_path / "o",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"robots": {"droid": {"statistics": {}}}}, "statistics lack state.mean"),
        (
            {"robots": {"droid": 3}},
            "expected what an export of ours writes, found 'int' object is not subscriptable",
        ),
        (
            {"sizes": {"heads": 3}},
            "expected what an export of ours writes, found nothing called 'heads'",
        ),
        (
            {"tokenizer": 3},
            "expected what an export of ours writes, found argument should be a bytes-like",
        ),
    ],
)
def test_a_record_of_another_make_is_named(tmp_path, change, message):
    path = write_openpi(tmp_path / "a", random_parameters(UNEVEN))
    convert.run(path, tmp_path / "o", "openpi_jax")
    file = tmp_path / "o" / "pi0_jax.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(f"^{file}: {message}", convert.open, tmp_path / "o")


def test_a_dimension_without_spread_is_normalised_as_ours_is(tmp_path):
    """LeRobot divides by std + 1e-6, so a joint that never moves would be noise times a million."""
    path = write_openpi(tmp_path / "a", random_parameters(UNEVEN))
    file = path / "assets" / "droid" / "norm_stats.json"
    record = json.loads(file.read_text())
    record["norm_stats"]["state"]["std"][2] = 0.0
    file.write_text(json.dumps(record))
    report = convert.run(path, tmp_path / "o", "lerobot", convert.Options(embodiment="droid"))
    assert any(
        note.startswith("state[2]: hardly vary; written with a spread of 1")
        for note in report.notes
    )
    written = safetensors.numpy.load_file(
        tmp_path / "o" / "policy_preprocessor_step_6_normalizer_processor.safetensors"
    )
    assert written["observation.state.std"][2] == 1.0
    # our own is beside
    assert convert.open(tmp_path / "o").metadata.robots["droid"].statistics.state.std[2] == 0.0


def test_statistics_that_no_data_give_are_named(tmp_path, tensors):
    folder = policy_directory(tmp_path, tensors)
    for file in folder.glob("*normalizer_processor.safetensors"):
        values = safetensors.numpy.load_file(file)
        safetensors.numpy.save_file(values | {"action.std": -values["action.std"]}, file)
    refused(
        r"policy: action.std\[0\]: expected at least zero \(0\), found -",
        convert.open,
        folder,
        OPTIONS,
    )


def test_percentiles_travel_and_a_port_without_them_is_warned_of(tmp_path, tensors):
    folder = policy_directory(
        tmp_path, tensors, normalization_mapping={"STATE": "QUANTILES", "ACTION": "QUANTILES"}
    )
    for file in folder.glob("*normalizer_processor.safetensors"):
        values = safetensors.numpy.load_file(file)
        for part in ("action", "observation.state"):
            values |= {
                f"{part}.q01": np.full(8, -2, np.float32),
                f"{part}.q99": np.full(8, 3, np.float32),
            }
        safetensors.numpy.save_file(values, file)
    report = convert.run(folder, tmp_path / "openpi", "openpi_jax", OPTIONS)
    assert (
        "warning: normalised by percentiles; openpi's π0 takes mean and standard deviation"
        in report.notes
    )
    convert.run(tmp_path / "openpi", tmp_path / "again", "lerobot")
    again = convert.open(tmp_path / "again").metadata
    ((statistics, robot),) = again.robots.values()
    assert (
        again.normalization == "quantile"
        and robot.name == "policy"
        and statistics.actions.q99.tolist() == [3.0] * 8
    )
