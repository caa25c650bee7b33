"""A file describes a batch whose loss or gradient was not finite.

It says which frames these are, where they lie, and their numbers.
"""

import json
import math
from typing import Any

import numpy as np
from etils import epath

from pi0_jax.data.index import Index
from pi0_jax.observation import FrameId
from pi0_jax.train.prepare import Data

FOLDER = "nonfinite"


def write_frames(path: epath.Path, data: Data, frames: FrameId, row_losses: np.ndarray) -> None:
    """Writes JSON lines, one for each row of the batch, the most suspicious first.

    Args:
        path: the file.
        data: what the run trains on.
        frames: the frames of the whole global batch.
        row_losses: float32[B], the loss of each row of the whole global batch.
    """
    # A loss that is not a number counts as infinite.
    suspicious = sorted(
        range(len(row_losses)), key=lambda row: -np.nan_to_num(row_losses[row], nan=np.inf)
    )
    lines = [
        _row(data, row, FrameId(*(int(part[row]) for part in frames)), float(row_losses[row]))
        for row in suspicious
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.replace(path)


def _row(data: Data, row: int, frame_id: FrameId, loss: float) -> dict[str, Any]:
    """Returns what the file says of a row: where its frame lies, its loss, prompt and numbers."""
    index: Index = data.order.mixture.indices[frame_id.dataset]
    frame = int(index.episodes["start"][frame_id.episode]) + frame_id.step
    actions, valid = index.chunk(frame, data.order.mixture.horizon)
    return {
        "row": row,
        "loss": loss if math.isfinite(loss) else None,
        "dataset": index.name,
        "episode": frame_id.episode,
        "step": frame_id.step,
        "prompt": index.prompt(frame),
        "file": str(index.shards[index.episodes["shard"][frame_id.episode]]),
        "record": int(index.episodes["record"][frame_id.episode]),
        "state": index.state[frame].tolist(),
        "actions": actions[valid].tolist(),
    }
