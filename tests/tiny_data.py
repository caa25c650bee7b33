"""Makes tiny real RLDS datasets with contents that a test can state by hand."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.data.write import ArrayFeature, ImageFeature, TextFeature, write_rlds

REACH_STEPS = {
    "observation": {
        "base": ImageFeature(16, 24),
        "wrist": ImageFeature(16, 24),
        "state": ArrayFeature((3,), np.float32),
    },
    "action": ArrayFeature((3,), np.float32),
    "language_instruction": TextFeature(),
}


def solid(colour: Sequence[int]) -> np.ndarray:
    """Returns uint8[16, 24, 3] of one colour, which JPEG keeps to a grey level or two."""
    return np.broadcast_to(np.array(colour, np.uint8), (16, 24, 3)).copy()


def reach_step(episode: int, step: int) -> dict[str, Any]:
    """Returns a step of a reach episode.

    Its state is (episode, step, 0) and its action is state + 0.5. The base image has red
    10 * episode and green 20 * step (mod 256).
    """
    state = np.array([episode, step, 0], np.float32)
    images = {
        "base": solid((10 * episode % 256, 20 * step % 256, 200)),
        "wrist": solid((200, 0, 0)),
    }
    return {
        "observation": {**images, "state": state},
        "action": state + np.float32(0.5),
        "language_instruction": f"reach block {episode % 2}",
    }


def reach_episodes(lengths: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"steps": [reach_step(episode, step) for step in range(length)]}
        for episode, length in enumerate(lengths)
    ]


def write_reach(
    data_dir: Path,
    lengths: Sequence[int] = (3, 5, 4),
    *,
    name: str = "reach_arm3",
    steps: Mapping[str, Any] | None = None,
    episodes: Sequence[Any] | None = None,
    split: str = "train",
    per_shard: int = 2,
) -> Path:
    """Writes a reach dataset with episodes of these lengths, two a shard.

    With `episodes` it writes those, with `steps` as the features.
    """
    chosen = reach_episodes(lengths) if episodes is None else episodes
    return write_rlds(
        data_dir,
        name,
        "1.0.0",
        steps=steps or REACH_STEPS,
        metadata={},
        splits={split: chosen},
        episodes_per_shard=per_shard,
    )


def write_metaworld(data_dir: Path, name: str, *episodes: tuple[np.ndarray, np.ndarray]) -> Path:
    """Writes a dataset of Meta-World with episodes of these states and actions, [steps, 4] each."""
    four = ArrayFeature((4,), np.float32)
    features = {
        "observation": {"corner2": ImageFeature(16, 24), "state": four},
        "action": four,
        "language_instruction": TextFeature(),
    }
    written = [
        {
            "steps": [
                {
                    "observation": {"corner2": solid((9, 9, 9)), "state": np.float32(state)},
                    "action": np.float32(action),
                    "language_instruction": "open the drawer",
                }
                for state, action in zip(*episode, strict=True)
            ]
        }
        for episode in episodes
    ]
    return write_reach(data_dir, name=name, steps=features, episodes=written, per_shard=1)


def assert_in_order(text: str, *parts: str) -> None:
    """Checks that a message has these parts, in this order, whatever stands between them."""
    rest = text
    for part in parts:
        assert part in rest, text
        rest = rest.partition(part)[2]


def shard_files(directory: Path) -> Iterator[Path]:
    return iter(sorted(directory.glob("*.tfrecord-*")))
