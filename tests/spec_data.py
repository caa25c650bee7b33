"""Makes tiny real TFDS datasets with the exact feature structure of a public one.

The structure is described in tests/oxe_specs.

    index = index_from_spec(ROWS["toto"], tmp_path, [
        {
            "steps/action/world_vector": [[0.1, 0, 0], [0.2, 0, 0]],    one value a step: two steps
            "steps/observation/image": [(255, 0, 0), (255, 0, 0)],      each image has one colour
            "steps/observation/natural_language_instruction": "pour",   one text for all steps
        },
    ])

Colours are given as they are stored. What an episode does not give is filled in: identity for
quaternions and matrices, 0.1 for other numbers, False, "do something", grey images. Images have the
size that the description declares.
"""

import functools
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from pi0_jax.data.index import Index, build_or_open
from pi0_jax.data.rows import STEPS, Dataset
from pi0_jax.data.write import encode_jpeg, write_rlds

SPECS = Path(__file__).parent / "oxe_specs"
INSTRUCTION = "do something"
GREY = (128, 128, 128)

Episode = Mapping[str, Any]  # path -> values


def load_spec(name: str) -> dict[str, Any]:
    return json.loads((SPECS / f"{name}.json").read_text())


def spec_fields(name: str) -> dict[str, dict[str, Any]]:
    """Returns path -> the description of a field: type, shape, dtype."""
    return dict(_leaves(load_spec(name)["features"], ""))


def index_from_spec(
    row: Dataset,
    data_dir: Path,
    episodes: Sequence[Episode],
    *,
    spec: str | None = None,
    version: str | None = None,
    zlib: Collection[str] = (),
    split: str = "train",
) -> Index:
    """Returns the index of a tiny dataset in the row's folder.

    `spec` names the description, by default as the folder. `version` is by default the row's
    preferred one.
    """
    write_from_spec(
        data_dir,
        spec or row.tfds_name,
        episodes,
        tfds_name=row.tfds_name,
        version=version or row.versions[0],
        zlib=zlib,
        split=split,
    )
    return build_or_open(row, data_dir, progress=False)


def write_from_spec(
    data_dir: Path,
    spec: str,
    episodes: Sequence[Episode],
    *,
    tfds_name: str,
    version: str,
    zlib: Collection[str] = (),
    split: str = "train",
) -> Path:
    """Writes data_dir/tfds_name/version and returns it.

    Fields of the steps in `zlib` are stored compressed.

    Raises:
        ValueError: the description does not have a path, or values differ in the number of steps.
    """
    description = load_spec(spec)["features"]
    unknown = set(zlib).union(*episodes) - spec_fields(spec).keys()
    if unknown:
        raise ValueError(f"{spec} has no field {', '.join(sorted(unknown))}")
    features = {
        name: _features(feature, name, zlib)
        for name, feature in description.items()
        if name != "steps"
    }
    metadata = features.pop("episode_metadata", {})
    return write_rlds(
        data_dir,
        tfds_name,
        version,
        steps=_features(description["steps"]["feature"], "steps", zlib),
        metadata=metadata,
        episode=features,
        splits={split: [_episode(description, given) for given in episodes]},
    )


def _is_leaf(description: Mapping[str, Any]) -> bool:
    return isinstance(description.get("type"), str)


def _leaves(description: Mapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not _is_leaf(description):
        for name, child in description.items():
            yield from _leaves(child, f"{path}/{name}" if path else name)
    elif description["type"] == "Dataset":
        yield from _leaves(description["feature"], path)
    else:
        yield path, dict(description)


def _features(description: Mapping[str, Any], path: str, zlib: Collection[str]) -> Any:
    """Returns the description as nested dicts of TFDS features."""
    if not _is_leaf(description):
        return {
            name: _features(child, f"{path}/{name}", zlib) for name, child in description.items()
        }
    shape, dtype = tuple(description["shape"]), description["dtype"]
    match description["type"]:
        case "Image":
            return tfds.features.Image(
                shape=shape, dtype=np.dtype(dtype), encoding_format=description["encoding_format"]
            )
        case "Text":
            return tfds.features.Text()
        case "Scalar":
            return tfds.features.Scalar(_numpy_type(dtype))
        case "Tensor":
            return tfds.features.Tensor(
                shape=shape, dtype=_numpy_type(dtype), encoding="zlib" if path in zlib else "none"
            )
        case other:
            raise ValueError(f"{path}: a feature of type {other}, which no row needs")


def _numpy_type(dtype: str) -> Any:
    return np.str_ if dtype == "string" else np.dtype(dtype).type


def _episode(description: Mapping[str, Any], given: Episode) -> dict[str, Any]:
    """Returns an episode in the form that write_rlds takes."""
    lengths = {
        path: len(values)
        for path, values in given.items()
        if path.startswith(STEPS) and not isinstance(values, str)
    }
    if len(set(lengths.values())) != 1:
        raise ValueError(f"expected values for one number of steps, found {lengths}")
    count = next(iter(lengths.values()))
    top = {
        name: _value(child, name, given) for name, child in description.items() if name != "steps"
    }
    return {
        **top,
        "steps": [
            _value(description["steps"]["feature"], "steps", given, step, count)
            for step in range(count)
        ],
    }


def _value(
    description: Mapping[str, Any], path: str, given: Episode, step: int = 0, count: int = 1
) -> Any:
    """Returns what an episode holds at `path`: nested dicts of values.

    If the path is one of the steps, the values are those of one step.
    """
    if not _is_leaf(description):
        return {
            name: _value(child, f"{path}/{name}", given, step, count)
            for name, child in description.items()
        }
    if path in given:
        value = (
            given[path]
            if isinstance(given[path], str) or not path.startswith(STEPS)
            else given[path][step]
        )
    else:
        value = _default(description, path.rsplit("/", 1)[-1], step, count)
    shape, dtype = tuple(description["shape"]), description["dtype"]
    if description["type"] == "Image":
        return _encoded(tuple(value), shape, dtype, description["encoding_format"])
    if dtype == "string":
        return value
    if isinstance(value, str):  # as code points, padded with 0
        codes = [ord(letter) for letter in value]
        value = codes + [0] * (shape[0] - len(codes))
    return np.array(value, dtype).reshape(shape)


def _default(description: Mapping[str, Any], name: str, step: int, count: int) -> Any:
    shape, dtype = tuple(description["shape"]), description["dtype"]
    if description["type"] == "Image":
        return GREY
    if dtype == "string" or name == "instruction":
        return INSTRUCTION
    if dtype == "bool":
        return (name == "is_first" and step == 0) or (
            name in ("is_last", "is_terminal") and step == count - 1
        )
    if not dtype.startswith("float"):
        return np.zeros(shape, dtype)
    parts = (
        [_default_part(*part) for part in description["layout"]]
        if "layout" in description and len(shape) == 1
        else []
    )
    return np.concatenate(parts) if parts else np.full(shape, 0.1)


def _default_part(kind: str, size: int) -> np.ndarray:
    """Returns a part of a vector, by the name that the description's layout gives it."""
    if kind == "quat":
        return np.array([0.0, 0.0, 0.0, 1.0])
    if kind == "mat":
        return np.eye(round(size**0.5)).ravel()
    return np.full(size, 0.1)


@functools.cache
def _encoded(
    colour: tuple[int, ...], shape: tuple[int, ...], dtype: str, encoding: str | None
) -> bytes | np.ndarray:
    """Returns an image file of one colour; for depth, which no row reads, an array of zeros."""
    if (shape[2], dtype) != (3, "uint8"):
        return np.zeros(shape, dtype)
    pixels = np.broadcast_to(np.array(colour, np.uint8), shape)
    if encoding != "png":
        return encode_jpeg(pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
