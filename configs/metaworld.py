"""Learns tasks of Meta-World from their scripted experts: mt1, mt5 and mt10 on CPUs, mt50 at full size.

    --config=configs/metaworld.py:mt5

launch.make_metaworld_data makes the data; make metaworld does everything. What is not stated here is
a default: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config

# Steps of 64 samples. The expert's episodes have 14 to 20 frames: mt5's 1,000 episodes are seen about
# 16 times, after which 95% of its tasks succeed.
STEPS = {"mt1": 1000, "mt5": 5000, "mt10": 6000}


def get_config(group: str = "mt5") -> ConfigDict:
    if group == "mt50":
        return _full_size()
    if group not in STEPS:
        known = ", ".join([*STEPS, "mt50"])
        raise ValueError(f"configs/metaworld.py:{group}: expected one of {known}")
    c = config.defaults()

    # Data: one dataset of all tasks, so that they share statistics and the prompt tells them apart.
    c.data_dir = "runs/metaworld/data"
    c.datasets = ("metaworld_held",)  # an action lasts five ticks: 16 Hz
    c.cut_prompts = False  # a prompt over max_tokens is refused
    c.augment = False  # moving the image by 2 pixels would move a handle by centimetres
    c.lanes = 8  # for --config.order=local: divides the batch
    c.loader_threads = 2
    c.prefetch_batches = 8

    # Model: one 64x64 camera, from scratch.
    c.variant = "nano"
    c.action_dim = 8  # four are real
    c.horizon = 8  # half a second; the record executes four
    c.max_tokens = 28  # the longest of the 50 instructions has 26 tokens
    c.tokenizer = "small"
    c.dtype = "float32"  # faster than bfloat16 on CPUs
    c.scan_layers = False
    c.remat = "none"
    c.initial_weights = ""

    # Flow matching. Four draws of noise and time per observation share its prefix.
    c.draws = 4
    c.loss_dims = "real"  # four of the eight

    # Optimizer: as for the reach world, where 2e-3 needed more steps.
    c.batch_size = 64
    c.steps = STEPS[group]
    c.learning_rate = 3e-3
    c.end_learning_rate = 0.0
    c.warmup_steps = 200
    c.ema_decay = 0.998  # averages 500 steps, a tenth of mt5's
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # small enough that each device holds all weights

    # Loop.
    c.log_every = 20
    c.validation_frames = 128
    return c


def _full_size() -> ConfigDict:
    """Returns the run that is measured by LeRobot's protocol: a released π0, tuned on all 50 tasks."""
    c = config.defaults()
    # make_metaworld_data --tasks=mt50 --protocol=metaworld --episodes=50 --side=224
    c.data_dir = "runs/metaworld50/data"
    c.datasets = ("metaworld",)  # an action for each tick: 80 Hz
    # A chunk of 50 steps is 0.6 s, of which the record executes 10: an expert's episode takes about
    # 100 ticks.
    c.keep_every = 5000
    return c
