"""Fine-tunes a released π0 on one RLDS dataset (post-training).

    --config=configs/pi0_finetune.py:full       or :expert (the action expert alone), or :lora

As it stands it trains on LIBERO-10. For data of your own see the README: a row in own_datasets, or
--config.datasets="('my_dataset',)". Almost all values are defaults, which are the published code's
settings for fine-tuning: python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config

MODES = ("full", "expert", "lora")


def get_config(mode: str = "full") -> ConfigDict:
    if mode not in MODES:
        raise ValueError(f"configs/pi0_finetune.py:{mode}: expected one of {', '.join(MODES)}")
    c = config.defaults()

    # Data: one dataset, such as 5 to 100 hours of one task, consistent and fluent (the π0 paper,
    # sec. V).
    c.data_dir = "data"  # holds libero_10_no_noops/1.0.0, as published for OpenVLA
    c.datasets = ("libero_10_no_noops",)  # 20 Hz: a chunk of 50 steps takes 2.5 s

    # What trains is chosen by regular expressions on parameter paths.
    # full: every parameter.
    # expert: the action expert and its projections, 315 million of 3.2 billion parameters.
    # lora: low-rank updates of both experts' layers, the expert's first, and the projections (the
    # ranks are ours).
    if mode == "expert":
        c.frozen = ("PaliGemma/img/", "PaliGemma/llm/(?!.*_1/)")
        c.frozen_dtype = "bfloat16"
    if mode == "lora":
        c.frozen = ("PaliGemma/(img|llm)/",)
        c.frozen_dtype = "bfloat16"
        expert, backbone = "llm/layers/(attn|mlp).*_1/", "llm/layers/(attn|mlp)"
        c.lora = (dict(path=expert, rank=32, alpha=32.0), dict(path=backbone, rank=16, alpha=16.0))
        c.ema_decay = 0.0  # the published code keeps no average with LoRA

    c.keep_every = 5000
    return c
