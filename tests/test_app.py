"""How a launch script ends."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_stopped_by_hand_it_says_so_in_one_line():
    program = "from launch.app import run\ndef main(): raise KeyboardInterrupt\nrun(main)"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (130, "stopped\n")


READS_A_CONFIG = """
from ml_collections import config_flags
from launch import app
config = config_flags.DEFINE_config_file("config")
app.run(lambda: print(app.config_mapping(config)))
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
    command = [sys.executable, "-c", READS_A_CONFIG, f"--config={file}", *filter(None, [flag])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(said.format(file=file))


def test_every_mistake_is_a_line():
    """The line of one mistake stays one, whatever a library put into it."""
    program = (
        "from launch.app import run\nfrom pi0_jax.errors import InputError\n"
        "def main(): raise InputError('steps is 0', 'data_dir is\\nmissing')\nrun(main)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == ["error: steps is 0", "error: data_dir is missing"]
