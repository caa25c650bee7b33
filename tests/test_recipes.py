"""Every recipe in configs/ runs for three steps, on tiny real datasets and from tiny weights.

It is shrunken in size only.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.convert import tree
from pi0_jax.data.datasets import ROWS
from pi0_jax.data.oxe.soups import SOUPS
from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import parameter_shapes
from pi0_jax.policy_config import model_config
from pi0_jax.train import config
from pi0_jax.train.config import RunConfig
from pi0_jax.train.loop import train
from pi0_jax.train.metrics import read_metrics
from tests.checkpoints_of_others import random_parameters, write_big_vision, write_openpi
from tests.spec_data import write_from_spec
from tests.test_config import by_name, load
from tests.tiny_data import REACH_STEPS, reach_episodes, write_metaworld, write_reach
from tests.training import ROOT, saved_steps

ARRAY = REACH_STEPS["action"]
# These stand for all 26 datasets of π0's open mixture.
SOME = ("bridge_dataset", "droid", "toto")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Episodes of equal lengths, of which one is held out."""
    folder = tmp_path_factory.mktemp("data")
    # not idle; of 26 steps the last 10 are not drawn
    moving = np.arange(7 * 26).reshape(26, 7).tolist()
    droid = {
        "steps/action_dict/joint_velocity": np.sin(moving).tolist(),
        "episode_metadata/file_path": "a/success/b",
    }
    for spec, name, version, episodes in (
        ("bridge_orig", "bridge_dataset", "1.0.0", [{"steps/is_first": [True] + [False] * 8}] * 2),
        ("droid", "droid", "1.0.1", [droid] * 3),
        ("toto", "toto", "0.1.0", [{"steps/is_first": [True, False]}] * 2),
        *(
            (
                f"libero_{suite}_no_noops",
                f"libero_{suite}_no_noops",
                "1.0.0",
                [{"steps/is_first": [True, False, False]}] * 2,
            )
            for suite in ("spatial", "object", "goal", "10")
        ),
    ):
        assert version in ROWS[name].versions
        write_from_spec(folder, spec, episodes, tfds_name=name, version=version)
    for joints in (3, 4, 5):
        episodes = reach_episodes((5, 5))
        for step in (step for episode in episodes for step in episode["steps"]):
            step["observation"]["state"] = np.resize(step["observation"]["state"], joints)
            step["action"] = np.resize(step["action"], joints)
        vector = dataclasses.replace(ARRAY, shape=(joints,))
        steps = {
            **REACH_STEPS,
            "observation": {**REACH_STEPS["observation"], "state": vector},
            "action": vector,
        }
        write_reach(folder, name=f"reach_arm{joints}", steps=steps, episodes=episodes)
    drawn = np.random.default_rng(0).uniform(0, 1, (2, 5, 4))
    write_metaworld(folder, "metaworld_held", *((states, 1 - states) for states in drawn))
    return folder


TRAINING_FRAMES = {"bridge_dataset": 8, "droid": 32, "toto": 2}
# 8^0.43 = 2.445, 32^0.43 = 4.438, 2^0.43 = 1.347
PERCENT = {"bridge_dataset": 29.71, "droid": 53.92, "toto": 16.37}


def shrunken(run: RunConfig, data_dir: Path, weights: Path) -> RunConfig:
    """Returns the run in a small size, and without bfloat16, which is slow to compile for CPUs.

    The size is that of model, batch, chunk, prompt, numbers of steps and datasets.
    """
    datasets = SOME if run.mixture else run.datasets
    adaptive = model_config(run).adaptive
    few = dict(
        data_dir=str(data_dir), index_dir="", datasets=datasets, weights=(1.0,) * len(datasets), lanes=4, lane_megabytes=1,
        loader_threads=1, prefetch_batches=1, dtype="float32", variant="pi05_pico" if adaptive else "pico",
        action_dim=min(run.action_dim, 8), horizon=4, max_tokens=64 if adaptive else 12,
        tokenizer="small", draws=1, sampling_steps=2, batch_size=8, steps=3, warmup_steps=1, log_every=1, validate_every=3,
        validation_frames=2, save_every=3, keep_every=0, initial_weights="", mixture="",
        lora=tuple({**dataclasses.asdict(rule), "rank": 2} for rule in run.lora),
    )  # fmt: skip
    small = config.from_mapping({**config.to_json(run), **few})
    return dataclasses.replace(small, initial_weights=starting_weights(run, small, weights))


def starting_weights(run: RunConfig, small: RunConfig, folder: Path) -> str:
    """Writes a file of the kind that the recipe names, of the small model."""
    if not run.initial_weights:
        return ""
    flat = {path: 0.1 * array for path, array in random_parameters(model_config(small)).items()}
    if run.initial_weights.endswith(".npz"):
        return str(write_big_vision(folder / "pt.npz", flat))
    return str(write_openpi(folder / "pi0", flat))


@by_name
def test_a_recipe_runs(path, mode, data_dir, tmp_path, capsys):
    run = config.from_mapping(load(path, mode).to_dict())
    train(shrunken(run, data_dir, tmp_path), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert all(
        math.isfinite(value)
        for line in lines
        for name, value in line.items()
        if name in ("loss", "validation/loss")
    )
    assert saved_steps(tmp_path / "run") == [3]
    text = capsys.readouterr().out
    printed = {
        name: (float(share), int(frames))
        for name, share, frames in re.findall(r"(\w+): ([\d.]+)% of samples, (\d+) train", text)
    }
    if run.mixture:
        assert printed == {name: (PERCENT[name], TRAINING_FRAMES[name]) for name in SOME}
    else:
        assert {name: share for name, (share, _) in printed.items()} == dict.fromkeys(
            run.datasets, 100 / len(run.datasets)
        )
    assert ("starting weights" in text) == bool(run.initial_weights)


@by_name
def test_a_recipe_keeps_its_values(path, mode):
    """Its values stay, whatever becomes a default.

    A field that came after the list was written is not in it.
    """
    known = json.loads((ROOT / "tests" / "golden" / "recipes.json").read_text())
    run = config.from_mapping(load(path, mode).to_dict())
    values = json.loads(json.dumps(config.to_json(run)))
    expected = known[f"{path.stem}:{mode}"]
    assert {name: values[name] for name in expected} == expected


@by_name
def test_every_dataset_of_a_recipe_has_a_row(path, mode):
    run = config.from_mapping(load(path, mode).to_dict())
    for name in (*run.datasets, *run.statistics_only):
        robot = ROWS[name].embodiment
        assert max(len(robot.state), len(robot.actions)) <= run.action_dim


def test_the_open_mixture_is_the_papers():
    run = config.from_mapping(load(ROOT / "configs" / "pi0_open_pretrain.py").to_dict())
    assert run.frames_power == 0.43
    assert set(run.weights) == {1.0} and len(run.datasets) == 26
    assert set(SOUPS["oxe_magic_soup"].weights) | {"droid"} == set(run.datasets)
    # counted once, though it is in the soup and named beside it
    assert "bridge_dataset" in run.datasets


@by_name
def test_starting_weights_fit_the_full_model(path, mode):
    """What the recipe loads has the published shape, and the rest is the action expert.

    Shapes alone are looked at.
    """
    run = config.from_mapping(load(path, mode).to_dict())
    if not run.initial_weights:
        return
    assert run.variant in ("pi0", "pi05")
    found = flatten(parameter_shapes(model_config(run)))
    fresh = {
        leaf
        for leaf in found
        if any(
            re.search(pattern, leaf) for pattern, action in run.initial_rules if action == "fresh"
        )
    }
    backbone_only = run.initial_weights.endswith(".npz")
    assert fresh == (found.keys() - tree.BACKBONE_AXES.keys() if backbone_only else set())
    released = json.loads((ROOT / "tests" / f"published_{run.variant}_tree.json").read_text())
    published = {leaf: tuple(shape) for leaf, (shape, _) in released["tree"].items()}
    assert all(found[leaf].shape == published[leaf] for leaf in found.keys() - fresh)
    count = sum(math.prod(leaf.shape) for leaf in found.values())
    # of the published model, less unused dimensions
    of_actions = {"state_proj/kernel", "action_in_proj/kernel", "action_out_proj/kernel"}
    unused = (32 - run.action_dim) * (1024 * len(of_actions & published.keys()) + 1)
    assert count == released["parameters"] - unused
