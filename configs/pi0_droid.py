"""A released π0 trained on all of DROID, in joint positions or joint velocities: configs/pi0_droid.py:joint_position (or :joint_velocity).

Sources in the comments: P the π0 paper (arXiv 2410.24164); O its published code, of which the DROID settings are those of its full
fine-tuning on DROID and the rest those of its fine-tuning in general; ours where neither says.
First: python -m launch.index --config=configs/pi0_droid.py:joint_position --workers=16.
"""

from ml_collections import ConfigDict

# O: released models of DROID act by velocities; its open recipes by positions, since a simulator cannot follow those velocities.
DATASETS = {"joint_position": "droid", "joint_velocity": "droid_velocity"}
MODES = tuple(DATASETS)


def get_config(mode: str = "joint_position") -> ConfigDict:
    if mode not in MODES:
        raise ValueError(f"configs/pi0_droid.py:{mode}: expected one of {', '.join(MODES)}")
    c = ConfigDict()
    c.seed = 0

    # Data: droid/1.0.1 of gs://gresearch/robotics: 1.8 TB. Failed episodes and idle steps are not drawn (O); see data/oxe/droid.py.
    c.data_dir = "data/oxe"
    c.index_dir = (
        ""  # the sidecar index lies beside the dataset; name a folder where that cannot be written
    )
    c.skip_bad_episodes = 0
    c.own_datasets = ConfigDict()  # none
    c.mixture = ""  # or one by its name (data/oxe/soups.py), with datasets and weights ()
    c.datasets = (
        DATASETS[mode],
    )  # state: 7 joints and gripper; actions: joint targets relative to the state, or velocities; gripper
    c.weights = (1.0,)
    c.frames_power = 0.0  # the weights are the shares
    c.keep_empty_language = ()  # frames without an instruction are not drawn
    c.cut_prompts = True  # to max_tokens, as published
    c.order = "local"  # 1.8 TB: whole records are read, in lanes (data/lanes.py); O shuffles a buffer of 250,000 frames
    c.lanes = 64  # at most 64 hosts
    c.lane_megabytes = 512  # 32 GB of encoded images over all hosts
    c.statistics_only = ()
    c.normalization = "zscore"  # O
    c.normalization_clip = 0.0  # O: none
    c.augment = True  # O
    c.loader_threads = 16
    c.prefetch_batches = 4

    # Model.
    c.variant = "pi0"  # P, sec. IV and appendix B
    c.action_dim = 32  # as the released weights have it
    c.horizon = 16  # O: about a second at 15 Hz, of which 8 steps are executed
    c.max_tokens = 48  # O
    c.tokenizer = "gs://big_vision/paligemma_tokenizer.model"  # PaliGemma's
    c.dtype = "bfloat16"  # O: products in bfloat16, parameters in float32
    c.scan_layers = True
    c.remat = "full"
    c.initial_weights = "gs://openpi-assets/checkpoints/pi0_base"  # O: the released base model; its statistics are not used
    c.initial_rules = ()  # all of it

    # What trains: everything.
    c.frozen = ()
    c.frozen_dtype = "float32"
    c.lora = ()

    # Flow matching.
    c.draws = 1  # O
    c.loss_dims = "padded"  # O: all 32
    c.mask_past_end = False  # O: steps past the end of an episode count
    c.sampling_steps = 10  # P, appendix B

    # Optimizer.
    c.batch_size = 256  # O
    c.accumulate = 1  # parts of the batch run one after the other, where memory is short
    c.steps = 100_000  # O
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
    c.ema_decay = 0.99
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))

    # Loop.
    c.log_every = 100
    c.validate_every = 5000
    c.validation_frames = 512
    c.save_every = 1000
    c.keep_checkpoints = 2
    c.keep_every = 20_000
    c.keep_best = 0
    c.keep_best_metric = "validation/loss"
    c.skip_nonfinite = 0  # a loss that is not finite stops the run
    return c
