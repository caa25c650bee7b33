"""Reads batches with a plain TFDS and tf.data pipeline, which ours is compared with.

It has the habits of the public pipelines:

    episodes -> frames with their action chunks -> repeat -> shuffle buffer of encoded frames
             -> decode in parallel -> batch -> prefetch
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def batches(
    directory: Path, cameras: list[str], *, horizon: int, buffer: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Returns batches of uint8 images, states and action chunks.

    Args:
        directory: the dataset's folder.
        cameras: names of the cameras in a step's observation.
        horizon: steps of a chunk.
        buffer: frames of the shuffle buffer, in which images stay encoded.
        batch_size: frames of a batch.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def frames(episode: dict[str, Any]) -> Any:
        steps = episode["steps"]
        length = tf.shape(steps["action"])[0]
        places = tf.minimum(tf.range(length)[:, None] + tf.range(horizon)[None, :], length - 1)
        frame = {camera: steps["observation"][camera] for camera in cameras}
        frame |= {"state": steps["observation"]["state"], "prompt": steps["language_instruction"]}
        return tf.data.Dataset.from_tensor_slices(
            {**frame, "actions": tf.gather(steps["action"], places)}
        )

    def decode(frame: dict[str, Any]) -> dict[str, Any]:
        return {
            **frame,
            **{camera: tf.io.decode_jpeg(frame[camera], channels=3) for camera in cameras},
        }

    builder = tfds.builder_from_directory(directory)
    episodes = builder.as_dataset(
        split="train", shuffle_files=True, decoders={"steps": tfds.decode.SkipDecoding()}
    )
    stream = (
        episodes.repeat()
        .flat_map(frames)
        .shuffle(buffer)
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    )
    return stream.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
