"""Wrong input gets one line with what is wrong, expected and found; some oddities are allowed."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from pi0_jax import convert
from pi0_jax.convert import paligemma, rules
from pi0_jax.convert.source import cast
from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.errors import InputError
from pi0_jax.models.paths import unflatten
from pi0_jax.models.pi0 import VARIANTS
from tests.checkpoints_of_others import (
    GOLDEN,
    UNEVEN,
    norm_stats,
    random_parameters,
    write_openpi,
)
from tests.small_disk import small_disk

JOINT = "model.paligemma_with_expert."
LAYER = f"{JOINT}paligemma.model.language_model.layers"
EMBEDDING = f"{JOINT}paligemma.model.language_model.embed_tokens.weight"
HEAD = f"{JOINT}paligemma.lm_head.weight"
KEYS, VALUES = f"{LAYER}.1.self_attn.k_proj.weight", f"{LAYER}.1.self_attn.v_proj.weight"
UP = f"{JOINT}gemma_expert.model.layers.2.mlp.up_proj.weight"
SIZES = {"head_dim": 8, "image_heads": 2}
OPTIONS = convert.Options(sizes=SIZES)
DROID = convert.Options(embodiment="droid")


@pytest.fixture
def tensors():
    return safetensors.numpy.load_file(GOLDEN / "lerobot_toy.safetensors")


@pytest.fixture
def theirs(tmp_path):
    return write_openpi(tmp_path / "a", random_parameters(UNEVEN))


def opened(tmp_path, tensors, options=OPTIONS):
    safetensors.numpy.save_file(tensors, tmp_path / "toy.safetensors")
    return convert.open(tmp_path / "toy.safetensors", options)


def refused(facts, function, *args):
    """Checks for an error of one line with these facts, split at |: field, expected, found."""
    with pytest.raises(InputError) as error:
        function(*args)
    text = str(error.value)
    assert "\n" not in text and [fact for fact in facts.split("|") if fact not in text] == [], text


# ---- tensors


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({KEYS: None}, f"toy.safetensors: {KEYS}|missing"),
        ({"model.value_head.weight": np.zeros(3)}, "model.value_head.weight|no rule"),
        ({UP: np.zeros((41, 16))}, f"{UP}|expert_mlp_dim 40|layers.0.mlp.down_proj|found 41"),
        ({UP: np.zeros(40)}, f"{UP}|expected 2 axes|[40]"),
        ({VALUES: "float16"}, f"k_proj.weight is float32|{VALUES} is float16"),
        ({"model.time_mlp_in.weight": np.zeros((16, 16))}, "model.time_mlp_in.weight|π0.5"),
        ({"model.x.lora_A.weight": np.zeros((16, 16))}, "model.x.lora_A.weight|LoRA"),
    ],
)  # fmt: skip
def test_a_wrong_tensor_is_named(tmp_path, tensors, changes, facts):
    for name, array in changes.items():
        if array is None:
            del tensors[name]
        elif isinstance(array, str):
            tensors[name] = tensors[name].astype(array)
        else:
            tensors[name] = array.astype(np.float32)
    refused(facts, opened, tmp_path, tensors)


@pytest.mark.parametrize(
    ("sizes", "facts"),
    [
        ({**SIZES, "head_dim": 16}, "k_proj.weight|num_kv_heads 1 x head_dim 16|found 8"),
        ({}, "num_kv_heads x head_dim = 8|--sizes=head_dim="),
        ({**SIZES, "depth": 4}, "depth is 3|4 as given"),
        ({"head_dim": 0}, "head_dim|at least 1|found 0"),
        ({"wide": 4}, "--sizes: wide|head_dim"),
    ],
)
def test_wrong_sizes_are_named(tmp_path, tensors, sizes, facts):
    refused(facts, opened, tmp_path, tensors, convert.Options(sizes=sizes))


def test_a_missing_part_is_named(tmp_path, tensors):
    left = {name: array for name, array in tensors.items() if "vision_tower" not in name}
    facts = "vision_model.embeddings.patch_embedding.weight, |more: missing"
    refused(facts, opened, tmp_path, left)


def test_weights_that_are_no_finite_floats_are_named(tmp_path, tensors):
    whole = {name: array.astype(np.int64) for name, array in tensors.items()}
    refused("toy.safetensors: model.|float32|found int64", opened, tmp_path, whole)
    path, where = "PaliGemma/llm/layers/attn/kv_einsum/w", "attn/kv_einsum/w layer 1"
    tensors[VALUES][0, :2] = np.nan, -np.inf
    source = opened(tmp_path, tensors)
    refused(f"toy.safetensors: |{where}|float32|found 2", source.layer, path, 1)
    tensors[VALUES][0, :2] = 0, 3.4e38  # bfloat16 would round this up
    narrow = cast(opened(tmp_path, tensors), np.dtype(ml_dtypes.bfloat16))
    refused(f"{where}|bfloat16|found 1", narrow.layer, path, 1)


@pytest.mark.parametrize("kept", [EMBEDDING, HEAD])
def test_a_tied_tensor_may_be_saved_under_either_name(tmp_path, tensors, kept):
    (other,) = {EMBEDDING, HEAD} - {kept}
    source = opened(tmp_path, {name: array for name, array in tensors.items() if name != other})
    embedding = source.read("PaliGemma/llm/embedder/input_embedding")
    np.testing.assert_array_equal(embedding, tensors[kept])


def test_a_copy_that_is_not_equal_is_said(tmp_path, tensors):
    assert opened(tmp_path, tensors).differing_copies() == []
    assert opened(tmp_path, tensors | {HEAD: tensors[HEAD] + 1}).differing_copies() == [HEAD]


def test_the_first_rule_that_matches_counts():
    table = [rules.rule("params/{path}/value", "{path}"), rules.rule("params/{path}", "{path}")]
    assert rules.match("params/a/b/value", table).path == "a/b"
    assert rules.match("params/a/b", table).path == "a/b"
    assert rules.match("opt/a", table) is None


def test_adarms_of_jax_is_refused_by_name(tmp_path):
    flat = random_parameters(UNEVEN)
    norm = "PaliGemma/llm/layers/pre_ffw_norm_1"
    flat[f"{norm}/Dense_0/kernel"] = np.zeros((3, 16, 48), np.float32)
    del flat[f"{norm}/scale"]
    refused(f"{norm}/Dense_0/kernel|π0.5", convert.open, write_openpi(tmp_path / "b", flat))


def test_lora_leaves_are_merged_only_where_asked_for(tmp_path, tensors, theirs):
    flat, rng = random_parameters(UNEVEN), np.random.default_rng(3)
    q, linear = "PaliGemma/llm/layers/attn/q_einsum", "PaliGemma/llm/layers/mlp_1/linear"
    shapes = {f"{q}/lora_a": (3, 6, 24, 2), f"{q}/lora_b": (3, 6, 2, 8),
              f"{linear}_lora_a": (3, 44, 2), f"{linear}_lora_b": (3, 2, 16)}  # fmt: skip
    factors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    a, b, c, d = factors.values()
    path = write_openpi(tmp_path / "lora", flat | factors, value_level=True)
    refused("q_einsum/lora_a/value|LoRA|--merge_lora=ALPHA/RANK", convert.open, path)
    source = convert.open(path, convert.Options(merge_lora=0.5))
    assert source.leaves.keys() == flat.keys()
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(source.read(f"{q}/w"), flat[f"{q}/w"] + 0.5 * np.einsum("lndr,lnrh->lndh", a, b))
    close(source.layer(linear, 1), flat[linear][1] + 0.5 * c[1] @ d[1])
    scale = convert.Options(merge_lora=1.0)
    refused("a: --merge_lora|found none", convert.open, theirs, scale)
    wrong = dataclasses.replace(OPTIONS, merge_lora=1.0)
    refused("--merge_lora|openpi's JAX|found lerobot", opened, tmp_path, tensors, wrong)
    other = write_openpi(tmp_path / "odd", flat | {f"{q}/lora_a": a})
    refused("q_einsum/lora_a|fit no weight", convert.open, other, scale)


# ---- files


@pytest.mark.parametrize(
    ("kept", "facts"),
    [
        (slice(4), "found 4 bytes"),
        (slice(5000), "truncated|header"),
        (slice(-1), "truncated|expected 255776|found 255775"),
        (None, "a safetensors file|another format"),
    ],
)
def test_a_truncated_safetensors_is_named(tmp_path, kept, facts):
    data = (GOLDEN / "lerobot_toy.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[kept] if kept else b"no such format, at all")
    refused(f"cut.safetensors: |{facts}", convert.open, tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        ({"data_offsets": [0, 8]}, "b: |at byte 8|found byte 0"),
        ({"data_offsets": [-8, 0]}, "b: |at byte 0|found byte -8"),
        ({"data_offsets": [8, 12]}, "b: |[2] of F32 is 8 bytes|found 4"),
        ({"shape": [3]}, "b: |[3] of F32 is 12 bytes|found 8"),
        ({"shape": [2.0]}, "safetensors header|'float' object"),
        ({"dtype": "U8"}, "b: |F64, F32, F16, BF16, I64|found U8"),
        ({"shape": [3], "data_offsets": [8, 20]}, "truncated|expected 178 bytes|found 174"),
    ],
)
def test_a_header_that_contradicts_its_file_is_named(tmp_path, entry, facts):
    right = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = {"a": right, "b": {**right, "data_offsets": [8, 16], **entry}}
    text = json.dumps(header).encode().ljust(150)
    data = len(text).to_bytes(8, "little") + text + bytes(16)
    (tmp_path / "odd.safetensors").write_bytes(data)
    refused(f"odd.safetensors: |{facts}", convert.open, tmp_path / "odd.safetensors")


def test_a_damaged_npz_is_named(tmp_path):
    np.savez(tmp_path / "whole.npz", **{"params/img/head/bias": np.arange(800.0)})
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(data[:-50])
    refused("cut.npz: |expected an npz", convert.open, tmp_path / "cut.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(8))
    refused("other.npz: |params/img|found weights", convert.open, tmp_path / "other.npz")
    data[600] ^= 1
    (tmp_path / "whole.npz").write_bytes(data)
    array = paligemma.read_arrays(tmp_path / "whole.npz")["params/img/head/bias"]
    refused("whole.npz: params/img/head/bias: |whole array", array.read, None)


def test_a_missing_shard_is_named(tmp_path, tensors):
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for shard, names in zip(shards, np.array_split(sorted(tensors), 3), strict=True):
        safetensors.numpy.save_file({name: tensors[name] for name in names}, tmp_path / shard)
    shutil.copy(GOLDEN / "lerobot_policy_directory" / "config.json", tmp_path)
    (tmp_path / shards[1]).unlink()
    refused(f"{shards[1]}|missing", convert.open, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00009-of-00009.safetensors"}}))
    refused("model-00009-of-00009.safetensors|missing", convert.open, tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": shards[0]}}))
    refused(f"{index}|a: |in no shard", convert.open, tmp_path)
    index.unlink()
    shutil.copy(tmp_path / shards[0], tmp_path / shards[1])
    refused(f"{shards[1]}: |is in |{shards[0]} too", convert.open, tmp_path)


def test_a_damaged_orbax_checkpoint_is_named(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(
            tmp_path / "a" / "params", {"params": unflatten(random_parameters(UNEVEN))}
        )
    for file in (tmp_path / "a" / "params" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused("a/params: params/|expected a whole array", convert.open(tmp_path / "a").tree)


def test_unknown_and_mixed_formats_are_named(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    refused("known format|found notes.txt", convert.open, tmp_path)
    refused("nothing-here: |found nothing", convert.open, tmp_path / "nothing-here")
    refused("notes.txt: |a directory, an npz or", convert.open, tmp_path / "notes.txt")
    (tmp_path / "params").mkdir()
    shutil.copy(GOLDEN / "lerobot_toy.safetensors", tmp_path / "model.safetensors")
    refused("one format|an Orbax checkpoint and safetensors", convert.open, tmp_path)
    (tmp_path / "else").mkdir()
    bert = {"bert.weight": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(bert, tmp_path / "else" / "model.safetensors")
    refused("a π0 or a PaliGemma|found bert.weight", convert.open, tmp_path / "else")


def test_a_place_that_cannot_be_written_or_is_full_is_named(tmp_path, theirs):
    below = theirs / "params" / "_METADATA" / "notes.txt" / "out"
    refused(f"{below}: |can be written", convert.run, theirs, below, "openpi_jax")
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        for to in ("openpi_jax", "openpi_pytorch"):
            refused("disk/out: |No space left", convert.run, theirs, disk / "out", to)
            assert not list(disk.iterdir())


# ---- what travels beside the weights


def policy_directory(tmp_path, tensors, **changes):
    """Writes LeRobot's own files around the toy's weights, whose model has 8 dimensions."""
    folder = tmp_path / "policy"
    shutil.copytree(GOLDEN / "lerobot_policy_directory", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_state_dim": 8, "max_action_dim": 8} | changes
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"type": "pi05"}, "type pi0,|found pi05"),
        ({"max_action_dim": 32}, "max_action_dim is 32|8 by the tensors"),
        ({"normalization_mapping": {"STATE": "MIN_MAX", "ACTION": "MIN_MAX"}},
         "normalization_mapping|MEAN_STD or QUANTILES|MIN_MAX"),
        ({"action_feature_names": ["a"]}, "action_feature_names|expected 8|found 1"),
    ],
)  # fmt: skip
def test_another_policy_type_or_dimension_is_refused(tmp_path, tensors, changes, facts):
    folder = policy_directory(tmp_path, tensors, **changes)
    refused(f"config.json: |{facts}", convert.open, folder, OPTIONS)


def test_missing_statistics_are_named(tmp_path, tensors, theirs):
    folder = policy_directory(tmp_path, tensors)
    (folder / "policy_preprocessor_step_6_normalizer_processor.safetensors").unlink()
    facts = "policy_preprocessor.json: |one normalizer_processor|found policy_pre"
    refused(facts, convert.open, folder, OPTIONS)
    shutil.rmtree(theirs / "assets")
    for to in ("openpi_pytorch", "lerobot", "ours"):
        refused("a: |robot's statistics|found none", convert.run, theirs, tmp_path / "out", to)
    alone = convert.Options(weights_only=True)
    report = convert.run(theirs, tmp_path / "out", "openpi_pytorch", alone)
    assert "no statistics: weights alone, to start training from" in report.notes


@pytest.mark.parametrize(
    ("to", "options", "facts"),
    [
        ("lerobot", convert.DEFAULTS, "robot droid: |embodiment|found none|--embodiment"),
        ("lerobot", convert.Options(embodiment="drone"), "embodiment 'drone'"),
        ("lerobot", convert.Options(embodiment="mobile_aloha"), "droid: state: |14|found 8"),
        ("ours", dataclasses.replace(DROID, tokenizer="small"), "tokenizer|at most 66|found 512"),
        ("ours", DROID, "tokenizer|--tokenizer=PATH"),
    ],
)
def test_what_a_policy_needs_is_asked_for(tmp_path, theirs, to, options, facts):
    refused(facts, convert.run, theirs, tmp_path / "out", to, options)
    assert not (tmp_path / "out").exists()


def test_of_several_robots_one_is_chosen(tmp_path, theirs):
    other = theirs / "assets" / "lab" / "franka"
    other.mkdir(parents=True)
    (other / "norm_stats.json").write_text(json.dumps({"norm_stats": norm_stats(8, seed=5)}))
    assert convert.open(theirs).metadata.robots.keys() == {"droid", "lab/franka"}
    facts = "--robot|expected one of droid, lab/franka|found none"
    refused(facts, convert.run, theirs, tmp_path / "o", "lerobot", DROID)
    chosen = dataclasses.replace(DROID, robot="lab/franka")
    report = convert.run(theirs, tmp_path / "o", "lerobot", chosen)
    assert "left out: the statistics of droid" in report.notes
    assert convert.open(tmp_path / "o").metadata.robots.keys() == {"lab/franka"}
    convert.run(theirs, tmp_path / "all", "openpi_jax")
    assert convert.open(tmp_path / "all").metadata.robots.keys() == {"droid", "lab/franka"}


def test_a_record_that_contradicts_the_checkpoints_own_is_refused(tmp_path, theirs):
    """LeRobot's directory says which actions are deltas; DROID's droid_velocity has none."""
    convert.run(theirs, tmp_path / "o", "lerobot", DROID)
    (tmp_path / "o" / "pi0_jax.json").unlink()
    sizes = {"head_dim": 8, "image_heads": 4}
    options = convert.Options(embodiment="droid_velocity", tokenizer="small", sizes=sizes)
    facts = "--embodiment=droid_velocity|expected 0, 1, 2, 3, 4, 5, 6 |found none"
    refused(facts, convert.run, tmp_path / "o", tmp_path / "p", "openpi_jax", options)
    droid = dataclasses.replace(options, embodiment="droid")
    convert.run(tmp_path / "o", tmp_path / "p", "openpi_jax", droid)


def test_statistics_that_are_not_of_the_record_are_refused_or_told(tmp_path):
    """A gripper from -1 to +1 is not DROID's; a gripper that never moves may be."""
    pico = dataclasses.replace(VARIANTS["pico"], action_dim=9)
    path = write_openpi(tmp_path / "a", random_parameters(pico))
    sizes = {"horizon": 4, "max_tokens": 12}
    options = convert.Options(embodiment="droid", tokenizer="small", sizes=sizes)

    def with_gripper(**values: float) -> None:
        known = norm_stats(8)
        for key, value in values.items():
            known["actions"][key][7] = value
        file = path / "assets" / "droid" / "norm_stats.json"
        file.write_text(json.dumps({"norm_stats": known}))

    with_gripper(q01=-1.0, q99=1.0, std=0.9, mean=1.0)
    facts = "droid: |action gripper|from 0 to 1|from -1 to 1"
    refused(facts, convert.run, path, tmp_path / "o", "ours", options)
    with_gripper(q01=1.0, q99=1.0, std=0.0, mean=1.0)
    notes = convert.run(path, tmp_path / "o", "ours", options).notes
    assert [note for note in notes if "action gripper" in note and "never moves" in note]


def test_files_that_contradict_each_other_are_named(tmp_path, theirs):
    convert.run(theirs, tmp_path / "o", "openpi_pytorch")
    file = tmp_path / "o" / "assets" / "droid" / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": norm_stats(8, seed=9)}))
    refused("pi0_jax.json: droid: state.mean", convert.open, tmp_path / "o")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"robots": {"droid": {"statistics": {}}}}, "state.mean"),
        ({"robots": {"droid": 3}}, "found 'int' object"),
        ({"sizes": {"heads": 3}}, "found nothing called 'heads'"),
        ({"tokenizer": 3}, "found argument should be a bytes-like"),
        ({"format": 7}, "expected format 2|found 7"),
        ({"format": 1, "run": [3]}, "expected what an export of format 1 writes|found 'list'"),
        ({"horizon": 49}, "horizon"),
        ({"robots": {}}, "robots: none|droid"),
    ],
)
def test_a_record_of_another_make_is_named(tmp_path, theirs, change, facts):
    convert.run(theirs, tmp_path / "o", "openpi_pytorch")
    file = tmp_path / "o" / "pi0_jax.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(f"{file}: |{facts}", convert.open, tmp_path / "o")


def test_a_dimension_without_spread_is_normalised_as_ours_is(tmp_path, theirs):
    """The ports divide by std + 1e-6: a joint that never moves would be noise times a million."""
    file = theirs / "assets" / "droid" / "norm_stats.json"
    record = json.loads(file.read_text())
    record["norm_stats"]["state"]["std"][2] = 0.0
    file.write_text(json.dumps(record))
    processor = "policy_preprocessor_step_6_normalizer_processor.safetensors"

    def spread(format: str, folder: Path) -> float:
        if format == "lerobot":
            return safetensors.numpy.load_file(folder / processor)["observation.state.std"][2]
        return read_statistics(folder)["state"]["std"][2]

    def read_statistics(folder: Path) -> dict:
        return json.loads((folder / "assets/droid/norm_stats.json").read_text())["norm_stats"]

    for format in ("lerobot", "openpi_jax", "openpi_pytorch"):
        out = tmp_path / format
        notes = convert.run(theirs, out, format, DROID).notes
        assert [note for note in notes if "droid: state[2]: hardly vary" in note], notes
        assert spread(format, out) == 1.0
        # our own is beside
        assert convert.open(out).metadata.robots["droid"].statistics.state.std[2] == 0.0
    # An export of before held it as it is; another's statistics, of an unknown robot, pass through.
    (out / "assets/droid/norm_stats.json").write_text(json.dumps(record))
    assert convert.open(out).metadata.robots["droid"].statistics.state.std[2] == 0.0
    notes = convert.run(theirs, tmp_path / "through", "openpi_pytorch").notes
    assert read_statistics(tmp_path / "through")["state"]["std"][2] == 0.0
    assert not [note for note in notes if "hardly vary" in note]


@pytest.mark.parametrize("format", ["lerobot", "openpi_jax", "openpi_pytorch"])
def test_an_angle_that_turns_is_told_where_the_port_reads_plain_numbers(tmp_path, theirs, format):
    droid = EMBODIMENTS["droid"]
    state, actions = (
        tuple(
            dataclasses.replace(dim, periodic=True) if dim.name == "joint_6" else dim
            for dim in dims
        )
        for dims in (droid.state, droid.actions)
    )
    options = dataclasses.replace(
        DROID, embodiment=dataclasses.replace(droid, state=state, actions=actions)
    )
    told = [
        note for note in convert.run(theirs, tmp_path / "o", format, options).notes
        if "joint_6 turns" in note
    ]  # fmt: skip
    assert len(told) == 2, told
    assert "action joint_6" in told[0]
    assert "state joint_6" in told[1] and "[-3.14159, 3.14159) rad" in told[1]


def with_statistics(folder, change):
    """Changes the statistics of both processors of a policy directory."""
    for file in folder.glob("*normalizer_processor.safetensors"):
        values = safetensors.numpy.load_file(file)
        safetensors.numpy.save_file(values | change(values), file)
    return folder


def test_statistics_that_no_data_give_are_named(tmp_path, tensors):
    folder = policy_directory(tmp_path, tensors)
    with_statistics(folder, lambda values: {"action.std": -values["action.std"]})
    refused("policy: action.std[0]: |at least zero|found -", convert.open, folder, OPTIONS)


def test_percentiles_travel_and_a_port_without_them_is_warned_of(tmp_path, tensors):
    mapping = {"STATE": "QUANTILES", "ACTION": "QUANTILES"}
    folder = policy_directory(tmp_path, tensors, normalization_mapping=mapping)
    ends = {"q01": np.full(8, -2, np.float32), "q99": np.full(8, 3, np.float32)}
    parts = ("action", "observation.state")
    added = {f"{part}.{key}": values for part in parts for key, values in ends.items()}
    with_statistics(folder, lambda _: added)
    report = convert.run(folder, tmp_path / "openpi", "openpi_jax", OPTIONS)
    assert [note for note in report.notes if note.startswith("warning: normalised by percentiles")]
    convert.run(tmp_path / "openpi", tmp_path / "again", "lerobot")
    again = convert.open(tmp_path / "again").metadata
    ((statistics, robot),) = again.robots.values()
    assert again.normalization == "quantile" and robot.name == "policy"
    assert statistics.actions.q99.tolist() == [3.0] * 8
