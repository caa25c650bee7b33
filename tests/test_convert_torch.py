"""Our SigLIP and Gemma against Hugging Face's, in float32 at toy size, with weights that our rules carried over."""

import pytest

from pi0_jax.convert import parity

pytest.importorskip("torch", reason="needs the extra torch")
pytest.importorskip("transformers", reason="needs the extra torch")


@pytest.mark.slow
def test_image_tokens_and_language_model_are_theirs():
    comparisons = parity.compare_with_transformers()
    assert [c.output for c in comparisons] == ["image tokens", "language model's outputs"]
    assert [c for c in comparisons if c.relative > 1e-5] == []
