"""Our SigLIP and Gemma agree with Hugging Face's, in float32 at toy size.

Our rules have carried the weights over. The test runs in a process of its own, with the Python of
the environment that `make torch` makes.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.own_process import run

TORCH_PYTHON = Path(sys.prefix) / "torch" / "bin" / "python"
PROGRAM = """
import json
from pi0_jax.parity import paligemma
print(json.dumps([comparison._asdict() for comparison in paligemma.compare_with_transformers()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not TORCH_PYTHON.exists(),
    reason=f"PyTorch is not there: make torch puts it into {TORCH_PYTHON.parents[1]}",
)
def test_image_tokens_and_language_model_are_theirs():
    comparisons = json.loads(run([TORCH_PYTHON, "-c", PROGRAM]).stdout.splitlines()[-1])
    assert [c["output"] for c in comparisons] == ["image tokens", "language model's outputs"]
    assert [c for c in comparisons if c["relative"] > 1e-5] == []
