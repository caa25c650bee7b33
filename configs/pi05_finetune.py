"""Fine-tunes a released π0.5 on one RLDS dataset (post-training).

    --config=configs/pi05_finetune.py:full      or :expert (the action expert alone), or :lora

As it stands it trains on LIBERO-10. For data of your own see the README: a row in own_datasets, or
--config.datasets="('my_dataset',)". Sources in the comments: O is the published code. What is not
stated here is a default, which is the published code's setting for fine-tuning a π0:
python -m launch.train --config_help
"""

from ml_collections import ConfigDict

from pi0_jax.train import config

MODES = ("full", "expert", "lora")


def get_config(mode: str = "full") -> ConfigDict:
    if mode not in MODES:
        raise ValueError(f"configs/pi05_finetune.py:{mode}: expected one of {', '.join(MODES)}")
    c = config.defaults()

    # Data: one dataset, such as 5 to 100 hours of one task, consistent and fluent (the π0 paper,
    # sec. V).
    c.data_dir = "data"  # holds libero_10_no_noops/1.0.0, as published for OpenVLA
    c.datasets = ("libero_10_no_noops",)  # 20 Hz: a chunk of 50 steps takes 2.5 s
    c.normalization = "quantile"  # O: for every π0.5

    # Model: the released base model.
    c.variant = "pi05"
    c.max_tokens = 200  # O
    c.state_in_prompt = True  # O: so did the base model learn to read the state
    c.initial_weights = "gs://openpi-assets/checkpoints/pi05_base"  # O

    # What trains is chosen by regular expressions on parameter paths.
    # full: every parameter.
    # expert: the action expert with its norms, and its projections: 430 million of 3.4 billion
    # parameters.
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
        c.ema_decay = 0.0  # O: no average with LoRA

    c.keep_every = 5000
    return c
