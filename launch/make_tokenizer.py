"""Trains the small tokenizer that ships with the package.

python -m launch.make_tokenizer --output=FILE
"""

import io
import itertools

import sentencepiece
from absl import flags

from pi0_jax.preprocess.tokenizer import BOS_ID, EOS_ID, PAD_ID, SMALL_MODEL, UNK_ID

from . import app

_OUTPUT = flags.DEFINE_string("output", str(SMALL_MODEL), "Where to write the SentencePiece model.")

VOCAB_SIZE = 512
VERBS = (
    "reach", "touch", "go to", "move to", "point at", "pick up", "grasp", "lift", "push", "open",
    "close", "turn", "wipe",
)  # fmt: skip
PLACES = (
    "on the table", "in the bowl", "into the drawer", "next to the cup",
    "to the left of the plate", "on top of the pot", "in the sink",
)  # fmt: skip
COLOURS = "red green blue yellow orange purple black white brown silver".split()
THINGS = "block cube bowl cup spoon fork knife towel cloth pot pan lid can bottle drawer carrot"
OBJECTS = THINGS.split()


def corpus() -> list[str]:
    """Returns instructions of the kind that robots get, most of them about coloured things."""
    reach = [
        f"{verb} the {colour} {thing}"
        for verb, colour, thing in itertools.product(VERBS, COLOURS, OBJECTS)
    ]
    put = [
        f"put the {colour} {thing} {place}"
        for colour, thing, place in itertools.product(COLOURS, OBJECTS, PLACES)
    ]
    moves = itertools.product(OBJECTS, OBJECTS, PLACES)
    move = [
        f"take the {thing} from the {other} and place it {place}" for thing, other, place in moves
    ]
    return reach * 4 + put + move


@app.command
def main() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=VOCAB_SIZE, model_type="bpe",
        pad_id=PAD_ID, eos_id=EOS_ID, bos_id=BOS_ID, unk_id=UNK_ID, user_defined_symbols=["\n"],
        normalization_rule_name="identity", add_dummy_prefix=False, byte_fallback=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    with open(_OUTPUT.value, "wb") as file:
        file.write(model.getvalue())
    print(f"wrote {_OUTPUT.value}: {len(model.getvalue())} bytes, {VOCAB_SIZE} pieces")


if __name__ == "__main__":
    main()
