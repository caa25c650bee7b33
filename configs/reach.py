"""Learns to reach the named block with two arms, from real RLDS files, on a laptop CPU.

launch.make_reach_data makes the data.

What is not stated here is a default: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config


def get_config() -> ConfigDict:
    c = config.defaults()

    # Data: one TFDS dataset per arm, mixed evenly. The third arm is never trained on; its
    # statistics let the policy try it.
    c.data_dir = "runs/reach/data"
    c.datasets = ("reach_arm3", "reach_arm4")
    c.statistics_only = ("reach_arm5",)
    c.cut_prompts = False  # a prompt over max_tokens is refused
    c.augment = False  # moving the image by 2 pixels would move the block by 3 cm
    c.lanes = 8  # for --config.order=local: divides the batch
    c.loader_threads = 2
    c.prefetch_batches = 8

    # Model: 64x64 images, two cameras, from scratch.
    c.variant = "nano"
    c.action_dim = 8
    c.horizon = 10  # one second
    c.max_tokens = 10
    c.tokenizer = "small"
    c.dtype = "float32"  # faster than bfloat16 on CPUs
    c.scan_layers = False
    c.remat = "none"
    c.initial_weights = ""

    # Flow matching. Four draws of noise and time per observation cost little, because they share
    # its prefix.
    c.draws = 4
    c.loss_dims = "real"  # three or four of the eight

    # Optimizer.
    c.batch_size = 64
    c.steps = 2000  # after 1,500, 187, 199 and 200 of 200 episodes succeed (three seeds)
    c.learning_rate = 3e-3  # 2e-3 needs more steps
    c.end_learning_rate = 0.0
    c.warmup_steps = 150
    c.ema_decay = 0.995
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # small enough that each device holds all weights

    # Loop.
    c.log_every = 10
    c.validate_every = 500
    c.validation_frames = 128
    c.save_every = 500
    return c
