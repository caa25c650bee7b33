"""The page on memory is computed from shapes, and agrees with numbers by hand.

It is also as its command makes it.
"""

from pathlib import Path

import pytest

from pi0_jax.aot.report import policy_bytes
from pi0_jax.train.config import from_mapping
from tests import policies
from tests.own_process import python
from tests.test_config import load

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "memory.md"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_holds_what_is_computed(dtype):
    policy = policies.policy("droid", dtype=dtype)
    held = sum(weight.nbytes for weight in policy.weights.values())
    assert policy_bytes(policy.config, dtype) == held


def test_the_full_size_takes_four_bytes_a_parameter():
    run = from_mapping(load(ROOT / "configs" / "pi0_finetune.py", "full").to_dict())
    assert policy_bytes(run, "float32") == 4 * 3_238_048_528


def test_the_page_is_what_its_command_writes_today(tmp_path):
    page = tmp_path / "memory.md"
    done = python("-m", "launch.memory", f"--output={page}")
    assert page.read_text("utf-8") == PAGE.read_text("utf-8")
    assert done.stdout in page.read_text("utf-8")
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == [
        "none", "none", "53,235,744", "314,713,120", "3,238,048,528",
    ]  # fmt: skip
    for row in rows[2:]:
        parts = [float(part) for part in row[2:6]]
        assert sum(parts) == pytest.approx(float(row[6].strip(" |")), abs=0.2)


def test_a_field_of_a_recipe_is_a_flag():
    done = python("-m", "launch.memory", "--full.ema_decay=0", "--full.variant=pico")
    assert done.stdout.splitlines()[-1].split(" | ")[5] == "0.0"
