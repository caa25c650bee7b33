"""Writes a golden checkpoint: python -m tests.write_golden_checkpoint DIR

It wrote tests/golden/format_3, which stays as it is. For the next format, run it again with another
DIR before any change to what comes after. Format 2 was written in the same way, by the config that
lies beside it. DIR/ then holds the data with their index, the run as it was after 4 of its 8 steps,
and expected.npz. That file has `actions` of the checkpoint's policy, `losses` of all steps, and
`ema_norm_8`, the norm of the moving average after the last step.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from pi0_jax.policy import Policy
from pi0_jax.train import config
from pi0_jax.train.loop import train
from tests.tiny_data import write_reach
from tests.training import arrays, losses

SAVED, STEPS = 4, 8
OBSERVATION = {
    "images": {
        "base": np.full((16, 24, 3), 90, np.uint8),
        "wrist": np.full((16, 24, 3), (200, 0, 0), np.uint8),
    },
    "state": np.float32([1, 2, 0]),
    "prompt": "reach block 1",
}
# Smallest sizes; weights of every kind: trained, frozen, adapted by LoRA.
CONFIG = dict(
    data_dir="data", datasets=("reach_arm3",), seed=3, tokenizer="small", initial_weights="", augment=False, loader_threads=1,
    variant=dict(
        vision=dict(image_size=32, patch_size=16, width=8, depth=2, mlp_dim=16, num_heads=2),
        gemma=dict(
            experts=(dict(width=8, mlp_dim=16), dict(width=8, mlp_dim=16)),
            depth=2, num_heads=2, num_kv_heads=1, head_dim=8, vocab_size=512,
        ),
    ),
    action_dim=6, horizon=5, max_tokens=12, dtype="float32", loss_dims="real", frozen=("PaliGemma/img/",),
    lora=(dict(path="llm/layers/mlp/linear", rank=2, alpha=2.0),),
    draws=2, batch_size=8, steps=STEPS, warmup_steps=2, learning_rate=2e-3, scan_layers=False, remat="none",
    log_every=1, validate_every=4, validation_frames=3, save_every=SAVED,
)  # fmt: skip


def act(checkpoint: Path) -> np.ndarray:
    """Returns the actions float32[1, H, A] of the golden observation."""
    return Policy.open(checkpoint).act([OBSERVATION], [5])


def ema_norm(workdir: Path) -> float:
    """Returns the norm of the moving average after the last step."""
    leaves = arrays(workdir, STEPS, "ema").values()
    return float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves)))


def main(folder: Path) -> None:
    folder.mkdir()
    with contextlib.chdir(folder):
        write_reach(Path("data"), lengths=(6,) * 4)
        workdir = Path.cwd() / "run"
        train(config.from_mapping(CONFIG), workdir)
        checkpoints = workdir / "checkpoints"
        np.savez(
            "expected.npz",
            actions=act(checkpoints / str(SAVED)),
            losses=list(losses(workdir).values()),
            ema_norm_8=ema_norm(workdir),
        )
        # The run as it was when the checkpoint had been saved.
        shutil.rmtree(checkpoints / str(STEPS))
        shutil.rmtree(workdir / "tensorboard")
        metrics = workdir / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(line for line in lines if json.loads(line)["step"] <= SAVED))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
