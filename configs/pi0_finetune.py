"""Post-training of a released π0 on one RLDS dataset: configs/pi0_finetune.py:full, :expert (the action expert alone) or :lora.

As it stands, on LIBERO-10; on data of one's own see the README: a row in own_datasets, or --config.datasets="('my_dataset',)".
Sources in the comments: P the π0 paper (arXiv 2410.24164), O its published code's settings for fine-tuning; ours where neither says.
"""

from ml_collections import ConfigDict

MODES = ("full", "expert", "lora")


def get_config(mode: str = "full") -> ConfigDict:
    if mode not in MODES:
        raise ValueError(f"configs/pi0_finetune.py:{mode}: expected one of {', '.join(MODES)}")
    c = ConfigDict()
    c.seed = 0

    # Data: one dataset, such as 5 to 100 hours of one task, consistent and fluent (P, sec. V).
    c.data_dir = "data"  # holds libero_10_no_noops/1.0.0, as published for OpenVLA
    c.index_dir = (
        ""  # the sidecar index lies beside the dataset; name a folder where that cannot be written
    )
    c.skip_bad_episodes = 0
    c.own_datasets = ConfigDict()  # none
    c.mixture = ""  # or one by its name (data/oxe/soups.py), with datasets and weights ()
    c.datasets = ("libero_10_no_noops",)
    c.weights = (1.0,)
    c.frames_power = 0.0  # the weights are the shares
    c.keep_empty_language = ()  # frames without an instruction are not drawn
    c.cut_prompts = True  # to max_tokens, as published
    c.order = "uniform"  # or "local", for slow or remote storage, in this many lanes:
    c.lanes = 32
    c.lane_megabytes = 512
    c.statistics_only = ()
    c.normalization = "zscore"  # O
    c.normalization_clip = 0.0  # O: none
    c.augment = True  # O
    c.loader_threads = 8
    c.prefetch_batches = 4

    # Model.
    c.variant = "pi0"  # P, sec. IV and appendix B
    c.action_dim = 32  # as the released weights have it
    c.horizon = 50  # P, sec. IV; 2.5 s at LIBERO's 20 Hz
    c.max_tokens = 48  # O
    c.tokenizer = "gs://big_vision/paligemma_tokenizer.model"  # PaliGemma's
    c.dtype = "bfloat16"  # O: products in bfloat16, parameters in float32
    c.scan_layers = True
    c.remat = "full"
    c.initial_weights = "gs://openpi-assets/checkpoints/pi0_base"  # O: the released base model; its statistics are not used
    c.initial_rules = ()  # all of it

    # What trains, by regular expressions on parameter paths. full: every parameter. expert: the action expert and its projections, 315
    # million of 3.2 billion. lora: low-rank updates of both experts' layers, the expert's first, and the projections (ranks ours).
    c.frozen = {
        "full": (),
        "expert": ("PaliGemma/img/", "PaliGemma/llm/(?!.*_1/)"),
        "lora": ("PaliGemma/(img|llm)/",),
    }[mode]
    c.frozen_dtype = "float32" if mode == "full" else "bfloat16"
    c.lora = ()
    if mode == "lora":
        expert, backbone = "llm/layers/(attn|mlp).*_1/", "llm/layers/(attn|mlp)"
        c.lora = (dict(path=expert, rank=32, alpha=32.0), dict(path=backbone, rank=16, alpha=16.0))

    # Flow matching.
    c.draws = 1  # O
    c.loss_dims = "padded"  # O: all 32
    c.mask_past_end = False  # O: steps past the end of an episode count
    c.sampling_steps = 10  # P, appendix B

    # Optimizer.
    c.batch_size = 32  # O
    c.accumulate = 1  # parts of the batch run one after the other, where memory is short
    c.steps = 30_000  # O
    c.learning_rate = 2.5e-5  # O
    c.end_learning_rate = 2.5e-6  # O
    c.warmup_steps = 1000  # O
    c.b1 = 0.9  # O, and the next five
    c.b2 = 0.95
    c.eps = 1e-8
    c.weight_decay = 1e-10
    c.no_decay = ()  # everything decays
    c.first_moment_dtype = "float32"
    c.clip_norm = 1.0
    c.ema_decay = 0.0 if mode == "lora" else 0.99  # off with LoRA
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))

    # Loop.
    c.log_every = 100
    c.validate_every = 1000
    c.validation_frames = 256
    c.save_every = 1000
    c.keep_checkpoints = 2
    c.keep_every = 5000
    c.keep_best = 0
    c.keep_best_metric = "validation/loss"
    c.skip_nonfinite = 0  # a loss that is not finite stops the run
    return c
