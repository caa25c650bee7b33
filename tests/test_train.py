"""Training runs end to end on real TFDS files.

The tests check what the workdir holds, a policy from the directory alone, and refusals.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pi0_jax import checkpoints, convert
from pi0_jax.errors import InputError
from pi0_jax.models.paths import flatten
from pi0_jax.policy import Policy
from pi0_jax.report.run_page import write_report
from pi0_jax.train.config import RunConfig
from pi0_jax.train.loop import train
from pi0_jax.train.metrics import METRICS_FILE, read_metrics
from pi0_jax.train.state import named_out_of_memory
from tests import training
from tests.own_process import python, run
from tests.step_data import reach_config
from tests.tiny_data import write_reach
from tests.training import TINY, arrays, command, losses, saved_steps, validations


def tiny_config(data: Path, **changes) -> RunConfig:
    return reach_config(**TINY | {"data_dir": str(data)} | changes)


data_dir = training.data_dir


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory) -> Path:
    """Returns the workdir of an uninterrupted run of the real command."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "said").write_text(run(command(data_dir, workdir)).stdout)
    return workdir


def test_what_is_said_before_the_first_step(finished):
    said = (finished / "said").read_text()
    (parameters,) = re.findall(r"  ([\d,]+) parameters, of which \1 are trained\n", said)
    size = 4 * int(parameters.replace(",", "")) / 1e6  # float32
    (together,) = re.findall(
        r"MB per device: parameters (\S+), gradients \1, optimizer (\S+), moving average \1; (\S+) in all",
        said,
    )
    assert [float(part) for part in together] == pytest.approx([size, 2 * size, 5 * size], abs=0.06)
    ((state, outputs),) = re.findall(
        r"the step as compiled, MB per device: arguments (\S+), outputs beside them (\S+), temporaries \S+; \S+ TFLOP",
        said,
    )
    # parameters, two moments, the average; and a batch
    assert float(state) == pytest.approx(4 * size, rel=0.2)
    assert float(outputs) == 0.0  # the new state takes the old one's place


def test_the_workdir_says_what_happened(finished):
    lines = read_metrics(finished)
    assert {
        "loss", "loss/reach_arm3", "gradient_norm", "parameter_norm", "skipped", "learning_rate",
        "steps_per_second", "samples_per_second", "data_wait_share", "model_tflops_per_second",
    } <= set(lines[0])  # fmt: skip
    assert lines[0]["loss/reach_arm3"] == pytest.approx(lines[0]["loss"], rel=1e-6)
    last = [line for line in lines if "validation/loss" in line][-1]
    assert {f"validation/reach_arm3/error/joint_{i}" for i in range(3)} <= set(last)
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    assert saved_steps(finished) == [8, 12]


def test_a_policy_opens_from_the_directory_alone(finished, tmp_path, data_dir):
    step = finished / "checkpoints" / "12"
    moved = tmp_path / "elsewhere"
    os.symlink(step, moved)
    policy = Policy.open(moved)
    rng = np.random.default_rng(0)
    observation = {
        "images": {
            camera: rng.integers(0, 256, (48, 64, 3), np.uint8) for camera in ("base", "wrist")
        },
        "state": np.float32([0.1, -0.2, 0.0]),
        "prompt": "reach block 1",
    }
    chunks = policy.act([observation])
    assert chunks.shape == (1, 5, 3) and chunks.dtype == np.float32 and np.isfinite(chunks).all()
    np.testing.assert_array_equal(chunks, Policy.open(finished).act([observation]))
    assert np.any(policy.act([observation], [1]) != chunks)
    pair = policy.act([observation, observation], [0, 1])
    np.testing.assert_allclose(pair[0], chunks[0], atol=1e-5)
    noise = np.zeros((1, 5, 6), np.float32)
    np.testing.assert_array_equal(
        policy.act([observation], noise=noise), policy.act([observation], [7], noise=noise)
    )
    with pytest.raises(InputError, match="noise has shape"):
        policy.act([observation], noise=noise[:, :2])
    with pytest.raises(InputError, match="robot 'reach_arm9': .*reach_arm3"):
        policy.act([observation], robot="reach_arm9")


def test_without_a_moving_average_a_policy_runs_the_parameters(data_dir, tmp_path):
    """The numbers are those of a run whose average forgets everything at once."""
    for name, decay in (("none", 0.0), ("short", 1e-30)):
        train(
            tiny_config(data_dir, ema_decay=decay, steps=3, warmup_steps=1, validate_every=3),
            tmp_path / name,
        )
    assert losses(tmp_path / "none") == losses(tmp_path / "short") and validations(
        tmp_path / "none"
    ) == validations(tmp_path / "short")
    trained = arrays(tmp_path / "none", 3, "params")
    opened = flatten(Policy.open(tmp_path / "none").params)
    converted = convert.open(str(tmp_path / "none"))
    assert opened.keys() == trained.keys() == converted.leaves.keys()
    for path, array in trained.items():
        np.testing.assert_array_equal(opened[path], array, err_msg=path)
        np.testing.assert_array_equal(converted.read(path), array, err_msg=path)


def test_a_checkpoint_is_rolled_out_and_reported(data_dir, finished, tmp_path):
    """The real commands run on the real simulator, and write the table, a GIF and the page."""
    evaluation, report = tmp_path / "evaluation", tmp_path / "report"
    command = ("-m", "launch.evaluate", f"--checkpoint={finished}", f"--output={evaluation}")
    flags = ("--episodes=3", "--parallel=2", "--record=1", "--conditions=right,untrained")
    done = python(*command, "--robots=reach_arm3", *flags)
    assert "reach_arm3   untrained  all" in done.stdout
    rows = json.loads((evaluation / "evaluation.json").read_text())["rows"]
    assert [row["episodes"] for row in rows if row["group"] == "all"] == [3, 3]

    page = write_report(finished, evaluation, report, data_dir=str(data_dir), frames=2)
    text = page.read_text()
    assert "12 of 12 steps" in text
    for name in ("curves.png", "chunk-0.png", "chunk-1.png", "rollouts/reach_arm3-right-0.gif"):
        assert name in text
        with Image.open(report / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10

    # beside the evaluation, which stays
    write_report(finished, evaluation, evaluation, data_dir=str(data_dir), frames=1)
    assert {path.name for path in evaluation.iterdir()} == {
        "chunk-0.png", "curves.png", "evaluation.json", "index.html", "rollouts"
    }  # fmt: skip


def test_evaluation_refuses_what_it_does_not_know(finished):
    for flag, message in (
        ("--robots=reach_arm9", "robot 'reach_arm9'"),
        ("--conditions=left", "'left' is unknown"),
    ):
        command = ("-m", "launch.evaluate", f"--checkpoint={finished}", "--output=/nowhere")
        assert message in python(*command, flag, status=2).stderr.splitlines()[-1]


def test_training_again_is_nothing_to_do(data_dir, finished, capsys):
    assert (finished / "said").read_text().splitlines()[-1].startswith("all 12 steps are done")
    before = (finished / METRICS_FILE).read_text()
    train(tiny_config(data_dir), finished)
    assert "\nnothing to do: all 12 steps are done" in capsys.readouterr().out
    assert (finished / METRICS_FILE).read_text() == before


def test_a_workdir_of_another_config_is_refused(data_dir, finished):
    with pytest.raises(InputError, match=r"horizon: 3 now, 5 in .*; learning_rate: 0.1 now"):
        train(tiny_config(data_dir, horizon=3, learning_rate=0.1), finished)


def test_a_conversion_is_no_run_to_go_on_with(data_dir, finished, tmp_path):
    written = tmp_path / "converted"
    convert.run(str(finished), str(written), "ours")
    with pytest.raises(InputError, match=rf"12 has no optimizer.*initial_weights={written}"):
        train(tiny_config(data_dir), written)


def test_a_workdir_that_cannot_be_written_is_refused(data_dir, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for workdir, found in (
        (file, "File exists"),
        (file / "run", "Not a directory"),
        (Path("/proc"), "No such file or directory"),
    ):
        with pytest.raises(InputError, match=f"^workdir {workdir}: expected .*, found: {found}$"):
            train(tiny_config(data_dir), workdir)


def test_data_that_changed_since_the_checkpoint_are_refused(finished, tmp_path):
    write_reach(tmp_path, lengths=(7,) * 8)
    with pytest.raises(InputError, match="dataset reach_arm3: the digest .* of step 12"):
        train(tiny_config(tmp_path), finished)


def test_a_checkpoint_of_another_variant_is_refused(finished, tmp_path):
    """The first differing leaves are named."""
    step = tmp_path / "5"
    os.symlink(finished / "checkpoints" / "12" / "ema", tmp_path / "ema")
    description = tmp_path / "description"
    description.mkdir()
    for file in (finished / "checkpoints" / "12" / "description").iterdir():
        content = file.read_text()
        if file.name == "metadata":
            record = json.loads(content)
            record["policy"]["variant"] = "nano"
            del record["manifest"]  # as of a time before there was one: its digests are others now
            content = json.dumps(record)
        (description / file.name).write_text(content)
    with pytest.raises(InputError, match=r"another model: .*PaliGemma/\S+: expected .*found"):
        Policy.open(tmp_path)
    assert not step.exists()


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        Policy.open(tmp_path)


def test_a_half_written_checkpoint_is_not_taken_for_one(finished, tmp_path):
    for name in ("checkpoints/8", "checkpoints/12.orbax-checkpoint-tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.symlink(finished / "checkpoints" / "8", tmp_path / name)
    assert checkpoints.find(tmp_path).name == "8"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=12), "config.batch_size 12 is not a multiple of data x fsdp = 8"),
        (dict(datasets=("reach_arm7",)), "dataset 'reach_arm7' is unknown"),
        (dict(action_dim=2), r"reach_arm3 has 3 state dimensions, the model 2 \(action_dim\)"),
        (
            dict(max_tokens=4),
            "dataset reach_arm3: 2 of 2 prompts .* config.max_tokens, 4; the longest has .",
        ),
        (
            dict(tokenizer="/nowhere/paligemma.model"),
            "tokenizer model not found: /nowhere/paligemma.model",
        ),
        (dict(data_dir="/nowhere"), "/nowhere"),
        (
            dict(initial_rules=(("img/", "fresh"),)),
            "config.initial_rules: expected config.initial_weights .* found none",
        ),
        (
            dict(keep_best=1, save_every=6, keep_best_metric="loss"),
            "keep_best_metric is 'loss'; expected one of validation/loss, validation/r",
        ),
    ],
    ids=lambda x: str(x)[:40],
)
def test_what_cannot_be_trained_is_refused_first(data_dir, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(tiny_config(data_dir, **changes), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_what_is_odd_but_allowed_is_told_before_the_run(data_dir, tmp_path, capsys, caplog):
    train(tiny_config(data_dir, frozen=("img/",), horizon=4, steps=1, warmup_steps=0), tmp_path)
    told = [r for r in caplog.records if r.name == "absl" and r.levelname == "WARNING"]
    (warning,) = (record.getMessage() for record in told)
    assert warning.startswith("config.frozen without config.initial_weights: ")
    before = capsys.readouterr().out.partition("the step as compiled")[0]
    assert re.search(r"\n  reach_arm3: rollouts execute 5 steps .* config.horizon 4\n", before)


def test_one_episode_is_trained_on_without_validation(tmp_path, capsys):
    write_reach(tmp_path / "data", lengths=(6,))
    run = tiny_config(
        tmp_path / "data", horizon=4, steps=2, warmup_steps=0, validate_every=1, save_every=2
    )
    train(run, tmp_path / "run")
    said = capsys.readouterr().out.partition("the step as compiled")[0]
    assert "\n  reach_arm3: no frame is held out: " in said
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    assert not any(name.startswith("validation") for line in lines for name in line)
    with pytest.raises(InputError, match="keep_best_metric .* held-out frames, found none"):
        train(dataclasses.replace(run, keep_best=1, save_every=1), tmp_path / "best")


@pytest.mark.slow
def test_out_of_memory_is_one_line_that_says_what_helps(data_dir, tmp_path):
    """The step's attention among a hundred thousand tokens takes terabytes."""
    found = r"out of memory: RESOURCE_EXHAUSTED: Out of memory allocating \d{12,} bytes"
    helps = r"config.accumulate above 1, remat 'full' \(is 'none'\), batch_size below 8; .*"
    with pytest.raises(InputError, match=rf"^{found}\. .*{helps}$"):
        train(tiny_config(data_dir, max_tokens=100_000), tmp_path)


def test_only_a_lack_of_memory_is_named_so(data_dir):
    run = tiny_config(data_dir, remat="full")
    with (
        pytest.raises(InputError, match=r"config.accumulate above 1, batch_size below 8"),
        named_out_of_memory(run),
    ):
        jnp.zeros(1 << 45).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="^INTERNAL"), named_out_of_memory(run):
        jax.jit(
            lambda: jax.pure_callback(lambda: 1 // 0, jax.ShapeDtypeStruct((), jnp.float32))
        )().block_until_ready()


def test_an_unknown_config_field_ends_in_one_line(data_dir, tmp_path):
    ended = run([*command(data_dir, tmp_path), "--config.bach_size=3"], status=2)
    assert "bach_size" in ended.stderr.splitlines()[-1]
