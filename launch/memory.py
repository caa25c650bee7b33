"""Computes what inference and each way of fine-tuning need in memory: python -m launch.memory.

It looks at shapes alone, and allocates nothing. --output=PAGE writes the table as a page.
Other settings are flags of their recipe, as --lora.frozen_dtype=float32 or --full.ema_decay=0.
"""

from pathlib import Path

from absl import flags

from pi0_jax.aot.report import memory_table
from pi0_jax.train.config import from_mapping

from . import app
from .recipes import config_flag, config_mapping

_RECIPES = {
    "LoRA": "lora",
    "action expert alone": "expert",
    "all parameters": "full",
}
_RUNS = {
    name: config_flag(f"pi0_finetune:{mode}", f"The run for: {name}.", mode)
    for name, mode in _RECIPES.items()
}
_OUTPUT = flags.DEFINE_string("output", None, "Markdown file to write, beside printing the table.")

_PAGE = """# What the full-size π0 needs in memory

Made by `python -m launch.memory --output=docs/memory.md`, which computes the sizes from shapes and
allocates nothing.

{table}
- GB are 10⁹ bytes on one device that holds everything. Several devices share every column of the
  training rows, by `mesh.fsdp`.
- A policy that computes in bfloat16 keeps some weights in float32: the norms and the last
  projection.
- The training rows are the recipes `configs/pi0_finetune.py:lora`, `:expert` and `:full`. The first
  two keep what is frozen in bfloat16. Everything that trains is in float32. Adam's state is two
  numbers for each trained parameter. The LoRA recipe keeps no moving average.
- `ema_decay=0` leaves the moving average out. `first_moment_dtype="bfloat16"` takes a quarter off
  the optimizer state. `accumulate` above 1 doubles the gradients and divides the activations.
- **Activations are not in the table.** They grow with the batch, the cameras and the horizon, and
  the compiler decides how large they are. [tpu.md](tpu.md) has XLA's numbers for TPUs: the second
  summand of its column "GB a chip" is what a step needs beside its state, its gradients among it.
  For settings of your own,
  `python -m launch.train --config=FILE --compile_only --topology=v5p:1x1x1` says the same for one
  device, on any machine that has libtpu. A training run prints it for the device that it runs on,
  before its first step.
"""


@app.command
def main() -> None:
    runs = {name: from_mapping(config_mapping(flag)) for name, flag in _RUNS.items()}
    text = memory_table(runs["all parameters"], runs)
    print(text, end="")
    if _OUTPUT.value is not None:
        Path(_OUTPUT.value).write_text(_PAGE.format(table=text), encoding="utf-8")


if __name__ == "__main__":
    main()
