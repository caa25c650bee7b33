"""Pre-trains π0 on the public part of its data, from PaliGemma.

The data are the OXE magic soup, Bridge V2 and DROID, each with a share of its frames^0.43.

Sources in the comments: P is the π0 paper (arXiv 2410.24164). O is its published code; its
optimizer is for fine-tuning, and it counts here because the paper states none. "Ours" is ours,
where neither says.

Make the indices first, on many cores: python -m launch.index --config=THIS_FILE --workers=16.
What is not stated here is a default, with its own source: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config


def get_config() -> ConfigDict:
    c = config.defaults()

    # Data: the folders of gs://gresearch/robotics (RT-X, droid/1.0.1) and the folder bridge_dataset
    # of rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds side by side, on a disk or behind
    # a URL.
    c.data_dir = "data/oxe"
    # Ours: fractal20220817_data holds some episodes whose values no robot reaches.
    c.skip_bad_episodes = 100
    # P, sec. V-A: 26 datasets, shares in proportion to frames^0.43; launch.index prints them.
    c.mixture = "pi0_open"
    # Terabytes fit into no page cache, so whole records are read, in lanes (data/block_order.py).
    c.order = "local"
    c.lanes = 64  # at most 64 hosts, with 32 GB of encoded images over all of them
    # Ours: public data have outliers of dozens of standard deviations (O: no clipping).
    c.normalization_clip = 10.0
    c.loader_threads = 16

    # Model: 32 dimensions as O (P: 18, those of the largest of its robots).
    # P, sec. IV: PaliGemma 3B. Here it is big_vision's npz at 224 pixels; Hugging Face's folder
    # will do too.
    c.initial_weights = "weights/pt_224.npz"
    # P, sec. IV: the action expert starts from scratch.
    c.initial_rules = (
        ("PaliGemma/llm/.*_1/", "fresh"),
        ("^(state|action)_", "fresh"),
    )
    # Ours: public robots have 2 to 8 of the 32 dimensions, and padding would drown them (O:
    # padded).
    c.loss_dims = "real"

    # Optimizer.
    c.batch_size = 256  # ours (O: 256 on DROID)
    c.steps = 700_000  # P: the main run; 160,000 in the comparison at equal compute
    c.learning_rate = 5e-5  # ours: the expert is new (O, fine-tuning: 2.5e-5)
    c.end_learning_rate = 5e-6  # ours: a tenth, as O
    c.ema_decay = 0.999  # ours, for a long run (O, fine-tuning: 0.99)

    # Loop.
    c.validate_every = 10_000
    c.validation_frames = 64  # of each dataset
    c.save_every = 5000
    c.keep_every = 50_000
    return c
