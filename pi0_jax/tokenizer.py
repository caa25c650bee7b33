"""SentencePiece pieces and the prompt format.

    "reach the_red block "  ->  BOS  reach  _the  _red  _block  \\n  PAD ...

The prompt is cleaned ("_" and "\\n" become blanks, blanks at the ends go), BOS comes first, a line break ends it (as published), and
the rest is padding up to a fixed length.
"""

from pathlib import Path

import numpy as np
import sentencepiece
from etils import epath

from pi0_jax.errors import InputError

# PaliGemma's special ids, which our own small model shares.
PAD_ID, EOS_ID, BOS_ID, UNK_ID = 0, 1, 2, 3
SMALL_MODEL = Path(__file__).parent / "assets" / "small_tokenizer.model"


class Tokenizer:
    """Prompts to token ids. `model` is the content of a SentencePiece model file; it travels in checkpoints."""

    def __init__(self, model: bytes, source: str = "tokenizer model") -> None:
        self.model = model
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{source}: not a SentencePiece model: {error}") from error
        ids = (
            self._pieces.pad_id(),
            self._pieces.eos_id(),
            self._pieces.bos_id(),
            self._pieces.unk_id(),
        )
        if ids != (PAD_ID, EOS_ID, BOS_ID, UNK_ID):
            raise InputError(
                f"{source}: (pad, eos, bos, unk) ids are {ids}; expected {(PAD_ID, EOS_ID, BOS_ID, UNK_ID)} as in PaliGemma"
            )

    @classmethod
    def open(cls, path: str) -> "Tokenizer":
        """Reads a model file by path or URL (gs://...); "small" is the one that ships with this package."""
        file = epath.Path(SMALL_MODEL if path == "small" else path)
        if not file.is_file():
            raise InputError(f"tokenizer model not found: {file} is not a file")
        return cls(file.read_bytes(), str(file))

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size()

    def pieces(self, prompt: str) -> list[int]:
        """Token ids of a prompt, BOS and the closing line break included, no padding."""
        text = prompt.replace("_", " ").replace("\n", " ").strip()
        return [BOS_ID, *self._pieces.encode(text), *self._pieces.encode("\n")]

    def encode(
        self, prompt: str, max_tokens: int, *, cut: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """int32[max_tokens] and bool[max_tokens] (False: padding). A longer prompt is an InputError, or loses its end where `cut`."""
        ids = self.pieces(prompt)
        if cut:
            ids = ids[:max_tokens]
        if len(ids) > max_tokens:
            raise InputError(f"prompt has {len(ids)} tokens, the limit is {max_tokens}: {prompt!r}")
        tokens = np.full(max_tokens, PAD_ID, np.int32)
        tokens[: len(ids)] = ids
        return tokens, np.arange(max_tokens) < len(ids)
