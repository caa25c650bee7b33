"""big_vision's image encoder and Gemma agree with ours on an npz in big_vision's own layout.

This needs a checkout of big_vision on PYTHONPATH.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0_jax import convert
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.siglip import SigLIP
from pi0_jax.parity import paligemma
from tests.checkpoints_of_others import UNEVEN, random_parameters, write_big_vision

WHY = "needs a checkout of big_vision on PYTHONPATH"
vit = pytest.importorskip("big_vision.models.vit", reason=WHY)
gemma = pytest.importorskip("big_vision.models.ppp.gemma", reason=WHY)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    flat = {path: 0.3 * array for path, array in random_parameters(UNEVEN).items()}
    file = write_big_vision(tmp_path_factory.mktemp("big_vision") / "pt.npz", flat)
    return convert.open(file).tree()["PaliGemma"]


def check_close(a, b):
    assert a.shape == b.shape
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * np.abs(np.asarray(b)).max()


def test_image_encoder(ours):
    vision = UNEVEN.vision
    theirs = vit.Model(
        num_classes=24, patch_size=(14, 14), width=vision.width, depth=vision.depth, mlp_dim=vision.mlp_dim, num_heads=vision.num_heads,
        pool_type="none", scan=True,
    )  # fmt: skip
    images = np.random.default_rng(0).uniform(-1, 1, (2, 42, 42, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        expected, _ = theirs.apply({"params": ours["img"]}, images)
        check_close(
            SigLIP(vision, output_width=24, options=ComputeOptions(jnp.float32)).apply(
                {"params": ours["img"]}, jnp.asarray(images)
            ),
            expected,
        )


def test_language_model(ours):
    config = UNEVEN.gemma
    theirs = gemma.Model(
        width=24, depth=config.depth, mlp_dim=36, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
        norm_eps=1e-6, vocab_size=config.vocab_size, scan=True, remat_policy="none",
    )  # fmt: skip
    tokens = np.random.default_rng(1).integers(0, 66, (2, 9)).astype(np.int32)
    variables = {"params": ours["llm"]}
    mask = np.broadcast_to(np.tril(np.ones((9, 9), bool)), (2, 9, 9))
    with jax.default_matmul_precision("highest"):
        embedded = theirs.apply(variables, tokens, method="embed_tokens")
        _, out = theirs.apply(variables, embedded, mask=mask)
        check_close(paligemma.our_causal_outputs(ours["llm"], tokens), out["pre_logits"])
