"""Trains a few hundred steps on a sample of Bridge V2 (25 real episodes, 64x64 pixels).

It shows that the code trains on real data; the policy is of no use.

What is not stated here is a default: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config


def get_config() -> ConfigDict:
    c = config.defaults()

    # Data: Octo's test sample of Bridge V2 in RLDS. Its two splits hold the same episodes, so
    # held-out errors say nothing about new scenes.
    # The folder holds bridge_dataset/1.0.0, as in the tests of github.com/octo-models/octo.
    c.data_dir = "data"
    c.index_dir = "runs/bridge/index"  # the data may be read-only
    c.datasets = ("bridge_dataset",)
    c.cut_prompts = False  # a prompt over max_tokens is refused
    c.augment = False  # slow on CPUs
    c.lanes = 8  # for --config.order=local: divides the batch
    c.loader_threads = 2
    c.prefetch_batches = 8

    # Model: 64x64 images, one camera, from scratch.
    c.variant = "nano"
    c.action_dim = 8
    c.horizon = 10  # two seconds
    c.max_tokens = 32
    c.tokenizer = "small"
    c.dtype = "float32"  # faster than bfloat16 on CPUs
    c.scan_layers = False
    c.remat = "none"
    c.initial_weights = ""

    # Flow matching. Four draws of noise and time per observation cost little, because they share
    # its prefix.
    c.draws = 4
    c.loss_dims = "real"

    # Optimizer.
    c.batch_size = 64
    c.steps = 300
    c.learning_rate = 2e-3
    c.end_learning_rate = 0.0
    c.warmup_steps = 50
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # small enough that each device holds all weights

    # Loop.
    c.log_every = 10
    c.validate_every = 100
    c.validation_frames = 64
    c.save_every = 200
    return c
