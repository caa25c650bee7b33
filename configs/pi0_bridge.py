"""Trains π0 on Bridge V2 alone, from PaliGemma.

Bridge V2: 60,000 episodes of a WidowX 250, one camera, 5 actions a second.

Sources in the comments: P is the π0 paper (arXiv 2410.24164). O is its published code; its
optimizer is for fine-tuning. Z is open-pi-zero, an independent reproduction on Bridge. "Ours" is
ours, where none of them says.

First: python -m launch.index --config=configs/pi0_bridge.py --workers=16.
What is not stated here is a default, with its own source: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config


def get_config() -> ConfigDict:
    c = config.defaults()

    # Data: bridge_dataset/1.0.0 of rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds
    # (bridge_orig is the same under another name).
    c.data_dir = "data/oxe"
    c.datasets = ("bridge_dataset",)
    # Z: the 1st and 99th percentiles, because outliers (80 standard deviations) made the loss jump.
    c.normalization = "quantile"
    c.normalization_clip = 1.0  # Z: what lies beyond is cut off

    # Model.
    # There is no padding: one robot is trained from PaliGemma, so no released projection has to fit
    # (O: 32).
    c.action_dim = 7
    c.horizon = 4  # Z: 0.8 s, all of which is executed
    # P, sec. IV: PaliGemma 3B. Here it is big_vision's npz at 224 pixels; Hugging Face's folder
    # will do too.
    c.initial_weights = "weights/pt_224.npz"
    # P, sec. IV: the action expert starts from scratch.
    c.initial_rules = (
        ("PaliGemma/llm/.*_1/", "fresh"),
        ("^(state|action)_", "fresh"),
    )
    c.loss_dims = "real"  # all 7

    # Optimizer.
    c.batch_size = 1024  # Z
    c.steps = 19_000  # Z: about 9 epochs
    c.learning_rate = 5e-5  # ours: the expert is new, and the batch large (O, fine-tuning: 2.5e-5)
    c.end_learning_rate = 5e-6  # ours: a tenth, as O

    # Loop.
    c.validation_frames = 512
    c.keep_every = 5000
    return c
