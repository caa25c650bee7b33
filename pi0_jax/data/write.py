"""Writes RLDS episodes as an ordinary TFDS dataset, which tfds.builder_from_directory opens.

    data_dir/name/version/
        dataset_info.json  features.json         what TFDS needs to open it
        metadata.json                            the settings it was made with
        name-train.tfrecord-00000-of-00003 ...   one record per episode

An episode is {"steps": [step, ...], "episode_metadata": {...}, ...}. Steps, metadata, and what else
a dataset holds are nested dicts, as their features say. The folder appears under its name when it
is whole. Until then it has a name beside it that TFDS takes for no version.
"""

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image as PilImage

from pi0_jax.data.records.serialise import Values, serialise_example
from pi0_jax.errors import InputError, optional_packages

JPEG_QUALITY = 95
ImageEncoding: TypeAlias = Literal["jpeg", "png"]


@dataclasses.dataclass(frozen=True)
class ImageFeature:
    """Declares an image, a JPEG unless it says "png".

    An episode holds uint8[height, width, 3], or the bytes of a file, which are kept as they are.
    """

    height: int
    width: int
    encoding: ImageEncoding = "jpeg"


@dataclasses.dataclass(frozen=True)
class ArrayFeature:
    """Declares a number or an array of numbers. A dimension of None has any size."""

    shape: tuple[int | None, ...]
    dtype: Any  # what np.dtype takes


@dataclasses.dataclass(frozen=True)
class TextFeature:
    """Declares a str."""


# Leaves are the features above. A dataset that needs another kind has connectors of tfds.features.
Features: TypeAlias = Mapping[str, Any]


def encode_jpeg(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """Encodes an image as JPEG.

    Colour has full resolution, so that small things keep their colour.

    Args:
        image: uint8[height, width, 3], RGB.
        quality: 1 to 100.

    Raises:
        InputError: the image has another dtype or shape.
    """
    return _encode(image, "JPEG", quality=quality, subsampling=0)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image as PNG, which loses nothing; arguments and errors are those of encode_jpeg.

    The least effort takes a third of the usual time, for a tenth more bytes.
    """
    return _encode(image, "PNG", compress_level=1)


def _encode(image: np.ndarray, kind: str, **options: int) -> bytes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise InputError(
            f"image: expected uint8[height, width, 3], found {image.dtype}{list(image.shape)}"
        )
    file = io.BytesIO()
    PilImage.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def write_rlds(
    data_dir: str | os.PathLike[str],
    name: str,
    version: str,
    *,
    steps: Features,
    metadata: Features,
    episode: Features | None = None,
    splits: Mapping[str, Iterable[Mapping[str, Any] | bytes]],
    settings: Mapping[str, Any] | None = None,
    episodes_per_shard: int = 256,
) -> Path:
    """Writes the dataset data_dir/name/version and returns its folder.

    The same episodes and settings give the same bytes.

    Args:
        data_dir: the folder of datasets.
        name: the dataset's name.
        version: such as "1.0.0".
        steps: features of a step, `observation`, `action` and the rest; a nested dict.
        metadata: features of `episode_metadata`; empty for none.
        episode: further features of an episode, beside `steps` and `episode_metadata`.
        splits: split name -> its episodes, each consumed once, in order. An episode may be
            serialised already (example.py).
        settings: what the data were made with (JSON values), for `read_settings`.
        episodes_per_shard: the largest number of episodes in a file.

    Raises:
        InputError: the folder exists already, a split has no episode, or the extra `data` is not
            installed.
    """
    folder = Path(data_dir) / name / version
    if folder.exists():
        raise InputError(f"{folder}: a dataset is here already; choose another folder or delete it")
    with optional_packages():
        features = _episode_features(steps, metadata, episode or {})
    temporary = folder.with_name(f"{version}.incomplete-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        infos = [
            _write_split(
                temporary, name, split, _encoded(features, steps, episodes), episodes_per_shard
            )
            for split, episodes in splits.items()
        ]
        _write_info(temporary, name, version, features, infos, settings or {})
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_info(
    folder: Path,
    name: str,
    version: str,
    *,
    steps: Features,
    metadata: Features,
    shards: Mapping[str, tuple[Sequence[int], int]],
    settings: Mapping[str, Any],
) -> None:
    """Writes the files that TFDS needs to open a dataset whose shards are in `folder` already.

    Args:
        folder: where the dataset is.
        name: the dataset's name.
        version: such as "1.0.0".
        steps: features of a step, as for write_rlds.
        metadata: features of `episode_metadata`.
        shards: split name -> the number of records in each of its files, and the bytes of all its
            records.
        settings: what the data were made with, as for write_rlds.
    """
    import tensorflow_datasets as tfds

    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(lengths),
            num_bytes=size,
            filename_template=_template(folder, name, split),
        )
        for split, (lengths, size) in shards.items()
    ]
    _write_info(folder, name, version, _episode_features(steps, metadata, {}), infos, settings)


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Returns the settings of the dataset in `folder`, or None where nothing is there."""
    if not folder.exists():
        return None
    file = folder / "metadata.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _episode_features(steps: Features, metadata: Features, episode: Features) -> Any:
    import tensorflow_datasets as tfds

    features = {**_tfds_features(episode), "steps": tfds.features.Dataset(_tfds_features(steps))}
    if metadata:
        features["episode_metadata"] = _tfds_features(metadata)
    return tfds.features.FeaturesDict(features)


def _tfds_features(feature: Any) -> Any:
    """Returns a feature, or a nested dict of features, as TFDS declares them."""
    import tensorflow_datasets as tfds

    match feature:
        case ImageFeature():
            return tfds.features.Image(
                shape=(feature.height, feature.width, 3), encoding_format=feature.encoding
            )
        case ArrayFeature():
            return tfds.features.Tensor(shape=feature.shape, dtype=np.dtype(feature.dtype).type)
        case TextFeature():
            return tfds.features.Text()
        case Mapping():
            return {name: _tfds_features(child) for name, child in feature.items()}
        case _:
            return feature


def _encoded(
    features: Any, steps: Features, episodes: Iterable[Mapping[str, Any] | bytes]
) -> Iterable[bytes]:
    """Yields each episode as a serialised tf.train.Example."""
    import tensorflow as tf

    for episode in episodes:
        if isinstance(episode, bytes):
            yield episode
            continue
        encoded = {**episode, "steps": [_with_files(steps, step) for step in episode["steps"]]}
        example = tf.train.Example.FromString(features.serialize_example(encoded))
        # Without this a protocol buffer's maps are in any order.
        yield example.SerializeToString(deterministic=True)


def image_file(feature: ImageFeature, image: np.ndarray | bytes) -> bytes:
    """Returns the file of an image: encoded as the feature says, or as it is.

    Raises:
        InputError: the image does not have the feature's size.
    """
    if not isinstance(image, np.ndarray):
        return image
    if image.shape[:2] != (feature.height, feature.width):
        raise InputError(
            f"image: expected uint8[{feature.height}, {feature.width}, 3], found {image.dtype}{list(image.shape)}"
        )
    return encode_jpeg(image) if feature.encoding == "jpeg" else encode_png(image)


def _with_files(feature: Any, value: Any) -> Any:
    """Returns `value` with the arrays of image features encoded."""
    if isinstance(feature, ImageFeature):
        return image_file(feature, value)
    if isinstance(feature, Mapping):
        return {name: _with_files(feature[name], child) for name, child in value.items()}
    return value


def _write_split(
    folder: Path, name: str, split: str, records: Iterable[bytes], per_shard: int
) -> Any:
    """Writes a split's shards and returns its tfds.core.SplitInfo."""
    import tensorflow_datasets as tfds

    shards, size = _write_shards(folder, split, records, per_shard)
    if not shards:
        raise InputError(f"dataset {name}: split {split!r} has no episode")
    template = _template(folder, name, split)
    for i, (shard, _) in enumerate(shards):
        os.rename(shard, template.sharded_filepath(shard_index=i, num_shards=len(shards)))
    lengths = [length for _, length in shards]
    return tfds.core.SplitInfo(
        name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
    )


def _template(folder: Path, name: str, split: str) -> Any:
    """Returns the names of a split's files, as TFDS gives them."""
    import tensorflow_datasets as tfds

    return tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="tfrecord"
    )


def _write_shards(
    folder: Path, split: str, records: Iterable[bytes], per_shard: int
) -> tuple[Sequence[tuple[Path, int]], int]:
    """Writes files of at most `per_shard` records.

    Returns:
        (file, number of records) for each shard, and the bytes of all records together.
    """
    # The number of shards is a part of their names and is known only at the end. So these names
    # are not the last ones.
    import tensorflow as tf

    shards: list[tuple[Path, int]] = []
    size, writer = 0, None
    for record in records:
        if writer is None or shards[-1][1] == per_shard:
            if writer is not None:
                writer.close()
            shards.append((folder / f"{split}.shard-{len(shards)}", 0))
            writer = tf.io.TFRecordWriter(str(shards[-1][0]))
        writer.write(record)
        shards[-1] = (shards[-1][0], shards[-1][1] + 1)
        size += len(record)
    if writer is not None:
        writer.close()
    return shards, size


def _write_info(
    folder: Path,
    name: str,
    version: str,
    features: Any,
    splits: Sequence[Any],
    settings: Mapping[str, Any],
) -> None:
    """Writes the files that TFDS needs to open the dataset."""
    import tensorflow_datasets as tfds

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=os.fspath(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=features, metadata=tfds.core.MetadataDict(settings)
    )
    info.set_file_format(tfds.core.FileFormat.TFRECORD)
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)


# ---- records without TensorFlow


def serialised(steps: Features, metadata: Features, episode: Mapping[str, Any]) -> bytes:
    """Returns an episode as TFDS serialises it, without TensorFlow.

    TFDS takes longer for it than a small simulator takes for the episode. Worker processes that
    have loaded OpenGL can make these bytes.

    Args:
        steps: features of a step. Arrays have fixed sizes.
        metadata: features of `episode_metadata`.
        episode: {"steps": [step, ...], "episode_metadata": {...}}, as write_rlds takes it.

    Raises:
        InputError: a value does not have its feature's shape, or the feature is of another kind.
    """
    about = [episode["episode_metadata"]] if metadata else []
    leaves = [*_leaves(steps, episode["steps"], "steps")]
    leaves += _leaves(metadata, about, "episode_metadata")
    return serialise_example(
        {name: _values(name, feature, found) for name, feature, found in leaves}
    )


def _leaves(
    features: Features, items: Sequence[Any], place: str
) -> Iterator[tuple[str, Any, list[Any]]]:
    """Yields every feature with its name and its values in all items."""
    for name, feature in features.items():
        path, found = f"{place}/{name}", [item[name] for item in items]
        if isinstance(feature, Mapping):
            yield from _leaves(feature, found, path)
        else:
            yield path, feature, found


def _values(name: str, feature: Any, found: Sequence[Any]) -> Values:
    """Returns a feature's values in all steps, one after the other, as a record holds them."""
    match feature:
        case ImageFeature():
            return [image_file(feature, image) for image in found]
        case TextFeature():
            return [text.encode() for text in found]
        case ArrayFeature():
            dtype = np.dtype(feature.dtype)
            if dtype != np.float32 and dtype.kind not in "bi":
                raise InputError(f"{name}: expected float32, whole numbers or flags, found {dtype}")
            rows = [np.asarray(one, dtype) for one in found]
            for step, row in enumerate(rows):
                if row.shape != tuple(feature.shape):
                    expected = f"expected {list(feature.shape)}, found {list(row.shape)}"
                    raise InputError(f"{name}, step {step}: {expected}")
            return np.array(rows, dtype).ravel()
        case _:
            raise InputError(f"{name}: expected an image, an array or a text, found {feature!r}")
