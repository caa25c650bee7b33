"""π0 on Bridge V2 alone, from PaliGemma: 60,000 episodes of a WidowX 250, one camera, 5 actions a second.

Sources in the comments: P the π0 paper (arXiv 2410.24164); O its published code, whose optimizer is for fine-tuning; Z open-pi-zero, an
independent reproduction on Bridge; ours where none says. First: python -m launch.index --config=configs/pi0_bridge.py --workers=16.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0

    # Data: bridge_dataset/1.0.0 of rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds (bridge_orig is the same by another name).
    c.data_dir = "data/oxe"
    c.index_dir = (
        ""  # the sidecar index lies beside the dataset; name a folder where that cannot be written
    )
    c.skip_bad_episodes = 0
    c.own_datasets = ConfigDict()  # none
    c.mixture = ""  # or one by its name (data/oxe/soups.py), with datasets and weights ()
    c.datasets = ("bridge_dataset",)
    c.weights = (1.0,)
    c.frames_power = 0.0  # the weights are the shares
    c.keep_empty_language = ()  # frames without an instruction are not drawn
    c.cut_prompts = True  # to max_tokens, as published
    c.order = "uniform"  # or "local", for slow or remote storage, in this many lanes:
    c.lanes = 32
    c.lane_megabytes = 512
    c.statistics_only = ()
    c.normalization = "quantile"  # Z: the 1st and 99th percentiles, since outliers (80 standard deviations) made the loss jump
    c.normalization_clip = 1.0  # Z: and what lies beyond is cut off
    c.augment = True  # O
    c.loader_threads = 8
    c.prefetch_batches = 4

    # Model.
    c.variant = "pi0"  # P, sec. IV and appendix B
    c.action_dim = 7  # no padding: one robot, trained from PaliGemma, so no released projection must fit (O: 32)
    c.horizon = 4  # Z: 0.8 s, all of which is executed
    c.max_tokens = 48  # O
    c.tokenizer = "gs://big_vision/paligemma_tokenizer.model"  # PaliGemma's
    c.dtype = "bfloat16"  # O: products in bfloat16, parameters in float32
    c.scan_layers = True
    c.remat = "full"
    c.initial_weights = "weights/pt_224.npz"  # P, sec. IV: PaliGemma 3B; here big_vision's npz at 224 pixels, or Hugging Face's folder
    c.initial_rules = (  # P, sec. IV: the action expert starts from scratch
        ("PaliGemma/llm/.*_1/", "fresh"),
        ("^(state|action)_", "fresh"),
    )

    # What trains: everything.
    c.frozen = ()
    c.frozen_dtype = "float32"
    c.lora = ()

    # Flow matching.
    c.draws = 1  # O
    c.loss_dims = "real"  # all 7
    c.mask_past_end = False  # O: steps past the end of an episode count
    c.sampling_steps = 10  # P, appendix B

    # Optimizer.
    c.batch_size = 1024  # Z
    c.accumulate = 1  # parts of the batch run one after the other, where memory is short
    c.steps = 19_000  # Z: about 9 epochs
    c.learning_rate = 5e-5  # ours: the expert is new, and the batch large (O, fine-tuning: 2.5e-5)
    c.end_learning_rate = 5e-6  # ours: a tenth, as O
    c.warmup_steps = 1000  # O
    c.b1 = 0.9  # O, and the next five
    c.b2 = 0.95
    c.eps = 1e-8
    c.weight_decay = 1e-10
    c.no_decay = ()  # everything decays
    c.first_moment_dtype = "float32"
    c.clip_norm = 1.0
    c.ema_decay = 0.99
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))

    # Loop.
    c.log_every = 100
    c.validate_every = 1000
    c.validation_frames = 512
    c.save_every = 1000
    c.keep_checkpoints = 2
    c.keep_every = 5000
    c.keep_best = 0
    c.keep_best_metric = "validation/loss"
    c.skip_nonfinite = 0  # a loss that is not finite stops the run
    return c
