"""The prompt has its format, and the small model that ships works."""

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from pi0_jax.errors import InputError
from pi0_jax.preprocess import tokenizer
from pi0_jax.preprocess.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer
from tests.own_process import python

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.open("small")


@pytest.fixture(scope="module")
def reference() -> sentencepiece.SentencePieceProcessor:
    """Returns SentencePiece itself on the same file."""
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.SMALL_MODEL))


def test_bos_prompt_line_break_padding(small, reference):
    tokens, mask = small.encode("reach the red block", 10)
    words = reference.encode("reach the red block")
    newline = reference.piece_to_id("\n")
    assert newline != UNK_ID
    assert tokens.tolist() == [BOS_ID, *words, newline, *[PAD_ID] * (8 - len(words))]
    assert mask.tolist() == [True] * (len(words) + 2) + [False] * (8 - len(words))
    assert tokens.dtype == np.int32
    assert mask.dtype == bool


def test_paligemmas_special_ids(small, reference):
    assert (PAD_ID, EOS_ID, BOS_ID, UNK_ID) == (0, 1, 2, 3)
    assert [reference.id_to_piece(i) for i in range(4)] == ["<pad>", "</s>", "<s>", "<unk>"]
    assert small.vocab_size == 512


@pytest.mark.parametrize(
    "prompt",
    [
        "reach the_red\nblock",
        "  reach the red block ",
        "reach the red block\n",
        "reach_the_red_block",
    ],
)
def test_underscores_line_breaks_and_outer_blanks_are_cleaned(small, prompt):
    assert small.pieces(prompt) == small.pieces("reach the red block")


def test_an_empty_prompt_is_bos_and_line_break(small, reference):
    assert small.pieces("") == [BOS_ID, reference.piece_to_id("\n")]


def test_common_words_are_one_piece_each(small):
    assert len(small.pieces("reach the red block")) == 6


@pytest.mark.parametrize("prompt", ["naïve", "抓住红色方块", "🙂"])
def test_unseen_characters_become_bytes_never_unknown(small, reference, prompt):
    pieces = small.pieces(prompt)
    assert UNK_ID not in pieces
    assert reference.decode(pieces[1:-1]) == prompt


def test_a_prompt_of_exactly_the_limit_fits_and_a_longer_one_is_an_error(small):
    tokens, mask = small.encode("reach the red block", 6)
    assert mask.all()
    assert PAD_ID not in tokens
    with pytest.raises(InputError, match="^prompt has 6 tokens, the limit is 5: 'reach the red"):
        small.encode("reach the red block", 5)


def test_a_longer_prompt_loses_its_end_where_that_is_wanted(small):
    whole, _ = small.encode("reach the red block", 6)
    tokens, mask = small.encode("reach the red block", 4, cut=True)
    assert tokens.tolist() == whole[:4].tolist() and mask.all()


def test_the_model_travels_as_bytes(small):
    assert Tokenizer(small.model).pieces("touch the blue cup") == small.pieces("touch the blue cup")


def test_a_model_with_other_special_ids_is_refused():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["reach the red block"] * 9),
        model_writer=model,
        vocab_size=20,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(InputError, match=r"^their\.model: .*\(-1, 2, 1, 0\); expected \(0, 1, 2"):
        Tokenizer(model.getvalue(), "their.model")


@pytest.mark.parametrize("content", [b"", b"no SentencePiece model"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.model: "):
        Tokenizer.open(str(file))


@pytest.mark.parametrize("name", ["missing.model", "."])
def test_a_missing_file_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match=f"tokenizer model not found: {path} is not a file"):
        Tokenizer.open(str(path))


def test_the_shipped_model_is_what_its_command_writes(tmp_path):
    output = tmp_path / "small.model"
    python("-m", "launch.make_tokenizer", f"--output={output}")
    assert output.read_bytes() == tokenizer.SMALL_MODEL.read_bytes()
