"""Trains a released π0 on all of DROID, in joint positions or joint velocities.

    --config=configs/pi0_droid.py:joint_position         or :joint_velocity

Sources in the comments: P is the π0 paper (arXiv 2410.24164). O is its published code: the settings
for DROID are those of its full fine-tuning on DROID, and the rest are those of its fine-tuning in
general. "Ours" is ours, where neither says.

First: python -m launch.index --config=configs/pi0_droid.py:joint_position --workers=16.
What is not stated here is a default, with its own source: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config

# O: the released models of DROID act by velocities. Its open recipes act by positions, because a
# simulator cannot follow those velocities.
DATASETS = {"joint_position": "droid", "joint_velocity": "droid_velocity"}
MODES = tuple(DATASETS)


def get_config(mode: str = "joint_position") -> ConfigDict:
    if mode not in MODES:
        raise ValueError(f"configs/pi0_droid.py:{mode}: expected one of {', '.join(MODES)}")
    c = config.defaults()

    # Data: droid/1.0.1 of gs://gresearch/robotics: 1.8 TB. Failed episodes and idle steps are not
    # drawn (O); see data/oxe/droid.py.
    c.data_dir = "data/oxe"
    # The state is 7 joints and the gripper. The actions are joint targets relative to the state, or
    # velocities; and the gripper.
    c.datasets = (DATASETS[mode],)
    # With 1.8 TB whole records are read, in lanes (data/block_order.py). O shuffles a buffer of
    # 250,000 frames.
    c.order = "local"
    c.lanes = 64  # at most 64 hosts, with 32 GB of encoded images over all of them
    c.loader_threads = 16

    # Model: the released base model; its statistics are not used.
    c.horizon = 16  # O: about a second at 15 Hz, of which 8 steps are executed

    # Optimizer.
    c.batch_size = 256  # O
    c.steps = 100_000  # O

    # Loop.
    c.validate_every = 5000
    c.validation_frames = 512
    c.keep_every = 20_000
    return c
