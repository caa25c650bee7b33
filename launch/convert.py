"""Converts a checkpoint (docs/formats.md).

python -m launch.convert --input=PATH --output=PATH --to=FORMAT [--verify]

It says what the output has no room for, and what it had to assume. --verify reads the output back
and compares every tensor bit for bit.
"""

import resource
import sys
import time

import numpy as np
from absl import flags

from pi0_jax import convert
from pi0_jax.convert.source import compare
from pi0_jax.parity import lerobot

from . import app, shared

# fmt: off
_INPUT = flags.DEFINE_string("input", None,
    "A checkpoint of any format: directory, npz or safetensors file; gs:// too.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "New directory.", required=True)
_TO = flags.DEFINE_enum("to", None, list(convert.OUTPUTS), "Format to write.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "same", ["same", "float32", "bfloat16"],
    "Dtype to write; same: each tensor's own.")
_VERIFY = flags.DEFINE_bool("verify", False,
    "Read the output back and compare; where the port is installed, run both models too.")
_ROBOT = flags.DEFINE_string("robot", None,
    "Which robot's statistics, where there are several (openpi's asset id, a dataset's name).")
_EMBODIMENT = flags.DEFINE_string("embodiment", None,
    "The robot's record, by name or from a JSON file, where the input has none.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None,
    "SentencePiece model, where the input has none: path or URL; small: the one that ships.")
_SIZES = flags.DEFINE_list("sizes", [],
    "name=value of what shows in no tensor: head_dim, image_heads, horizon, max_tokens, ...")
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params"],
    "Of our own checkpoints: the moving average, or the parameters.")
_MERGE_LORA = flags.DEFINE_float("merge_lora", None, "Merge LoRA leaves, scaled by alpha / rank.")
_WEIGHTS_ONLY = flags.DEFINE_bool("weights_only", False, "Convert without statistics.")
_STATE_IN_PROMPT = flags.DEFINE_bool("state_in_prompt", None, "A π0.5: its prompts tell the state.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the leaves that a PaliGemma lacks.")
# fmt: on


@app.command
def main() -> int:
    dtype = None if _DTYPE.value == "same" else np.dtype(_DTYPE.value)
    sizes = shared.matched(_SIZES, r"(.*)=(\d+)", "name=value") if _SIZES.value else []
    options = convert.Options(
        _ROBOT.value, _EMBODIMENT.value, _TOKENIZER.value, {name: int(value) for name, value in sizes},
        _WEIGHTS.value, _MERGE_LORA.value, _WEIGHTS_ONLY.value, dtype, _SEED.value, _STATE_IN_PROMPT.value,
    )  # fmt: skip
    start = time.monotonic()
    report = convert.run(_INPUT.value, _OUTPUT.value, _TO.value, options)
    done = f"{report.parameters:,} parameters in {time.monotonic() - start:.0f} s"
    print(f"{report.source.format} -> {_TO.value}: {done}")
    print("".join(f"- {note}\n" for note in report.notes), end="")
    failures = _verify(report.source) if _VERIFY.value else 0
    # macOS counts in bytes, Linux in KiB.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GiB")
    if _VERIFY.value and _TO.value == "lerobot":
        print(lerobot.run_lerobot(report.source, _OUTPUT.value))
    return 1 if failures else 0


def _verify(source: convert.Source) -> int:
    comparisons = list(compare(source, convert.open(_OUTPUT.value)))
    wrong = [c for c in comparisons if c.differing]
    for c in wrong:
        print(f"{c.path}: {c.differing:,} of {c.elements:,} elements differ")
    print(f"{len(comparisons) - len(wrong)} of {len(comparisons)} leaves read back bit for bit")
    return len(wrong)


if __name__ == "__main__":
    main()
