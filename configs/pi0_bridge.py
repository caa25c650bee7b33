"""π0 on Bridge V2 alone, from PaliGemma: 60,000 episodes of a WidowX 250, one camera, 5 actions a second.

Sources in the comments: P the π0 paper (arXiv 2410.24164); O its published code, whose optimizer is for fine-tuning; Z open-pi-zero, an
independent reproduction on Bridge; ours where none says. First: python -m launch.index --config=configs/pi0_bridge.py --workers=16.
What is not stated here is a default, with its own source: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config


def get_config() -> ConfigDict:
    c = config.defaults()

    # Data: bridge_dataset/1.0.0 of rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds (bridge_orig is the same by another name).
    c.data_dir = "data/oxe"
    c.datasets = ("bridge_dataset",)
    c.normalization = "quantile"  # Z: the 1st and 99th percentiles, since outliers (80 standard deviations) made the loss jump
    c.normalization_clip = 1.0  # Z: and what lies beyond is cut off

    # Model.
    c.action_dim = 7  # no padding: one robot, trained from PaliGemma, so no released projection must fit (O: 32)
    c.horizon = 4  # Z: 0.8 s, all of which is executed
    c.initial_weights = "weights/pt_224.npz"  # P, sec. IV: PaliGemma 3B; here big_vision's npz at 224 pixels, or Hugging Face's folder
    c.initial_rules = (  # P, sec. IV: the action expert starts from scratch
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
