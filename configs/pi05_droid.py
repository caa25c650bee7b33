"""Trains a released π0.5 on all of DROID, in joint velocities.

Sources in the comments: O is the published code: its π0.5 for DROID, and where that says nothing of
the training, its full fine-tuning of a π0 on DROID. "Ours" is ours, where neither says.

First: python -m launch.index --config=configs/pi05_droid.py --workers=16.
What is not stated here is a default, with its own source: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config


def get_config() -> ConfigDict:
    c = config.defaults()

    # Data: droid/1.0.1 of gs://gresearch/robotics: 1.8 TB. Failed episodes and idle steps are not
    # drawn (O); see data/oxe/droid.py.
    c.data_dir = "data/oxe"
    # O: 8 dimensions, the velocities of 7 joints and the gripper.
    c.datasets = ("droid_velocity",)
    c.normalization = "quantile"  # O: for every π0.5
    # With 1.8 TB whole records are read, in lanes (data/block_order.py). O shuffles a buffer of
    # 250,000 frames.
    c.order = "local"
    c.lanes = 64  # at most 64 hosts, with 32 GB of encoded images over all of them
    c.loader_threads = 16

    # Model: the released base model; its statistics are not used.
    c.variant = "pi05"
    c.horizon = 15  # O: a second at 15 Hz, of which 8 steps are executed
    c.max_tokens = 200  # O
    c.state_in_prompt = True  # O
    c.initial_weights = "gs://openpi-assets/checkpoints/pi05_base"  # O

    # Optimizer.
    c.batch_size = 256  # O
    c.steps = 100_000  # O

    # Loop.
    c.validate_every = 5000
    c.validation_frames = 512
    c.keep_every = 20_000
    return c
