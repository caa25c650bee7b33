"""A few hundred steps on a sample of Bridge V2 (25 real episodes, 64x64): shows that real data train, not a useful policy."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0

    # Data: Octo's test sample of Bridge V2 in RLDS; its two splits hold the same episodes, so held-out errors say nothing about new scenes.
    c.data_dir = (
        "data"  # holds bridge_dataset/1.0.0, as in the tests of github.com/octo-models/octo
    )
    c.index_dir = "runs/bridge/index"  # the data may be read-only
    c.skip_bad_episodes = 0
    c.own_datasets = ConfigDict()  # none
    c.mixture = ""  # or one by its name (data/oxe/soups.py), with datasets and weights ()
    c.datasets = ("bridge_dataset",)
    c.weights = (1.0,)
    c.frames_power = 0.0  # the weights are the shares
    c.keep_empty_language = ()  # frames without an instruction are not drawn
    c.cut_prompts = False  # a prompt over max_tokens is refused
    c.order = "uniform"  # or "local", for slow or remote storage, in this many lanes:
    c.lanes = 8
    c.lane_megabytes = 512
    c.statistics_only = ()
    c.normalization = "zscore"
    c.normalization_clip = 0.0  # none
    c.augment = False  # slow on CPUs
    c.loader_threads = 2
    c.prefetch_batches = 8

    # Model: 64x64 images, one camera.
    c.variant = "nano"
    c.action_dim = 8
    c.horizon = 10  # two seconds
    c.max_tokens = 32
    c.tokenizer = "small"
    c.dtype = "float32"  # faster than bfloat16 on CPUs
    c.scan_layers = False
    c.remat = "none"
    c.initial_weights = ""  # from scratch
    c.initial_rules = ()

    # Flow matching. Four draws of noise and time per observation cost little, since they share its prefix.
    c.draws = 4
    c.loss_dims = "real"
    c.mask_past_end = False
    c.sampling_steps = 10

    # What trains: everything. Regular expressions on parameter paths freeze (as "PaliGemma/img/") or adapt parts.
    c.frozen = ()
    c.frozen_dtype = "float32"
    c.lora = ()  # or dict(path="llm/layers/(attn|mlp)", rank=16, alpha=16.0), ...

    # Optimizer.
    c.batch_size = 64
    c.accumulate = 1  # parts of the batch run one after the other
    c.steps = 300
    c.learning_rate = 2e-3
    c.end_learning_rate = 0.0
    c.warmup_steps = 50
    c.b1 = 0.9
    c.b2 = 0.95
    c.eps = 1e-8
    c.weight_decay = 1e-10
    c.no_decay = ()  # everything decays, as in the published code; usual is (r"(bias|scale)$", r"embedding$")
    c.first_moment_dtype = "float32"
    c.clip_norm = 1.0
    c.ema_decay = 0.99
    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))

    # Loop.
    c.log_every = 10
    c.validate_every = 100
    c.validation_frames = 64
    c.save_every = 200
    c.keep_checkpoints = 2
    c.keep_every = 0  # none for good
    c.keep_best = 0
    c.keep_best_metric = "validation/loss"
    c.skip_nonfinite = 0  # a loss that is not finite stops the run
    return c
