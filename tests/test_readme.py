"""Every command and every Python block of the pages for users runs, or has a stand-in.

STORIES says for each page, in the order of its text, what is run. A command or a block runs as it
stands. Or it runs in miniature, with further flags or with other words in the place of some (DIR,
OPENPI, an address). A story runs in one empty folder outside the repository. What cannot run here
names the test, or the line of .ci/run, that stands in for it. A command that no story knows fails.
A command of a story fails, too, if its page no longer has it.

`python -m pytest -s tests/test_readme.py` prints what it runs.
"""

import ast
import contextlib
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.models.pi0 import VARIANTS
from tests import lerobot_data, policies
from tests.checkpoints_of_others import norm_stats, random_parameters, write_openpi
from tests.numpy_server import wait_for
from tests.spec_data import write_from_spec
from tests.test_droid import episode as successful
from tests.training import ROOT, environment

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(page.relative_to(ROOT).as_posix() for page in sorted(ROOT.glob("docs/**/*.md"))),
]

# Extraction. -------------------------------------------------------------------------------------

_COMMAND = re.compile(
    r"(\w+=\S+ )*((\S*/)?(python3?|pip|make|ruff|git|cd|export|source|bash|sh|uv|curl|gcloud|apt-get) "
    r"|launch/\w+\.|launch\.\w+ |pi0-\w)"
)
_EXPRESSION = "Policy.open("  # Python between backticks
_FUNCTION = re.compile(r"\w+\(\) \{ (?P<command>.*)")  # of a shell


def is_command(text: str) -> bool:
    function = _FUNCTION.match(text)
    return bool(_COMMAND.match(function["command"] if function else text))


def forms(command: str) -> list[str]:
    """Returns the forms of a command: `benchmark data|index` is two commands."""
    found = re.search(r" ((\w+\|)+\w+)", command)
    return [command.replace(found[1], one) for one in found[1].split("|")] if found else [command]


class Found(NamedTuple):
    name: str  # of a command, itself; of a block, "python: <heading>, <number>"
    code: str


def found_in(text: str) -> Iterator[Found]:
    """Yields the Python blocks and commands of a page.

    A directive of the site, such as ```{include}, is not one of them. tests/test_notebooks.py runs
    {code-cell}.

    Raises:
        ValueError: the page has a fenced block of another kind.
    """
    heading, number, prose, fence = "", 0, [], None
    for line in text.splitlines():
        if line.strip().startswith("```"):
            if fence is None:
                fence, block = line.strip()[3:], []
                if fence not in ("python", "diff") and not fence.startswith("{"):
                    raise ValueError(f"expected a block of python or diff, found {fence!r}")
                continue
            if fence == "python":
                number += 1
                yield Found(
                    f"python: {heading}, {number}", textwrap.dedent("\n".join(block)) + "\n"
                )
            fence = None
        elif fence is not None:
            block.append(line)
        elif line.startswith("#"):
            heading, number = line.lstrip("# "), 0
        elif line.startswith("    ") and is_command(line.strip()):
            command = line.partition("  #")[0].strip()
            yield from (Found(one, one) for one in forms(command))
        else:
            prose.append(line)
    for span in re.findall(r"`([^`]+)`", "\n".join(prose)):
        code = " ".join(span.split())
        if is_command(code) or code.startswith(_EXPRESSION):
            yield from (Found(one, one) for one in forms(code))


def contents(page: str) -> dict[str, str]:
    """Returns what a page has, by name; a command that it has twice is there once."""
    return dict(found_in((ROOT / page).read_text("utf-8")))


# What is done about each. ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """Is a command or block that is run.

    Attributes:
        name: the command, or "python: <heading>, <number>". A name that ends with "..." stands for
            the only command that begins so.
        flags: what is written behind the command.
        words: what is written in the place of some of its words. `{server}` is the address of the
            server that the story has started last.
        file: the name under which a block is saved; it is run from there.
        serves: whether it is a server; then the story goes on beside it.
        in_repository: whether it is run in the repository, and not in the story's folder.
    """

    name: str
    flags: str = ""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    file: str = "block.py"
    serves: bool = False
    in_repository: bool = False

    def command(self, found: str) -> str:
        if self.name.startswith("python: "):
            return f"python {self.file}"
        for word, other in self.words.items():
            assert word in found, f"{self.name}: expected {word!r} in it"
            found = found.replace(word, other)
        if found.startswith(_EXPRESSION):
            found = f"python -c 'from pi0_jax.policy import Policy; {found}'"
        return f"{found} {self.flags}".strip()


@dataclasses.dataclass(frozen=True)
class StandsIn:
    """Is a command that is not run here, and says why.

    Attributes:
        by: a test, as "tests/test_x.py::test_y", or a line of .ci/run.
    """

    name: str
    by: str
    why: str


@dataclasses.dataclass(frozen=True)
class Story:
    """Holds what is run one after the other in one folder.

    `before` puts into the folder what the page takes as given.
    """

    page: str
    steps: tuple[Run | StandsIn, ...]
    before: Callable[[Path], None] = lambda folder: None


def a_policy(folder: Path) -> None:
    policies.write_checkpoint(folder / "runs/reach/train", ["reach_arm3"], sampling_steps=2)


# Stands in for gym-pusht where that is not installed: its name, spaces and info, and a T that is
# never moved.
GYM_PUSHT = """
import gymnasium
import numpy as np


class PushT(gymnasium.Env):
    action_space = gymnasium.spaces.Box(0.0, 512.0, (2,), np.float32)
    observation_space = gymnasium.spaces.Dict(
        pixels=gymnasium.spaces.Box(0, 255, (96, 96, 3), np.uint8),
        agent_pos=gymnasium.spaces.Box(0.0, 512.0, (2,), np.float64),
    )

    def __init__(self, obs_type):
        assert obs_type == "pixels_agent_pos"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen(self.np_random.uniform(50, 450, 2)), {}

    def step(self, action):
        return self._seen(action.astype(np.float64)), 0.0, False, False, {"is_success": False}

    def _seen(self, place):
        return {"pixels": np.full((96, 96, 3), 255, np.uint8), "agent_pos": place}


gymnasium.register("gym_pusht/PushT-v0", PushT, max_episode_steps=300)
"""


def a_policy_of_a_third_environment(folder: Path) -> None:
    """Writes a policy DIR of the page's record, and gym-pusht's stand-in where it is needed."""
    names = {}
    exec(contents("docs/howto/benchmarks.md")["python: A third environment, 1"], names)
    record = names["FAMILY"].record
    policies.write_checkpoint(folder / "DIR", [record.name], record, sampling_steps=2)
    if find_spec("gym_pusht") is None:
        print("    gym-pusht is not installed: a stand-in has its name")
        (folder / "gym_pusht.py").write_text(GYM_PUSHT)
        about = folder / "gym_pusht-0.1.8.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gym-pusht\nVersion: 0.1.8\n")


def public_datasets(folder: Path) -> None:
    bridge = {"steps/is_first": [True, False, False]}
    write_dataset(folder / "public", "bridge_dataset", "bridge_orig", bridge)
    write_dataset(folder / "public", "droid", "droid", successful("." * 20))


def write_dataset(data_dir: Path, name: str, spec: str, episode: Mapping[str, Any]) -> None:
    """Writes two episodes, in files of the published structure."""
    version = ROWS[name].versions[0]
    write_from_spec(data_dir, spec, [episode] * 2, tfds_name=name, version=version)


def released(folder: Path) -> None:
    """Writes OPENPI and DATA into the folder.

    OPENPI is a tiny folder as openpi writes it, of two robots. DATA holds LIBERO-10.
    """
    sizes = dataclasses.replace(VARIANTS["pico"], action_dim=32)
    weights = {path: 0.1 * array for path, array in random_parameters(sizes).items()}
    write_openpi(folder / "OPENPI", weights, asset="reach_arm3", dims=3)
    other = folder / "OPENPI/assets/droid/norm_stats.json"
    other.parent.mkdir()
    other.write_text(json.dumps({"norm_stats": norm_stats(8)}))
    name = "libero_10_no_noops"
    write_dataset(folder / "DATA", name, name, {"steps/is_first": [True, False, False]})


def a_lerobot_dataset(folder: Path) -> None:
    """Writes DIR, and a script that answers the questions of the draft as a person would."""
    lerobot_data.write(folder / "DIR", "v3.0", "video")
    answers = "import pathlib\nfile = pathlib.Path('my_robot.py')\ntext = file.read_text()\n"
    for question, answer in lerobot_data.ANSWERS:
        answers += f"text = text.replace({question!r}, {answer!r})\n"
    (folder / "answer.py").write_text(answers + "file.write_text(text)\n")


TRAIN = (
    "--config.variant=pico --config.tokenizer=small --config.dtype=float32 --config.horizon=5"
    " --config.max_tokens=12 --config.sampling_steps=2 --config.draws=1 --config.batch_size=8"
    " --config.steps=2 --config.warmup_steps=1 --config.validation_frames=2 --config.augment=False --config.loader_threads=1"
    " --config.remat=none --config.scan_layers=False"
)
EVALUATE = "--episodes=1 --parallel=1 --record=0 --workers=1"
SERVE = "--port=0 --image_sizes=64x64 --num_steps=2"
CHECK = "--calls=2 --image_side=64"
LORA = """ "--config.lora=({'path':'llm/layers/attn','rank':2,'alpha':2.0},)" """
REACH = """--env_args='{"robot": "reach_arm3"}'"""
TOKENIZER = "gs://big_vision/paligemma_tokenizer.model"
DRY = "--dry-run"  # make prints what it would do
SATISFIED = "--dry-run --no-deps --no-index"  # pip looks for no package, but for the extra
NETWORK = "installs packages from the network"
LIBTPU = "compiles for a TPU with libtpu, which may be in no environment that has TensorFlow"

STORIES = {
    "set up": Story(
        "README.md",
        (
            StandsIn("make demo", "make smoke", "half an hour; the same stages in miniature"),
            StandsIn("make smoke", "make smoke", "three minutes, and installs"),
            Run("make metaworld", DRY, in_repository=True),
            Run("make libero CHECKPOINT=DIR", DRY, in_repository=True),
            StandsIn("make test", "exec make test", "runs this"),
            StandsIn("make docs", "make docs", NETWORK),
            Run("make test LATEST=1", DRY, in_repository=True),
            StandsIn(
                "pip install -e '.[data,sim,serve]'",
                "make smoke",
                f"{NETWORK}, and is installed so by make, with the extra dev, which has these",
            ),
            *(
                StandsIn(
                    name,
                    "tests/test_wheel.py::test_every_command_is_a_console_script",
                    "names a script, which is installed with the wheel",
                )
                for name in (
                    "pi0-train",
                    "pi0-serve",
                    "pi0-evaluate",
                    "pi0-index",
                    "pi0-convert",
                    "pi0-report",
                    "pi0-verify",
                    "python -m launch.train",
                )
            ),
            StandsIn(
                "pip wheel . --no-deps",
                "tests/test_wheel.py::test_only_one_name_is_installed",
                "leaves folders where it runs; the test builds it from a copy",
            ),
            Run("pip install 'pi0_jax[tpu]'", SATISFIED),
            StandsIn(
                "python -m launch.verify",
                "tests/test_verify.py::test_every_shipped_output_is_reproduced_in_float32",
                "compiles for half a minute; the test runs all that the command does",
            ),
        ),
    ),
    "the model": Story("README.md", (Run("python: The model in ten lines, 1"),)),
    "a policy": Story(
        "README.md",
        (
            Run("python: The model in ten lines, 2"),
            Run(
                'Policy.open(RUN, scan_layers=False).export(DIR, robot="reach_arm3",'
                " image_size=(64, 64))",
                words={"RUN": '"runs/reach/train"', "DIR": '"exported"'},
            ),
            Run(
                "python -m launch.convert --input=PATH --output=DIR --to=FORMAT --verify",
                words={"PATH": "runs/reach/train", "DIR": "converted", "FORMAT": "openpi_jax"},
            ),
            Run(
                "python -m launch.serve --checkpoint=DIR",
                SERVE,
                {"DIR": "runs/reach/train"},
                serves=True,
            ),
            Run(
                "python -m launch.check_server --server=HOST:PORT", CHECK, {"HOST:PORT": "{server}"}
            ),
            Run(
                "python -m launch.evaluate --checkpoint=DIR --output=OUT",
                EVALUATE,
                {"DIR": "runs/reach/train"},
            ),
            StandsIn(
                "python -m launch.experiment NAME",
                "tests/test_lab.py::test_an_experiment_leaves_results_a_page_and_an_overview",
                "trains; the test does so in miniature",
            ),
        ),
        a_policy,
    ),
    "public datasets": Story(
        "README.md",
        (
            Run(
                "python -m launch.index --data_dir=DIR --datasets=bridge_dataset,droid --workers=16"
                " --report=cards",
                "--workers=1",
                {"DIR": "public"},
            ),
        ),
        public_datasets,
    ),
    "your own robot": Story(
        "README.md",
        (
            Run("python: Your own robot, 1"),
            Run("python: Your own robot, 2", file="my_robot.py"),
            Run("python -m launch.index --config=my_robot.py --report=runs/mine/cards"),
            Run("python -m launch.index --config=FILE", words={"FILE": "my_robot.py"}),
            Run(
                "python -m launch.train --config=my_robot.py --workdir=runs/mine/train",
                TRAIN,
            ),
            Run(
                "python -m launch.report --workdir=runs/mine/train --output=runs/mine/report",
                "--frames=1",
            ),
            Run("python -m launch.serve --checkpoint=runs/mine/train", SERVE, serves=True),
            Run(
                "python -m launch.check_server --server=127.0.0.1:8000",
                CHECK,
                {"127.0.0.1:8000": "{server}"},
            ),
            Run("python: Your own robot, 3", file="my_module.py"),
            Run(
                "python -m launch.evaluate --checkpoint=runs/mine/train --env=my_module:MyEnv-v0"
                ' --prompt="put the cup on the plate" --output=runs/mine/evaluation',
                EVALUATE,
            ),
        ),
    ),
    "a LeRobot dataset": Story(
        "docs/howto/lerobot.md",
        (
            Run("pip install 'pi0_jax[data,lerobot]'", SATISFIED),
            Run(
                "python -m launch.import_lerobot --input=DIR --output=DATA --name=my_robot > my_robot.py",
                "&& python answer.py",
            ),
            Run("python -m launch.index --config=my_robot.py --report=runs/mine/cards"),
        ),
        a_lerobot_dataset,
    ),
    "training": Story(
        "README.md",
        (
            Run("python -m launch.train --config_help"),
            Run(
                "python -m launch.train --config=pi0_finetune:lora --config.data_dir=DIR"
                " --config.initial_weights=PATH --workdir=RUN",
                TRAIN + LORA,
                {"DIR": "DATA", "PATH": "OPENPI"},
            ),
            StandsIn(
                "launch/tpu_pod.sh",
                "tests/test_launchers.py::test_a_worker_gets_the_arguments_as_they_were_given",
                "needs a TPU slice",
            ),
            StandsIn(
                "launch/slurm.sbatch",
                "tests/test_launchers.py::test_slurm_tasks_get_the_arguments_as_they_were_given",
                "needs a SLURM cluster",
            ),
            Run(
                "launch/tpu_pod.sh run --dry_run --name=pi0 --zone=us-west4-a -- python -m"
                " launch.train --config=configs/reach.py --workdir=gs://bucket/run",
                in_repository=True,
            ),
            StandsIn(
                "python -m launch.train --config=reach --compile_only --topology=v5e:2x2",
                "tests/test_aot_tpu.py::test_a_small_model_fits_one_chip",
                LIBTPU,
            ),
        ),
        released,
    ),
    "benchmarks": Story(
        "README.md",
        (
            StandsIn(
                "python -m launch.benchmark data",
                "tests/test_benchmark_index.py::test_a_synthetic_index_repeats_a_real_one",
                "writes 10 GB for the smallest dataset; the test has the index that it reads",
            ),
            StandsIn(
                "python -m launch.benchmark index",
                "tests/test_benchmark_index.py"
                "::test_the_speed_of_building_is_measured_for_each_kind_of_file",
                "takes minutes",
            ),
            StandsIn(
                "python -m launch.benchmark train",
                "tests/test_benchmark_train.py"
                "::test_the_command_measures_a_step_without_tensorflow_or_data",
                "takes minutes; the test runs the command on a tiny model",
            ),
            StandsIn(
                "python -m launch.benchmark policy",
                "tests/test_benchmark_policy.py"
                "::test_every_part_is_timed_for_every_number_of_cameras",
                "takes minutes",
            ),
            StandsIn(
                "python -m launch.benchmark serve",
                "tests/test_benchmark_policy.py::test_what_serving_adds_is_taken_apart",
                "takes minutes",
            ),
            StandsIn(
                "python -m launch.benchmark convert",
                "tests/test_benchmark_convert.py::test_a_round_trip_is_measured_and_compared",
                "writes 40 GB",
            ),
        ),
    ),
    "contributing": Story(
        "CONTRIBUTING.md",
        (
            StandsIn("make test", "exec make test", "runs this"),
            Run("make test ARGS=tests/test_config.py", DRY, in_repository=True),
            StandsIn("pip install -e '.[dev]'", "make smoke", f"{NETWORK}; make installs so"),
            StandsIn("make docs", "make docs", NETWORK),
            StandsIn("make types", "make types", "CI runs it"),
            StandsIn("make smoke", "make smoke", "three minutes, and installs"),
            Run("ruff check . && ruff format ."),
            Run("python -m launch.train --config_help"),
            StandsIn(
                "python -m tests.write_golden_checkpoint DIR",
                "tests/test_old_checkpoints.py::test_it_resumes",
                "half a minute of a core; the test goes on with what it wrote",
            ),
        ),
    ),
    "the site's first page": Story("docs/index.md", (Run("python: pi0_jax, 1"),), a_policy),
    "a benchmark": Story(
        "docs/howto/benchmarks.md",
        tuple(
            StandsIn(
                name,
                "tests/test_metaworld.py::test_a_served_policy_is_measured_where_the_simulator_is",
                "needs the simulator's environment; the test runs every stage in miniature",
            )
            for name in (
                "make metaworld",
                "make metaworld ARGS=--smoke RUN=runs/metaworld_smoke",
                "make metaworld ARGS=--group=mt10 RUN=runs/mt10",
                "make metaworld-env",
                "python -m launch.make_metaworld_data ...",
                "python -m launch.train --config=metaworld:mt5 ...",
                "python -m launch.neighbours ...",
            )
        )
        + tuple(
            StandsIn(
                name,
                "tests/test_libero.py::test_an_untrained_policy_is_measured_beside_published_rates",
                "needs the simulator's environment; the test runs an untrained policy",
            )
            for name in ("make libero CHECKPOINT=DIR", "make libero-env")
        )
        + (
            StandsIn(
                "pip install vla-eval==0.8.0",
                "tests/test_vla_eval.py::test_its_runner_gets_the_actions_of_the_record",
                f"{NETWORK}; the test runs vla-eval's command against the model server",
            ),
            Run("python: A third environment, 1", file="pusht.py"),
            Run(
                "python -m launch.evaluate --env=pusht.py:pusht --checkpoint=DIR --output=OUT",
                EVALUATE,
            ),
        ),
        a_policy_of_a_third_environment,
    ),
    "a notebook's package": Story(
        "docs/notebooks/arrays.md", (Run("pip install 'pi0_jax[data]'", SATISFIED),)
    ),
    "the site's commands": Story(
        "docs/api/config.md", (Run("python -m launch.train --config_help"),)
    ),
    "a released policy": Story(
        "docs/released.md",
        (
            Run("pip install 'pi0_jax[remote]'", SATISFIED),
            Run("python: 1. Convert it, 1"),
            Run(
                "python -m launch.convert --input=OPENPI --output=policies/pi0 --to=ours"
                " --robot=ROBOT --embodiment=RECORD"
                " --tokenizer=gs://big_vision/paligemma_tokenizer.model",
                words={"ROBOT": "reach_arm3", "RECORD": "reach_arm3", TOKENIZER: "small"},
            ),
            Run(
                "python -m launch.convert --input=OPENPI --output=policies/lerobot --to=lerobot"
                " --robot=ROBOT --embodiment=RECORD",
                "&& mv policies/lerobot LEROBOT && rm LEROBOT/pi0_jax.json",  # as of somebody else
                {"ROBOT": "droid", "RECORD": "my_robot.json"},
            ),
            Run(
                "python -m launch.convert --input=LEROBOT --output=policies/pi0 --to=ours"
                " --tokenizer=gs://big_vision/paligemma_tokenizer.model",
                "--sizes=head_dim=8,image_heads=2",
                {"policies/pi0": "policies/of_lerobot", TOKENIZER: "small"},
            ),
            Run("python: 2. A first action, 1"),
            Run(
                'Policy.open("OPENPI", robot="ROBOT", embodiment="RECORD",'
                ' tokenizer="gs://big_vision/paligemma_tokenizer.model")',
                words={"ROBOT": "reach_arm3", "RECORD": "reach_arm3", TOKENIZER: "small"},
            ),
            Run("python -m launch.serve --checkpoint=policies/pi0", SERVE, serves=True),
            Run(
                "python -m launch.check_server --server=127.0.0.1:8000",
                CHECK,
                {"127.0.0.1:8000": "{server}"},
            ),
            Run(
                "python -m launch.evaluate --checkpoint=policies/pi0 --env=MODULE:ENV"
                ' --prompt="pick up the red block" --output=runs/evaluation',
                f"{EVALUATE} {REACH}",
                {"MODULE:ENV": "pi0_jax.sim.reach:pi0_jax/Reach-v0"},
            ),
            Run(
                "python -m launch.train --config=pi0_finetune:lora --config.data_dir=DATA"
                " --config.initial_weights=OPENPI --workdir=runs/lora",
                TRAIN + LORA,
            ),
            Run(
                "python -m launch.train --config=pi0_finetune:expert --config.data_dir=DATA"
                " --config.initial_weights=policies/pi0 --workdir=runs/expert",
                TRAIN,
            ),
            Run(
                "python -m launch.train --config=pi0_finetune:full --config.data_dir=DATA"
                " --config.initial_weights=policies/pi0 --workdir=runs/full",
                TRAIN,
            ),
            Run('Policy.open("runs/lora")'),
            StandsIn(
                "XLA_CLIENT_MEM_FRACTION=.45 python -m launch.serve --checkpoint=policies/pi0",
                "tests/test_wheel.py::test_it_trains_serves_and_evaluates",
                "JAX reads the variable on a GPU; the command without it is run above",
            ),
        ),
        released,
    ),
    "what differs in π0.5": Story(
        "docs/pi05.md",
        (
            StandsIn(
                "python -m launch.train --config=pi05_finetune:lora ...",
                "tests/test_recipes.py::test_a_recipe_runs",
                "needs a released π0.5; the test runs the recipe from a small one",
            ),
            StandsIn(
                "python -m launch.train --config=reach ...",
                "tests/test_pi05_prompt.py::test_a_run_trains_with_its_norms_split_over_devices",
                "takes eight minutes; the test trains a smaller one",
            ),
            StandsIn(
                "python -m launch.evaluate ...",
                "make smoke",
                "takes what was trained; CI evaluates a π0 so",
            ),
            StandsIn(
                "python -m launch.verify",
                "tests/test_verify.py::test_every_shipped_output_is_reproduced_in_float32",
                "compiles for a minute; the test runs all that the command does",
            ),
        ),
    ),
    "formats": Story(
        "docs/formats.md",
        (
            StandsIn(
                "python -m launch.formats",
                "tests/test_convert_torch.py::test_image_tokens_and_language_model_are_theirs",
                "needs PyTorch, for which CI makes an environment",
            ),
            Run(
                "python -m launch.convert --input=PATH --output=PATH --to=FORMAT [--verify]",
                words={
                    "--input=PATH": "--input=runs/reach/train",
                    "PATH": "converted",
                    "FORMAT": "lerobot",
                    "[--verify]": "--verify",
                },
            ),
        ),
        a_policy,
    ),
    "the laboratory": Story(
        "docs/lab.md",
        (
            *(
                StandsIn(
                    f"python -m launch.experiment generation{flags}",
                    "tests/test_lab.py::test_an_experiment_leaves_results_a_page_and_an_overview",
                    "trains many seeds; the test runs another experiment in miniature",
                )
                for flags in ("", " --pilot", " --quick")
            ),
            StandsIn("make lab-quick", "make lab-quick", "CI runs it"),
            Run("python -m launch.train --config_help"),
            *(
                StandsIn(
                    name,
                    "tests/test_lab.py::test_a_run_equals_launch_train_and_launch_evaluate",
                    "takes a run of the laboratory; the test has one",
                )
                for name in (
                    "python -m launch.train --config=runs/lab/trained/two_sides/seed_0/config.py"
                    " --workdir=RUN",
                    "python -m launch.evaluate --checkpoint=RUN --env=pi0_jax.lab.worlds:Detour-v0"
                    " --prompt=reach --output=OUT --episodes=200 --parallel=200 --seed=0 --workers=1",
                )
            ),
        ),
    ),
    "memory": Story(
        "docs/memory.md",
        (
            Run(
                "python -m launch.memory --output=docs/memory.md",
                words={"docs/memory.md": "memory.md"},
            ),
            StandsIn(
                "python -m launch.train --config=FILE --compile_only --topology=v5p:1x1x1",
                "tests/test_aot_tpu.py::test_a_small_model_fits_one_chip",
                LIBTPU,
            ),
        ),
    ),
    "TPU slices": Story(
        "docs/tpu.md",
        (
            StandsIn(
                "python -m launch.tpu_table ...",
                "tests/test_aot_tpu.py::test_the_full_size_step_on_sixteen_chips",
                LIBTPU,
            ),
            StandsIn(
                "compiles() { ...",
                "tests/test_aot_tpu.py::test_the_full_size_step_on_sixteen_chips",
                LIBTPU,
            ),
        ),
    ),
}


# The tests. --------------------------------------------------------------------------------------


def matching(page: str, name: str) -> list[str]:
    """Returns what a page has of the name of a step."""
    start, dots, _ = name.partition("...")
    return [
        found for found in contents(page) if (found.startswith(start) if dots else found == name)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_block_is_known_and_none_is_gone(page):
    names = [step.name for story in STORIES.values() if story.page == page for step in story.steps]
    gone = [name for name in names if len(matching(page, name)) != 1]
    assert not gone, f"not once on the page: {gone}"
    known = [found for name in names for found in matching(page, name)]
    unknown = [found for found in contents(page) if known.count(found) != 1]
    assert not unknown, f"not in one story: {unknown}"


def test_commands_and_blocks_are_found():
    page = """# Set up
    make demo    # at first

It prints `12 steps`; then `pi0-train` or `python -m
launch.benchmark data|index` go on, and `make` was there.

    robot   success
    A=.4 python -m launch.serve

```python
print(1)
```
"""
    assert [found.name for found in found_in(page)] == [
        "make demo", "A=.4 python -m launch.serve", "python: Set up, 1", "pi0-train",
        "python -m launch.benchmark data", "python -m launch.benchmark index",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'bash'"):
        list(found_in("```bash\nls\n```"))


STAND_INS = [
    pytest.param(step.by, id=step.name)
    for story in STORIES.values()
    for step in story.steps
    if isinstance(step, StandsIn)
]


@pytest.mark.parametrize("by", STAND_INS)
def test_what_stands_in_is_there(by):
    file, _, test = by.partition("::")
    if not test:
        assert by in (line.partition("  #")[0].strip() for line in (ROOT / ".ci/run").open())
        return
    tests = ast.parse((ROOT / file).read_text("utf-8")).body
    assert test in (node.name for node in tests if isinstance(node, ast.FunctionDef))


class Shell:
    """Runs the commands of a story in its folder, which is not the repository."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._servers = folder, []
        self._env = environment(1)
        self._env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self._env['PATH']}"
        self._env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        self._env["PYTHONPATH"] = str(ROOT)  # as if pi0_jax were installed from there
        self._server = ""

    def run(self, step: Run, found: str) -> None:
        command = step.command(found).replace("{server}", self._server)
        print(f"    {command}", flush=True)
        folder = ROOT if step.in_repository else self._folder
        how = dict(cwd=folder, env=self._env, text=True, stdout=subprocess.PIPE)
        if step.serves:
            # What it logs is kept in a file: a pipe that nobody reads may be full.
            with (self._folder / "server.log").open("w") as log:
                server = subprocess.Popen(["bash", "-c", f"exec {command}"], stderr=log, **how)
            self._servers.append(server)
            self._server = wait_for(server, "warm")
            return
        done = subprocess.run(
            ["bash", "-c", command], stderr=subprocess.STDOUT, timeout=300, check=False, **how
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}"
        assert "WARNING" not in done.stdout or not command.startswith("pip "), done.stdout

    def close(self) -> None:
        for server in self._servers:
            server.terminate()
            server.communicate(timeout=60)
        assert [server.returncode for server in self._servers] == [0] * len(self._servers)


def cpu_seconds() -> float:
    """Returns the processor seconds of all processes started from here that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("name", STORIES)
def test_a_story_runs(name, tmp_path):
    story = STORIES[name]
    code = contents(story.page)
    story.before(tmp_path)
    with contextlib.closing(Shell(tmp_path)) as shell:
        for step in story.steps:
            print(f"\n{story.page}: {step.name}")
            if isinstance(step, StandsIn):
                print(f"    not run: {step.why}; {step.by}")
                continue
            (found,) = matching(story.page, step.name)
            if found.startswith("python: "):
                (tmp_path / step.file).write_text(code[found], encoding="utf-8")
            before = cpu_seconds()
            shell.run(step, found)
            print(f"    {cpu_seconds() - before:.1f} s of a core")
