"""Every config file is whole; every mistake in one is named."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from pi0_jax import config
from pi0_jax.config import RunConfig
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import VARIANTS

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("[!_]*.py"))


def modes(path: Path) -> tuple[str, ...]:
    """What may follow the file's name and a colon; "" for nothing."""
    names = runpy.run_path(str(path))
    return names["MODES"] if "MODES" in names else ("",)


RECIPES = [(path, mode) for path in CONFIGS for mode in modes(path)]
by_name = pytest.mark.parametrize(
    ("path", "mode"), RECIPES, ids=[f"{path.stem}:{mode}".rstrip(":") for path, mode in RECIPES]
)


def load(path: Path, mode: str = "") -> ConfigDict:
    get_config = runpy.run_path(str(path))["get_config"]
    return get_config(mode) if mode else get_config()


@pytest.fixture
def values() -> dict:
    return load(next(path for path in CONFIGS if path.name == "reach.py")).to_dict()


@by_name
def test_every_config_file_sets_every_field(path, mode):
    """One that names a mixture leaves to it which datasets, at which weights."""
    stated = load(path, mode)
    assert isinstance(stated, ConfigDict)
    run = config.from_mapping(stated.to_dict())
    assert set(stated) == {field.name for field in dataclasses.fields(RunConfig)} | {"mixture"}
    given = {"mixture", "datasets", "weights", "frames_power"} if stated.mixture else {"mixture"}
    assert {
        name: value for name, value in dataclasses.asdict(run).items() if name not in given
    } == {name: value for name, value in stated.to_dict().items() if name not in given}


@by_name
def test_every_config_file_takes_another_mixture(path, mode):
    """Where it has datasets of its own, they are to be taken away by hand."""
    stated = load(path, mode)
    stated.mixture = "oxe_magic_soup"
    if stated.datasets:
        with pytest.raises(
            InputError,
            match=r"^config\.mixture is 'oxe_magic_soup', which has its own datasets; expected config\.datasets to be",
        ):
            config.from_mapping(stated.to_dict())
    stated.update(datasets=(), weights=(), keep_empty_language=())
    run = config.from_mapping(stated.to_dict())
    assert (len(run.datasets), run.weights[:2], run.frames_power) == (
        25,
        (0.54087122203, 0.8341046294),
        1.0,
    )


def test_a_run_survives_json(values):
    run = config.from_mapping(values)
    assert config.from_mapping(json.loads(json.dumps(config.to_json(run)))) == run


def test_an_unknown_field_is_named_with_its_neighbour(values):
    with pytest.raises(
        InputError, match=r"^config\.lerning_rate is unknown; did you mean learning_rate\?$"
    ):
        config.from_mapping(values | {"lerning_rate": 1e-3})
    with pytest.raises(InputError, match=r"^config\.mesh\.fdsp is unknown; did you mean fsdp\?$"):
        config.from_mapping(values | {"mesh": {"data": 1, "fdsp": 1, "tensor": 1}})
    with pytest.raises(InputError, match=r"^config\.xyzzy is unknown$"):
        config.from_mapping(values | {"xyzzy": 1})


def test_missing_fields_are_named(values):
    del values["seed"], values["steps"], values["mesh"]["tensor"]
    with pytest.raises(InputError, match=r"^config lacks seed, steps$"):
        config.from_mapping(values)
    with pytest.raises(InputError, match=r"^config\.mesh lacks tensor$"):
        config.from_mapping(values | {"seed": 0, "steps": 1000})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", "many", "config.steps is 'many'; expected int"),
        ("steps", 10.0, "config.steps is 10.0; expected int"),
        ("steps", True, "config.steps is True; expected int"),
        ("augment", 1, "config.augment is 1; expected bool"),
        ("learning_rate", "1e-3", "config.learning_rate is '1e-3'; expected float"),
        ("learning_rate", True, "config.learning_rate is True; expected float"),
        ("learning_rate", float("nan"), "config.learning_rate is nan; expected a finite number"),
        ("clip_norm", float("inf"), "config.clip_norm is inf; expected a finite number"),
        ("data_dir", None, "config.data_dir is None; expected str"),
        ("datasets", "reach_arm3", "config.datasets is 'reach_arm3'; expected a tuple"),
        ("datasets", ("reach_arm3", 4), "config.datasets[1] is 4; expected str"),
        ("mesh", 8, "config.mesh is 8; expected fields data, fsdp, tensor"),
        ("dtype", "float16", "config.dtype is 'float16'; expected one of float32, bfloat16"),
        ("normalization", "minmax", "config.normalization is 'minmax'; expected one of zscore, quantile"),
        ("variant", "pi1", f"config.variant 'pi1' is unknown; the variants are {', '.join(VARIANTS)}"),
        ("datasets", (), "config.datasets is empty"),
        ("weights", (1.0,), "config.weights has 1 entries for 2 datasets"),
        ("weights", (1.0, 0.0), "config.weights is (1.0, 0.0); expected positive numbers"),
        ("warmup_steps", 9999, "config.warmup_steps is 9999; expected at least 0 and less than steps (2400)"),
        ("warmup_steps", -1, "config.warmup_steps is -1; expected at least 0"),
        ("end_learning_rate", -1e-5, "config.end_learning_rate is -1e-05; expected a number of at least 0"),
        ("weight_decay", -1.0, "config.weight_decay is -1.0; expected a number of at least 0"),
        ("b2", 1.0, "config.b2 is 1.0; expected a number in [0, 1)"),
        ("ema_decay", 1.0, "config.ema_decay is 1.0; expected a number in [0, 1)"),
        ("keep_empty_language", ("bridge",), "config.keep_empty_language has 'bridge'; expected some of config.datasets and"),
        ("keep_every", 700, "config.keep_every is 700; expected a multiple of save_every (500), or 0"),
        ("keep_best", -1, "config.keep_best is -1; expected a number of at least 0"),
        ("skip_nonfinite", -1, "config.skip_nonfinite is -1; expected a number of at least 0"),
        *(
            (field, 0, f"config.{field} is 0")
            for field in (
                "loader_threads", "prefetch_batches", "action_dim", "horizon", "max_tokens", "draws", "sampling_steps", "batch_size",
                "steps", "learning_rate", "eps", "clip_norm", "log_every", "validate_every", "validation_frames", "save_every",
                "keep_checkpoints",
            )
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(values, field, value, message):
    with pytest.raises(InputError) as error:
        config.from_mapping(values | {field: value})
    assert str(error.value).startswith(message)


def test_the_best_are_chosen_among_what_is_saved(values):
    with pytest.raises(
        InputError,
        match=r"^config\.validate_every is 100; expected a multiple of save_every \(500\): keep_best chooses",
    ):
        config.from_mapping(values | {"keep_best": 1, "validate_every": 100})
    assert config.from_mapping(values | {"keep_best": 1, "validate_every": 1000}).keep_best == 1


def test_whole_numbers_do_for_floats_and_lists_for_tuples(values):
    run = config.from_mapping(values | {"clip_norm": 1, "weights": [1, 2]})
    assert run.clip_norm == 1.0
    assert type(run.clip_norm) is float
    assert run.weights == (1.0, 2.0)


def test_the_model_is_the_variant_at_the_runs_sizes(values):
    run = config.from_mapping(
        values | {"variant": "pico", "action_dim": 7, "horizon": 3, "max_tokens": 9}
    )
    model = config.model_config(run)
    assert (model.action_dim, model.horizon, model.max_tokens) == (7, 3, 9)
    assert (model.vision, model.gemma) == (VARIANTS["pico"].vision, VARIANTS["pico"].gemma)
    layout = config.layout(run, ("base_0_rgb",))
    assert layout == (
        ("base_0_rgb",),
        VARIANTS["pico"].vision.image_size,
        7,
        9,
        "zscore",
        0.0,
        False,
    )


def test_differing_fields_are_those_that_decide_numbers(values):
    ours = config.from_mapping(values)
    elsewhere = dataclasses.replace(
        ours, data_dir="/elsewhere", log_every=1, mesh=config.MeshConfig(1, 8, 1)
    )
    assert config.differing_fields(ours, elsewhere) == []
    other = dataclasses.replace(elsewhere, seed=1, weights=(1.0, 3.0))
    assert config.differing_fields(ours, other) == [
        "seed: 0 now, 1 in the checkpoint",
        "weights: (1.0, 1.0) now, (1.0, 3.0) in the checkpoint",
    ]


def test_free_fields_exist():
    assert {field.name for field in dataclasses.fields(RunConfig)} >= config.FREE_FIELDS
