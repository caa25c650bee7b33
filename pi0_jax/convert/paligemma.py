"""PaliGemma alone gives initial weights; it holds no action expert.

big_vision     one npz: params/img/..., params/llm/..., in our layout
Hugging Face   safetensors, sharded or not, with config.json; some pad the embedding to 257,216
               rows
"""

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import jax
import ml_dtypes
import numpy as np

from pi0_jax.convert import tree
from pi0_jax.convert.folder import Folder, open_file
from pi0_jax.convert.huggingface_names import Prefixes, heads, paligemma_rules
from pi0_jax.convert.metadata import (
    PUBLISHED_HORIZON,
    PUBLISHED_MAX_TOKENS,
    PUBLISHED_VOCABULARY,
)
from pi0_jax.convert.rules import Rule, match, rule
from pi0_jax.convert.source import LazyArray, Source, Tensors, mapped
from pi0_jax.data.storage import Location
from pi0_jax.errors import InputError
from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import VARIANTS, Pi0

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


# ---- big_vision's npz

_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def read_arrays(file: Location) -> dict[str, LazyArray]:
    """Opens an npz and reads the arrays' shapes.

    An array is read whole. The last one is kept while its layers are asked for.

    Raises:
        InputError: it is no whole npz; reading raises it for a damaged array.
    """
    held: dict[str, np.ndarray] = {}
    try:
        archive = zipfile.ZipFile(open_file(file))
        infos = {name.removesuffix(".npy"): _info(archive, name) for name in archive.namelist()}
    except _DAMAGED as error:
        found = " ".join(str(error).split())
        raise InputError(f"{file}: expected an npz, whole, found: {found}") from error

    def array(name: str, shape: tuple[int, ...], dtype: np.dtype) -> LazyArray:
        def read(entry: int | None) -> np.ndarray:
            if name not in held:
                held.clear()  # frees its memory before the next one is read
                try:
                    with archive.open(f"{name}.npy") as stream:
                        held[name] = np.lib.format.read_array(stream, allow_pickle=False)
                except _DAMAGED as error:
                    found = " ".join(str(error).split())
                    raise InputError(
                        f"{file}: {name}: expected a whole array, found: {found}"
                    ) from error
            whole = held[name].view(dtype)
            return whole if entry is None else whole[entry]

        return LazyArray(shape, dtype, read)

    return {name: array(name, shape, dtype) for name, (shape, dtype) in infos.items()}


def _info(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the shape and dtype of an array from its header."""
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _NPY_HEADERS:
            number = ".".join(map(str, version))
            raise ValueError(f"{name} of npy version {number}, which numbers do not need")
        shape, _, stored = _NPY_HEADERS[version](stream)
    # NumPy writes bfloat16 as two bytes without a meaning.
    return shape, np.dtype(ml_dtypes.bfloat16) if stored == np.dtype("V2") else stored


def read_npz(file: Location, sizes: tree.Sizes) -> Source:
    """Opens big_vision's npz, and reads no array yet."""
    tensors = read_arrays(file)
    if not any(match(name, NPZ_RULES) for name in tensors):
        found = ", ".join(list(tensors)[:3]) or "nothing"
        raise InputError(
            f"{file}: expected big_vision's params/img/... and params/llm/..., found {found}"
        )
    wanted, path = tree.BACKBONE_AXES, str(file)
    return mapped(tensors, NPZ_RULES, format=BIG_VISION, path=path, given=sizes, wanted=wanted)


# ---- Hugging Face's safetensors


def is_hugging_face(names: Iterable[str]) -> bool:
    """Returns whether any of the names is a tensor of Hugging Face's PaliGemma."""
    return any(match(name, table) for name in names for table in HUGGING_FACE_RULES)


def read_hugging_face(
    folder: Folder | None, path: str, tensors: Tensors, sizes: tree.Sizes
) -> Source:
    """Opens Hugging Face's safetensors; the arguments are those of `openpi.read_torch`."""
    # Of the names that transformers has used, take those that cover most tensors.
    table = max(HUGGING_FACE_RULES, key=lambda table: sum(bool(match(name, table)) for name in tensors))  # fmt: skip
    padded = {
        name: tensor
        for name, tensor in tensors.items()
        if name.endswith(("embed_tokens.weight", "lm_head.weight"))
        and tensor.shape[0] > PUBLISHED_VOCABULARY
    }
    cut = {name: _first_rows(tensor, PUBLISHED_VOCABULARY) for name, tensor in padded.items()}
    config = (
        folder.read_json("config.json") if folder is not None and "config.json" in folder else {}
    )
    given = heads({**tensors, **cut}, _heads_in(config), sizes)
    notes = tuple(f"{name}: padded; kept {PUBLISHED_VOCABULARY:,} rows" for name in padded)
    wanted = tree.BACKBONE_AXES
    source = mapped(
        {**tensors, **cut}, table, format=HUGGING_FACE, path=path, given=given, wanted=wanted
    )
    return dataclasses.replace(source, notes=(*notes, *source.notes))


def _first_rows(array: LazyArray, rows: int) -> LazyArray:
    """Returns the first rows of an array."""

    def read(entry: int | None) -> np.ndarray:
        return array.read(entry) if entry is not None else array.read(None)[:rows]

    return LazyArray((rows, *array.shape[1:]), array.dtype, read)


def _heads_in(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the sizes that a config.json names, by the letters of tree.py.

    It names only what is not its model type's default.
    """
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    found = {"M": vision.get("num_attention_heads"), "H": text.get("head_dim")}
    return {letter: size for letter, size in found.items() if size is not None}


# ---- the rest of π0


def with_fresh_leaves(source: Source, given: tree.Sizes, seed: int) -> Source:
    """Completes a source to all of π0.

    What it lacks is initialised as for a training from scratch, in float32. Sizes of the action
    expert that are not given are the published model's.
    """
    published = tree.sizes_of_config(VARIANTS["pi0"])
    expert = {letter: given.get(letter, published[letter]) for letter in "EGA"}
    sizes = {**source.sizes, **expert, "T": 2 * expert["E"]}
    shapes = tree.expected_shapes(sizes)
    missing = [path for path in tree.PI0_AXES if path not in source.leaves]
    model = Pi0(
        tree.model_config(sizes, horizon=PUBLISHED_HORIZON, max_tokens=PUBLISHED_MAX_TOKENS)
    )

    @jax.jit
    def initialise(key: jax.Array) -> Mapping[str, jax.Array]:
        flat = flatten(model.init(key, method=Pi0.declare)["params"])
        return {path: flat[path] for path in missing}  # the compiler leaves out the rest

    @cache
    def drawn() -> Mapping[str, np.ndarray]:
        return jax.tree.map(np.asarray, initialise(jax.random.key(seed)))

    def fresh(path: str) -> LazyArray:
        def read(layer: int | None) -> np.ndarray:
            return drawn()[path] if layer is None else drawn()[path][layer]

        return LazyArray(shapes[path], np.dtype(np.float32), read)

    leaves = {path: source.leaves[path] if path in source.leaves else fresh(path) for path in tree.PI0_AXES}  # fmt: skip
    note = f"not in the input, freshly initialised with seed {seed}: {', '.join(missing)}"
    return dataclasses.replace(source, leaves=leaves, sizes=sizes, notes=(*source.notes, note))
