"""Fine-tunes a released π0.5 on the four suites of LIBERO, as the published model for LIBERO was.

Sources in the comments: O is the published code's configuration of that name. "Ours" is ours, where
it does not say.

What is not stated here is a default, with its own source: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config

SUITES = ("spatial", "object", "goal", "10")


def get_config() -> ConfigDict:
    c = config.defaults()

    # Data: libero_<suite>_no_noops/1.0.0, as published for OpenVLA. O: the same episodes in one
    # dataset, whose statistics serve all suites; here each suite has its own.
    c.data_dir = "data"
    c.datasets = tuple(f"libero_{suite}_no_noops" for suite in SUITES)
    c.frames_power = 1.0  # O: all frames alike
    c.normalization = "quantile"  # O: for every π0.5

    # Model: the released base model. The state is not in the prompt (O), so the model reads none.
    c.variant = "pi05"
    c.horizon = 10  # O: half a second, of which 5 steps are executed
    c.max_tokens = 200  # O
    c.initial_weights = "gs://openpi-assets/checkpoints/pi05_base"  # O

    # Optimizer.
    c.batch_size = 256  # O
    c.learning_rate = 5e-5  # O
    c.end_learning_rate = 5e-5  # ours: it stays there after the warm-up
    c.warmup_steps = 10_000  # O
    c.ema_decay = 0.999  # O

    # Loop.
    c.keep_every = 5000
    return c
