"""π0's pre-training on the public part of its data: PaliGemma -> OXE magic soup, Bridge V2 and DROID, each by its frames^0.43.

Sources in the comments: P the π0 paper (arXiv 2410.24164); O its published code, of which the optimizer is for fine-tuning, since the
paper states none; ours where neither says. Make the indices first, on many cores: python -m launch.index --config=THIS_FILE --workers=16.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0

    # Data: the folders of gs://gresearch/robotics (RT-X, droid/1.0.1) and of rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds
    # (bridge_dataset) side by side, on a disk or behind a URL.
    c.data_dir = "data/oxe"
    c.index_dir = (
        ""  # the sidecar index lies beside each dataset; name a folder where that cannot be written
    )
    c.skip_bad_episodes = 100  # ours: fractal20220817_data holds some whose values no robot reaches
    c.own_datasets = ConfigDict()  # none
    c.mixture = "pi0_open"  # P, sec. V-A: 26 datasets, shares in proportion to frames^0.43; launch.index prints them
    c.datasets = ()  # the mixture's
    c.weights = ()
    c.frames_power = 0.0  # the mixture's, 0.43
    c.keep_empty_language = ()  # frames without an instruction are not drawn
    c.cut_prompts = True  # to max_tokens, as published
    c.order = "local"  # terabytes fit into no page cache: whole records are read, in lanes (data/lanes.py)
    c.lanes = 64  # at most 64 hosts
    c.lane_megabytes = 512  # 32 GB of encoded images over all hosts
    c.statistics_only = ()
    c.normalization = "zscore"  # O
    c.normalization_clip = (
        10.0  # ours: public data have outliers of dozens of standard deviations (O: none)
    )
    c.augment = True  # O
    c.loader_threads = 16
    c.prefetch_batches = 4

    # Model.
    c.variant = "pi0"  # P, sec. IV and appendix B
    c.action_dim = 32  # O; P: 18, those of the largest of its robots
    c.horizon = 50  # P, sec. IV
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
    c.loss_dims = "real"  # ours: public robots have 2 to 8 of the 32 dimensions; padding would drown them (O: padded)
    c.mask_past_end = False  # O: steps past the end of an episode count
    c.sampling_steps = 10  # P, appendix B

    # Optimizer.
    c.batch_size = 256  # ours (O: 256 on DROID)
    c.accumulate = 1  # parts of the batch run one after the other, where memory is short
    c.steps = 700_000  # P: the main run; 160,000 in the comparison at equal compute
    c.learning_rate = 5e-5  # ours: the expert is new (O, fine-tuning: 2.5e-5)
    c.end_learning_rate = 5e-6  # ours: a tenth, as O
    c.warmup_steps = 1000  # O
    c.b1 = 0.9  # O, and the next four
    c.b2 = 0.95
    c.eps = 1e-8
    c.weight_decay = 1e-10
    c.no_decay = ()  # everything decays
    c.first_moment_dtype = "float32"
    c.clip_norm = 1.0
    c.ema_decay = 0.999  # ours, for a long run (O, fine-tuning: 0.99)
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))

    # Loop.
    c.log_every = 100
    c.validate_every = 10_000
    c.validation_frames = 64  # of each dataset
    c.save_every = 5000
    c.keep_checkpoints = 2
    c.keep_every = 50_000
    c.keep_best = 0
    c.keep_best_metric = "validation/loss"
    c.skip_nonfinite = 0  # a loss that is not finite stops the run
    return c
