"""Turns prompts into SentencePiece tokens, in the published format.

    "reach the_red block "  ->  BOS  reach  _the  _red  _block  \\n  PAD ...

The prompt is cleaned: "_" and "\\n" become blanks, and blanks at the ends are removed. BOS comes
first, and a line break ends the prompt (as published). The rest is padding up to a fixed length.
"""

from pathlib import Path

import numpy as np
import sentencepiece
from etils import epath

from pi0_jax.errors import InputError

# These are PaliGemma's special ids. Our own small model has the same.
PAD_ID, EOS_ID, BOS_ID, UNK_ID = 0, 1, 2, 3
SMALL_MODEL = Path(__file__).parents[1] / "assets" / "small_tokenizer.model"


class Tokenizer:
    """Turns prompts into token ids.

    Attributes:
        model: the content of a SentencePiece model file. Checkpoints carry it.
    """

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
        """Reads a model file.

        Args:
            path: a path or a URL (gs://...). "small" is the model that ships with this package.

        Raises:
            InputError: there is no such file, or it is not a SentencePiece model with PaliGemma's
                ids.
        """
        file = epath.Path(SMALL_MODEL if path == "small" else path)
        if not file.is_file():
            raise InputError(f"tokenizer model not found: {file} is not a file")
        return cls(file.read_bytes(), str(file))

    @property
    def vocab_size(self) -> int:
        """Returns the number of token ids."""
        return self._pieces.vocab_size()

    def pieces(self, prompt: str) -> list[int]:
        """Returns the token ids of a prompt with BOS and the closing line break, unpadded."""
        text = prompt.replace("_", " ").replace("\n", " ").strip()
        return [BOS_ID, *self._pieces.encode(text), *self._pieces.encode("\n")]

    def encode(
        self, prompt: str, max_tokens: int, *, cut: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Turns a prompt into token ids of a fixed length.

        Args:
            prompt: the instruction.
            max_tokens: the length.
            cut: whether a longer prompt loses its end.

        Returns:
            The ids int32[max_tokens], and bool[max_tokens], which is False where the ids are
            padding.

        Raises:
            InputError: the prompt is longer than `max_tokens`, and `cut` is False.
        """
        ids = self.pieces(prompt)
        if cut:
            ids = ids[:max_tokens]
        if len(ids) > max_tokens:
            raise InputError(f"prompt has {len(ids)} tokens, the limit is {max_tokens}: {prompt!r}")
        tokens = np.full(max_tokens, PAD_ID, np.int32)
        tokens[: len(ids)] = ids
        return tokens, np.arange(max_tokens) < len(ids)
