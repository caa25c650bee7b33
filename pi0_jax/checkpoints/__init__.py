"""Checkpoints are saved and restored whole by Orbax; each describes itself.

    DIR/checkpoints/<step>/params        all parameters, trained or frozen, in the published tree
                           ema           the moving average of what is trained, in the tree of
                                         trainable.py: a policy runs it, with what is frozen and
                                         with LoRA's products merged; without an average, what is
                                         trained as it is
                           optimizer     optimizer state, step, batches passed over
                           lora          LoRA's factors (models/lora.py), where a run has them
                           description   JSON: the format's number; the config in two halves,
                                         `policy` (policy_config.py) and `training`
                                         (train/config.py); robots (embodiment and statistics by
                                         dataset); tokenizer; data position; digests of the indices
                           metrics       JSON: the validation of this step, where it was validated
                           manifest      digests of all these files (manifest.py)

DIR is a folder or a gs:// URL. A step's folder appears under its name only when it is whole.

What is read is verified first. A step is read by items: a policy never sees the optimizer. The
description says that there is a manifest, so a missing manifest is noticed. Checkpoints from before
there were manifests do not say so, and are read unverified.

description.py says how the format grows. A new item beside these does not change the format's
number; a reader of older checkpoints finds none and does without.
"""

from pi0_jax.checkpoints.description import FORMAT, Description
from pi0_jax.checkpoints.folder import DESCRIPTION, FOLDER, find, is_ours, latest_step, locate
from pi0_jax.checkpoints.read import (
    check_leaves,
    check_whole,
    damage,
    read_description,
    read_params,
    read_part,
    read_resumable,
)
from pi0_jax.checkpoints.run import RunCheckpoints

__all__ = [
    "DESCRIPTION",
    "FOLDER",
    "FORMAT",
    "Description",
    "RunCheckpoints",
    "check_leaves",
    "check_whole",
    "damage",
    "find",
    "is_ours",
    "latest_step",
    "locate",
    "read_description",
    "read_params",
    "read_part",
    "read_resumable",
]
