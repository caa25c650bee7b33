"""A launch script starts and ends as it should."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pi0_jax.data.write import write_rlds
from pi0_jax.errors import InputError, optional_packages
from tests.own_process import ROOT, python


def test_stopped_by_hand_it_says_so_in_one_line():
    program = "from launch import app\n@app.command\ndef main(): raise KeyboardInterrupt\nmain()"
    assert python("-c", program, status=130).stderr == "stopped\n"


READS_A_CONFIG = """
from launch import app, recipes
config = recipes.config_flag()
app.command(lambda: print(recipes.config_mapping(config)))()
"""


@pytest.mark.parametrize(
    ("body", "flag", "said"),
    [
        (
            "return ConfigDict(dict(steps=1))",
            "--config.step=2",
            """the config has no field 'step'. Did you mean "steps" instead of "step"?""",
        ),
        (
            "raise ValueError('expected full or lora')",
            "",
            "ValueError: expected full or lora ({file}, line 4)",
        ),
        (
            "return dict(steps=1)",
            "",
            "--config: expected a file whose get_config() returns a ConfigDict, found dict",
        ),
    ],
)
def test_what_is_wrong_with_a_config_is_one_line(tmp_path: Path, body: str, flag: str, said: str):
    file = tmp_path / "mine.py"
    file.write_text(f"from ml_collections import ConfigDict\n\ndef get_config():\n    {body}\n")
    flags = filter(None, [f"--config={file}", flag])
    (line,) = python("-c", READS_A_CONFIG, *flags, status=2).stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(said.format(file=file))


def frozen_dtype(*flags: str, cwd: Path, status: int = 0) -> subprocess.CompletedProcess:
    """Runs a script that prints this field of its config."""
    program = READS_A_CONFIG.replace("mapping(config)", "mapping(config)['frozen_dtype']")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return python("-c", program, *flags, cwd=cwd, env=env, status=status)


MINE = """
from ml_collections import ConfigDict

def get_config(mode="mine"):
    return ConfigDict(dict(frozen_dtype=mode))
"""


@pytest.mark.parametrize(
    ("config", "value"),
    [
        ("reach", "float32"),
        ("pi0_finetune:lora", "bfloat16"),
        ("mine.py", "mine"),
        ("./mine.py:other", "other"),
    ],
)
def test_a_config_goes_by_a_recipes_name_or_a_files_path(tmp_path, config, value):
    (tmp_path / "mine.py").write_text(MINE)
    assert frozen_dtype(f"--config={config}", cwd=tmp_path).stdout == f"{value}\n"
    changed = frozen_dtype(f"--config={config}", "--config.frozen_dtype=another", cwd=tmp_path)
    assert changed.stdout == "another\n"


@pytest.mark.parametrize("config", ["rech", "configs/nothing.py"])
def test_an_unknown_config_lists_the_recipes(tmp_path, config):
    (line,) = frozen_dtype(f"--config={config}", cwd=tmp_path, status=2).stderr.splitlines()
    assert line.startswith(f"error: flag --config={config}: ")
    assert {"reach", "pi0_finetune", "pi0_open_pretrain"} <= set(re.findall(r"\w+", line))


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("evaluate --checkpoint=nowhere --output=nowhere", "gymnasium", "sim"),
        ("evaluate", "websockets", "serve"),
        ("serve", "websockets", "serve"),
    ],
)
def test_a_script_that_lacks_a_package_says_what_to_install(command, package, extra):
    script, *given = command.split()
    program = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv[1:] = {given};"
        f" runpy.run_module('launch.{script}', run_name='__main__')"
    )
    (line,) = python("-c", program, status=2).stderr.splitlines()
    assert line == f"error: the package {package} is not installed: pip install 'pi0_jax[{extra}]'"


def test_a_package_that_is_missed_while_a_script_runs():
    program = (
        "import sys; sys.modules['tensorflow_datasets'] = None\nfrom launch import app\n"
        "@app.command\ndef main(): import tensorflow_datasets\nmain()"
    )
    assert python("-c", program, status=2).stderr.endswith(
        "error: the package tensorflow_datasets is not installed: pip install 'pi0_jax[data]'\n"
    )


def test_a_module_that_no_extra_has_is_a_mistake_of_ours():
    with pytest.raises(ModuleNotFoundError, match="pi0_jax.nothing"), optional_packages():
        import pi0_jax.nothing  # noqa: F401


def test_writing_a_dataset_without_its_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"tensorflow_datasets .* 'pi0_jax\[data\]'"):
        write_rlds(tmp_path, "mine", "1.0.0", steps={}, metadata={}, splits={})


def test_an_old_python_is_told_which_one_is_needed(monkeypatch, capsys):
    """An old Python can read launch/__init__.py, and goes no further."""
    source = (ROOT / "launch/__init__.py").read_text()
    ast.parse(source, feature_version=(3, 7))
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    monkeypatch.setattr(sys, "version", "3.10.1 (main)")
    with pytest.raises(SystemExit) as ended:
        exec(source, {})
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: pi0_jax needs Python 3.11 or newer, found 3.10.1\n"


def test_every_mistake_is_a_line():
    """The line of one mistake stays one, whatever a library put into it."""
    program = (
        "from launch import app\nfrom pi0_jax.errors import InputError\n@app.command\n"
        "def main(): raise InputError('steps is 0', 'data_dir is\\nmissing')\nmain()"
    )
    said = python("-c", program, status=2).stderr
    assert said.splitlines() == ["error: steps is 0", "error: data_dir is missing"]
