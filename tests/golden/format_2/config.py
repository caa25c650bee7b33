"""The run that wrote the checkpoint beside this file, on commit e61ddc9 (checkpoint format 2)."""

from configs.reach import get_config as reach


def get_config():
    c = reach()
    c.seed = 3
    c.datasets = ("reach_arm3",)
    c.weights = (1.0,)
    c.statistics_only = ()
    c.action_dim, c.horizon, c.max_tokens = 6, 5, 12
    c.draws, c.batch_size, c.steps, c.warmup_steps = 2, 8, 8, 2
    c.log_every, c.validate_every, c.validation_frames, c.save_every = 1, 4, 3, 4
    with c.ignore_type():
        c.variant = dict(
            vision=dict(image_size=32, patch_size=16, width=8, depth=2, mlp_dim=16, num_heads=2),
            gemma=dict(
                experts=(dict(width=8, mlp_dim=16), dict(width=8, mlp_dim=16)),
                depth=2,
                num_heads=2,
                num_kv_heads=1,
                head_dim=8,
                vocab_size=512,
            ),
        )
    return c
