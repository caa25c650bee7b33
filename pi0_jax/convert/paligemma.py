"""PaliGemma alone gives initial weights; it holds no action expert.

big_vision     one npz: params/img/..., params/llm/..., in our layout
Hugging Face   safetensors, sharded or not, with config.json; some pad the embedding to 257,216
               rows
"""

import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pi0_jax.convert.folder import Folder, open_file, optional
from pi0_jax.convert.huggingface_names import Prefixes, heads, paligemma_rules
from pi0_jax.convert.metadata import PUBLISHED_VOCABULARY, Metadata
from pi0_jax.convert.rules import Rule, match, rule
from pi0_jax.convert.safetensors_file import SafetensorsFiles
from pi0_jax.convert.source import Leaf, Source, mapped
from pi0_jax.convert.tree import BACKBONE_AXES, Sizes
from pi0_jax.data.storage import Location
from pi0_jax.errors import InputError

BIG_VISION, HUGGING_FACE = "big_vision", "hugging_face"
NPZ_RULES: list[Rule] = [
    rule("params/img/{path}", "PaliGemma/img/{path}"),
    rule("params/llm/{path}", "PaliGemma/llm/{path}"),
]
# transformers has changed the names of the parts in memory and on disk. Since version 5 there is no
# vision_model.
_PREFIXES = [
    Prefixes(f"{base}vision_tower.{vision}", f"{base}multi_modal_projector.", language, head)
    for base, language, head in (
        ("", "language_model.model.", "language_model.lm_head."),
        ("model.", "model.language_model.", "lm_head."),
        ("model.", "model.language_model.model.", "lm_head."),  # as transformers 5.5 saves it
    )
    for vision in ("vision_model.", "")
]
HUGGING_FACE_RULES: list[list[Rule]] = [paligemma_rules(prefixes) for prefixes in _PREFIXES]


_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Npz:
    """Gives the arrays of an npz, which are read one at a time.

    The last one is kept while its layers are asked for.
    """

    def __init__(self, file: Location) -> None:
        """Opens the file and reads the arrays' shapes; raises InputError if it is no whole npz."""
        self._file = file
        try:
            self._archive = zipfile.ZipFile(open_file(file))
            self.infos = {
                name.removesuffix(".npy"): self._info(name) for name in self._archive.namelist()
            }
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{file}: expected an npz, whole, found: {' '.join(str(error).split())}"
            ) from error
        self._held: tuple[str, np.ndarray] | None = None

    def _info(self, name: str) -> Leaf:
        """Reads the shape and dtype of an array from its header."""
        with self._archive.open(name) as stream:
            version = np.lib.format.read_magic(stream)
            if version not in _NPY_HEADERS:
                raise ValueError(
                    f"{name} of npy version {version[0]}.{version[1]}, which numbers do not need"
                )
            shape, _, dtype = _NPY_HEADERS[version](stream)
        return Leaf(shape, _dtype(dtype))

    def read(self, name: str, entry: int | None = None) -> np.ndarray:
        """Reads an array, or its `entry` along the first axis."""
        if self._held is None or self._held[0] != name:
            self._held = None  # frees its memory before the next one is read
            try:
                with self._archive.open(f"{name}.npy") as stream:
                    self._held = (name, np.lib.format.read_array(stream, allow_pickle=False))
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise InputError(
                    f"{self._file}: {name}: expected a whole array, found: {' '.join(str(error).split())}"
                ) from error
        array = self._held[1]
        array = array.view(self.infos[name].dtype)
        return array if entry is None else array[entry]


def _dtype(stored: np.dtype) -> np.dtype:
    """Returns the dtype of stored numbers: NumPy writes bfloat16 as two bytes without a meaning."""
    return np.dtype(ml_dtypes.bfloat16) if stored == np.dtype("V2") else stored


def read_npz(file: Location, sizes: Sizes) -> Source:
    """Opens big_vision's npz, and reads no array yet."""
    tensors = Npz(file)
    others = [name for name in tensors.infos if match(name, NPZ_RULES) is None]
    if len(others) == len(tensors.infos):
        raise InputError(
            f"{file}: expected big_vision's params/img/... and params/llm/..., found {', '.join(others[:3]) or 'nothing'}"
        )
    return mapped(
        tensors,
        NPZ_RULES,
        format=BIG_VISION,
        path=str(file),
        wanted=BACKBONE_AXES,
        given=sizes,
        metadata=Metadata(),
    )


class _Unpadded:
    """Gives tensors whose embeddings are cut to PaliGemma's vocabulary."""

    def __init__(self, tensors: SafetensorsFiles) -> None:
        self._tensors = tensors
        self.padded = [
            name
            for name, info in tensors.infos.items()
            if _is_embedding(name) and info.shape[0] > PUBLISHED_VOCABULARY
        ]
        self.infos: Mapping[str, Leaf] = {
            name: Leaf((PUBLISHED_VOCABULARY, *info.shape[1:]), info.dtype)
            if name in self.padded
            else info
            for name, info in tensors.infos.items()
        }

    def read(self, name: str, entry: int | None = None) -> np.ndarray:
        """Reads a tensor, or its `entry` along the first axis."""
        array = self._tensors.read(name, entry)
        return array[:PUBLISHED_VOCABULARY] if name in self.padded and entry is None else array


def _is_embedding(name: str) -> bool:
    """Returns whether a tensor has a row for each piece of the vocabulary."""
    return name.endswith(("embed_tokens.weight", "lm_head.weight"))


def is_hugging_face(names: list[str]) -> bool:
    """Returns whether a tensor has a name of Hugging Face's PaliGemma."""
    return any(match(name, table) is not None for table in HUGGING_FACE_RULES for name in names)


def read_hugging_face(
    folder: Folder | None, path: str, tensors: SafetensorsFiles, sizes: Sizes
) -> Source:
    """Opens Hugging Face's safetensors, and reads no array yet.

    Args:
        folder: where config.json lies; None for a file alone.
        path: names the checkpoint in messages.
        tensors: the arrays.
        sizes: those that the user gives, because no tensor shows them.
    """
    covered = [
        sum(match(name, table) is not None for name in tensors.infos)
        for table in HUGGING_FACE_RULES
    ]
    # Of the names that transformers has used, take those that cover most tensors.
    table = HUGGING_FACE_RULES[covered.index(max(covered))]
    unpadded = _Unpadded(tensors)
    config = (
        folder.read_json("config.json") if folder is not None and "config.json" in folder else {}
    )
    given = heads(unpadded.infos, _heads_in(config), sizes)
    notes = tuple(f"{name}: padded; kept {PUBLISHED_VOCABULARY:,} rows" for name in unpadded.padded)
    return mapped(
        unpadded,
        table,
        format=HUGGING_FACE,
        path=path,
        wanted=BACKBONE_AXES,
        given=given,
        metadata=Metadata(),
        notes=notes,
    )


def _heads_in(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the sizes that a config.json names, by the letters of tree.py.

    It names only what is not its model type's default.
    """
    vision, text = optional(config, "vision_config") or {}, optional(config, "text_config") or {}
    found = {"M": optional(vision, "num_attention_heads"), "H": optional(text, "head_dim")}
    return {letter: size for letter, size in found.items() if size is not None}
