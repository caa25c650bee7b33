"""Turns prompts into SentencePiece tokens, in the published format.

    "reach the_red block "  ->  BOS  reach  _the  _red  _block  \\n  PAD ...

The prompt is cleaned: "_" and "\\n" become blanks, and blanks at the ends are removed. BOS comes
first, and a line break ends the prompt (as published). The rest is padding up to a fixed length.

π0.5 reads the robot's state in its prompt (as published): each number, in model units, is named by
its bin, of 256 equal ones from -1 to 1. Below them is -1; the last one has what is above them.

  "reach the_red block ", (-1.2, 0, 3)  ->  "Task: reach the red block, State: -1 128 255;\\nAction: "
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from etils import epath

from pi0_jax.errors import InputError

# These are PaliGemma's special ids. Our own small model has the same.
PAD_ID, EOS_ID, BOS_ID, UNK_ID = 0, 1, 2, 3
SMALL_MODEL = Path(__file__).parents[1] / "assets" / "small_tokenizer.model"

STATE_BINS = 256
_LEFT_EDGES = np.linspace(-1.0, 1.0, STATE_BINS + 1)[:-1]


def state_bins(state: np.ndarray) -> np.ndarray:
    """Returns the bin of each number of a normalised state: int[n], from -1 to 255."""
    return np.searchsorted(_LEFT_EDGES, state, side="right") - 1


def prompt_with_state(text: str, state: str) -> str:
    """Returns the text of a prompt that tells the state, as published."""
    return f"Task: {text}, State: {state};\nAction: "


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

    def pieces(self, prompt: str, bins: Sequence[int] | None = None) -> list[int]:
        """Returns the token ids of a prompt, with BOS and its published end, unpadded.

        Args:
            prompt: the instruction.
            bins: the state that the prompt tells too; None: it tells none.
        """
        text = prompt.replace("_", " ").replace("\n", " ").strip()
        if bins is None:
            return [BOS_ID, *self._pieces.encode(text), *self._pieces.encode("\n")]
        state = " ".join(str(number) for number in bins)
        return [BOS_ID, *self._pieces.encode(prompt_with_state(text, state))]

    def most_pieces(self, prompt: str, state_dims: int | None = None) -> int:
        """Returns how many tokens a prompt has, with any state of so many dimensions in it."""
        bins = None if state_dims is None else [self._longest_bin] * state_dims
        return len(self.pieces(prompt, bins))

    @functools.cached_property
    def _longest_bin(self) -> int:
        """Returns the bin whose name takes most tokens."""
        return max(range(-1, STATE_BINS), key=lambda i: len(self._pieces.encode(f" {i}")))

    def encode(
        self,
        prompt: str,
        max_tokens: int,
        bins: Sequence[int] | None = None,
        *,
        cut: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Turns a prompt into token ids of a fixed length.

        Args:
            prompt: the instruction.
            max_tokens: the length.
            bins: the state that the prompt tells too; None: it tells none.
            cut: whether a longer prompt loses its end. One that tells the state never does.

        Returns:
            The ids int32[max_tokens], and bool[max_tokens], which is False where the ids are
            padding.

        Raises:
            InputError: the prompt is longer than `max_tokens`, and may not be cut.
        """
        ids = self.pieces(prompt, bins)
        if cut and bins is None:
            ids = ids[:max_tokens]
        if len(ids) > max_tokens:
            if bins is not None and (alone := len(self.pieces("", bins))) > max_tokens:
                raise InputError(
                    f"the state alone takes {alone} tokens, the limit (max_tokens) is {max_tokens}"
                )
            own = 0 if bins is None else len(ids) - len(self.pieces(prompt, ()))
            share = f", {own} of them the state's" if own else ""
            raise InputError(
                f"prompt has {len(ids)} tokens{share}, the limit is {max_tokens}: {prompt!r}"
            )
        tokens = np.full(max_tokens, PAD_ID, np.int32)
        tokens[: len(ids)] = ids
        return tokens, np.arange(max_tokens) < len(ids)
