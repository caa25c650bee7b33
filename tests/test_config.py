"""Every recipe is a config of a run; every mistake in one is named."""

import ast
import dataclasses
import json
import re
import runpy
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from pi0_jax import fields, policy_config
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import VARIANTS
from pi0_jax.train import config
from pi0_jax.train.config import RunConfig

SIZES = dict(
    vision=dict(image_size=32, patch_size=16, width=8, depth=2, mlp_dim=16, num_heads=2),
    gemma=dict(
        experts=(dict(width=8, mlp_dim=16), dict(width=16, mlp_dim=24)),
        depth=2, num_heads=2, num_kv_heads=1, head_dim=8, vocab_size=512,
    ),
)  # fmt: skip
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("[!_]*.py"))


def modes(path: Path) -> tuple[str, ...]:
    """Returns what may follow the file's name and a colon; "" stands for nothing."""
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
def test_a_recipe_states_nothing_that_the_run_does_not_do(path, mode):
    """Every field of the page is a field of the run, with the page's value.

    The exceptions stand for a mixture or for no weights.
    """
    stated = load(path, mode)
    assert isinstance(stated, ConfigDict)
    run = config.from_mapping(stated.to_dict())
    assert set(stated) == fields.names(RunConfig)
    given = {"datasets", "weights", "frames_power"} if stated.mixture else {"weights"}
    assert {
        name: value for name, value in dataclasses.asdict(run).items() if name not in given
    } == {name: value for name, value in stated.to_dict().items() if name not in given}


@by_name
def test_a_recipe_states_only_what_differs_from_the_defaults(path, mode):
    code = ast.parse(path.read_text())
    usual = fields.defaults(RunConfig)
    for node in ast.walk(code):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            name = node.targets[0].attr
            assert name in usual, name
            if isinstance(node.value, ast.Constant | ast.Tuple):
                assert ast.unparse(node.value) != repr(usual[name]), name


@by_name
def test_every_config_file_takes_another_mixture(path, mode):
    """A config file's own datasets, if there are any, are to be taken away by hand."""
    stated = load(path, mode)
    stated.mixture = "oxe_magic_soup"
    if stated.datasets:
        with pytest.raises(InputError, match=r"^config\.mixture .* expected config\.datasets"):
            config.from_mapping(stated.to_dict())
    stated.update(datasets=(), weights=(), keep_empty_language=())
    run = config.from_mapping(stated.to_dict())
    assert (len(run.datasets), run.frames_power) == (25, 1.0)
    assert run.weights[:2] == (0.54087122203, 0.8341046294)


def test_a_run_survives_json(values):
    run = config.from_mapping({**values, "variant": SIZES})
    assert config.from_mapping(json.loads(json.dumps(config.to_json(run)))) == run


def test_an_unknown_field_is_named_with_its_neighbour(values):
    for wrong, message in (
        (
            {"lerning_rate": 1e-3},
            r"^config\.lerning_rate is unknown; did you mean learning_rate\?$",
        ),
        ({"mesh": {"data": 1, "fdsp": 1}}, r"^config\.mesh\.fdsp is unknown; did you mean fsdp\?$"),
        ({"xyzzy": 1}, r"^config\.xyzzy is unknown$"),
    ):
        with pytest.raises(InputError, match=message):
            config.from_mapping(values | wrong)


def test_missing_fields_are_named():
    lora = (dict(path="llm/layers/mlp"),)
    with pytest.raises(InputError) as error:
        config.from_mapping(config.defaults().to_dict() | {"lora": lora})
    assert error.value.args == (
        "config.lora[0] lacks rank, alpha",
        "config lacks data_dir",
        "config.datasets is empty; expected the names of datasets, or config.mixture",
    )


def test_a_page_names_its_data_and_no_more():
    page = config.defaults()
    page.data_dir, page.datasets = "data", ("my_robot", "its_twin")
    run = config.from_mapping(page.to_dict())
    assert (run.weights, run.variant, run.steps) == ((1.0, 1.0), "pi0", 30_000)
    assert run == config.from_mapping({"data_dir": "data", "datasets": ["my_robot", "its_twin"]})


def test_every_field_can_be_set_by_a_flag(tmp_path):
    """Fields that a recipe does not mention, and fields without a default, can be set too."""
    recipe = tmp_path / "mine.py"
    recipe.write_text("from pi0_jax.train import config\nget_config = config.defaults\n")
    stated = fields.defaults(RunConfig) | {"data_dir": "data", "datasets": ("a",), "steps": 2000}
    nested = {"own_datasets", "mesh"}
    texts = [
        f"--config.{name}={value!r}" if isinstance(value, tuple) else f"--config.{name}={value}"
        for name, value in stated.items()
        if name not in nested
    ]
    argv = ["program", f"--config={recipe}", *texts, "--config.mesh.fsdp=4"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    assert config.from_mapping(values.config.to_dict()) == config.from_mapping(
        stated | {"mesh": {"fsdp": 4}}
    )


def test_all_mistakes_are_named_together():
    """Mistakes of types, ranges and names are named, also nested ones and contradictions."""
    page = config.defaults()
    page.data_dir, page.datasets, page.weights = "data", ("a", "b"), (1.0,)
    page.steps, page.b2, page.lerning_rate = "many", 2.0, 1e-3
    page.variant = dict(vision=SIZES["vision"], gemma={**SIZES["gemma"], "depth": "two"})
    page.save_every, page.keep_every = 4, 6
    with pytest.raises(InputError) as error:
        config.from_mapping(page.to_dict())
    assert error.value.args == (
        "config.lerning_rate is unknown; did you mean learning_rate?",
        "config.variant.gemma.depth is 'two'; expected int",
        "config.steps is 'many'; expected int",
        "config.b2 is 2.0; expected a number in [0, 1)",
        "config.weights has 1 entries for 2 datasets",
        "config.keep_every is 6; expected a multiple of save_every (4), or 0",
    )
    assert str(error.value).splitlines() == list(error.value.args)


def test_sizes_stand_where_a_variants_name_does(values):
    page = config.defaults()
    page.update(values)
    page.variant = SIZES
    model = config.from_mapping(page.to_dict()).variant
    assert (model.vision.width, model.gemma.experts[1].mlp_dim) == (8, 24)
    page.variant = 3
    with pytest.raises(InputError, match=r"^config\.variant is 3; expected str or fields vision"):
        config.from_mapping(page.to_dict())


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
        ("data_dir", None, "config lacks data_dir"),
        ("datasets", "reach_arm3", "config.datasets is 'reach_arm3'; expected a tuple"),
        ("datasets", ("reach_arm3", 4), "config.datasets[1] is 4; expected str"),
        ("mesh", 8, "config.mesh is 8; expected fields data, fsdp, tensor"),
        ("dtype", "float16", "config.dtype is 'float16'; expected one of float32, bfloat16"),
        ("normalization", "minmax", "config.normalization is 'minmax'; expected one of zscore, quantile"),
        ("variant", "pi1", f"config.variant 'pi1' is unknown; the variants are {', '.join(VARIANTS)}"),
        ("datasets", (), "config.datasets is empty"),
        ("weights", (1.0,), "config.weights has 1 entries for 2 datasets"),
        ("weights", (1.0, 0.0), "config.weights is (1.0, 0.0); expected positive numbers"),
        ("warmup_steps", 9999, "config.warmup_steps is 9999; expected at least 0 and less than steps (2000)"),
        ("warmup_steps", -1, "config.warmup_steps is -1; expected a number of at least 0"),
        ("end_learning_rate", -1e-5, "config.end_learning_rate is -1e-05; expected a number of at least 0"),
        ("weight_decay", -1.0, "config.weight_decay is -1.0; expected a number of at least 0"),
        ("b2", 1.0, "config.b2 is 1.0; expected a number in [0, 1)"),
        ("ema_decay", 1.0, "config.ema_decay is 1.0; expected a number in [0, 1)"),
        ("keep_empty_language", ("bridge",), "config.keep_empty_language has 'bridge'; expected some of config.datasets and"),
        ("keep_every", 700, "config.keep_every is 700; expected a multiple of save_every (500), or 0"),
        ("keep_best", -1, "config.keep_best is -1; expected a number of at least 0"),
        ("validation_frames", -1, "config.validation_frames is -1; expected a number of at least 0"),
        ("skip_nonfinite", -1, "config.skip_nonfinite is -1; expected a number of at least 0"),
        *(
            (field, 0, f"config.{field} is 0")
            for field in (
                "loader_threads", "prefetch_batches", "action_dim", "horizon", "max_tokens", "draws", "sampling_steps", "batch_size",
                "steps", "learning_rate", "eps", "clip_norm", "log_every", "validate_every", "save_every",
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
    with pytest.raises(InputError, match=r"^config\.validate_every is 100; .*save_every \(500\)"):
        config.from_mapping(values | {"keep_best": 1, "validate_every": 100})
    assert config.from_mapping(values | {"keep_best": 1, "validate_every": 1000}).keep_best == 1


def test_whole_numbers_do_for_floats_and_lists_for_tuples(values):
    run = config.from_mapping(values | {"clip_norm": 1, "weights": [1, 2]})
    assert run.clip_norm == 1.0
    assert type(run.clip_norm) is float
    assert run.weights == (1.0, 2.0)


def test_the_model_is_the_variant_at_the_runs_sizes(values):
    sizes = dict(variant="pico", action_dim=7, horizon=3, max_tokens=9)
    run = config.from_mapping(values | sizes)
    model = policy_config.model_config(run)
    assert (model.action_dim, model.horizon, model.max_tokens) == (7, 3, 9)
    assert (model.vision, model.gemma) == (VARIANTS["pico"].vision, VARIANTS["pico"].gemma)
    slots, size = ("base_0_rgb",), VARIANTS["pico"].vision.image_size
    fields = slots, size, 7, 9, "zscore", 0.0, False, False, ()
    assert policy_config.layout(run, slots) == fields


def test_differing_fields_are_those_that_decide_numbers(values):
    ours = config.from_mapping(values)
    elsewhere = dataclasses.replace(
        ours, data_dir="/elsewhere", log_every=1, mesh=config.MeshConfig(1, 8, 1)
    )
    assert config.differing_fields(ours, elsewhere) == []
    other = dataclasses.replace(elsewhere, seed=1, weights=(1.0, 3.0))
    assert sorted(config.differing_fields(ours, other)) == [
        "seed: 0 now, 1 in the checkpoint",
        "weights: (1.0, 1.0) now, (1.0, 3.0) in the checkpoint",
    ]


def test_what_may_change_when_a_run_goes_on():
    """Some of these fields may also differ between the processes of a run."""
    assert {
        "data_dir", "index_dir", "skip_bad_episodes", "mixture", "loader_threads", "prefetch_batches", "mesh", "accumulate",
        "log_every", "validate_every", "save_every", "keep_checkpoints", "keep_every", "keep_best", "keep_best_metric",
        "skip_nonfinite",
    } == config.FREE_FIELDS  # fmt: skip
    per_process = {"data_dir", "index_dir", "loader_threads", "prefetch_batches"}
    assert fields.names(RunConfig, "per_process") == per_process


# ---- what is said of configs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grown:
    """Is a record to which `colour` and `size` came later."""

    name: str = fields.field(doc="Whose it is.", section="First")
    count: int = fields.field(3, "How many there are.", positive=True)
    colour: str = fields.field("red", "Its colour.", before="grey", section="Second", free=True)
    size: float = fields.field(1.0, "Its size, metres.")


def test_a_stored_record_gets_what_was_done_before_a_field_was_there():
    assert fields.read(Grown, {"name": "a"}, "page") == Grown(name="a", colour="red")
    assert fields.read(Grown, {"name": "a"}, "run/1", stored=True) == Grown(name="a", colour="grey")
    with pytest.raises(InputError, match=r"^run/1\.colr is unknown; a newer version"):
        fields.read(Grown, {"name": "a", "colr": "red"}, "run/1", stored=True)


def test_a_field_is_explained_by_type_default_and_doc():
    assert fields.explain(Grown).splitlines() == [
        "",
        "First",
        "  name                  str, must be stated",
        "                        Whose it is.",
        "  count                 int = 3",
        "                        How many there are.",
        "",
        "Second",
        "  colour                str = 'red'",
        "                        Its colour.",
        "  size                  float = 1.0",
        "                        Its size, metres.",
    ]


def test_every_field_is_explained():
    text = config.explain()
    for entry in dataclasses.fields(RunConfig):
        assert re.search(rf"^  {entry.name}\b", text, re.MULTILINE)
        assert len(entry.metadata["doc"]) > 8
    assert max(map(len, text.splitlines())) <= 100


def test_a_run_says_its_config_and_what_is_not_the_default(values):
    text = config.describe(config.from_mapping(values))
    assert {"*steps 2000", "b1 0.9", "*draws 4", "seed 0"} <= set(re.split(r",\s+|\s{2,}", text))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("*") == 1 + sum(
        config.to_json(config.from_mapping(values))[name] != value
        for name, value in fields.defaults(RunConfig).items()
    )


def test_the_config_is_kept_in_the_workdir_and_never_replaced(values, tmp_path):
    first = config.from_mapping(values)
    config.write(first, tmp_path, None)
    config.write(first, tmp_path, (4, first))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    later = dataclasses.replace(first, log_every=1)
    config.write(later, tmp_path, (8, first))
    for name, run in (("config.json", first), ("config_8.json", later)):
        assert config.from_mapping(json.loads((tmp_path / name).read_text())) == run
