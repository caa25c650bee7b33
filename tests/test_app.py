"""How a launch script ends."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_stopped_by_hand_it_says_so_in_one_line():
    program = "from launch import app\n@app.command\ndef main(): raise KeyboardInterrupt\nmain()"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (130, "stopped\n")


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
    command = [sys.executable, "-c", READS_A_CONFIG, f"--config={file}", *filter(None, [flag])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(said.format(file=file))
