"""A checkpoint describes itself in JSON, beside its arrays.

Older formats are turned into the newest. A new config field does not change the format's number. A
reader fills in a field that an older checkpoint lacks, and refuses a field that it does not know.
The number changes when something that is there already changes its place or meaning.
"""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

from pi0_jax import policy_config
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError, expecting
from pi0_jax.policy_config import Dtype, PolicyConfig
from pi0_jax.preprocess import Robot, normalize
from pi0_jax.preprocess.tokenizer import Tokenizer

FORMAT = 3
MANIFEST = "manifest"  # the field that says that the step has one (manifest.py)


@dataclasses.dataclass(frozen=True)
class Description:
    """Describes a checkpoint: all that it stores beside arrays, metrics and digests of files.

    Attributes:
        policy: what a policy needs of the run's config.
        training: the other half of the run's config, as train/config.py reads it; {} for weights
            that were not trained here.
        robots: dataset name -> robot; those of the run's datasets come first.
        tokenizer: the prompts' tokenizer.
        position: the steps done, which is the number of the next batch.
        digests: dataset name -> Index.digest, which says which files and which rule; for every one
            of `robots`.
    """

    policy: PolicyConfig
    training: Mapping[str, Any]
    robots: Mapping[str, Robot]
    tokenizer: Tokenizer
    position: int
    digests: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns the description as plain data."""
        return {
            "format": FORMAT,
            "policy": dataclasses.asdict(self.policy),
            "training": dict(self.training),
            "robots": {
                name: {
                    "embodiment": robot.embodiment.to_json(),
                    "statistics": normalize.to_json(robot.statistics),
                }
                for name, robot in self.robots.items()
            },
            "tokenizer": base64.b64encode(self.tokenizer.model).decode(),
            "position": self.position,
            "digests": dict(self.digests),
            MANIFEST: "crc32c",
        }

    def computing_in(self, dtype: Dtype | None) -> "Description":
        """Returns the description of a policy that computes in this dtype; None is the run's."""
        if dtype is None:
            return self
        return dataclasses.replace(self, policy=dataclasses.replace(self.policy, dtype=dtype))

    @classmethod
    def from_json(cls, record: Mapping[str, Any], source: str) -> "Description":
        """Reads a description of this format or an older one.

        Args:
            record: the plain data.
            source: names the checkpoint in messages.

        Raises:
            InputError: the format is newer, or unknown; or a part, or a field of the policy's
                config, is unknown or wrong.
        """
        found = record["format"] if "format" in record else "nothing called format"
        if found not in (2, FORMAT):
            raise InputError(
                f"{source}: expected checkpoint format {FORMAT}, or 2, found {found}"
                + (
                    "; it needs a newer version of pi0_jax"
                    if isinstance(found, int) and found > FORMAT
                    else ""
                )
            )
        where = f"{source}: checkpoint format {found}"
        if found == 2:
            with expecting("the description of a checkpoint of format 2", source):
                record = _from_format_2(record)
        parts = {"format", *(part.name for part in dataclasses.fields(cls))}
        if unknown := record.keys() - parts - {MANIFEST}:
            raise InputError(
                f"{where}: {min(unknown)} is unknown; a newer version of pi0_jax may have written it"
            )
        if missing := parts - record.keys():
            raise InputError(f"{where}: expected {min(missing)}, found none")
        policy = policy_config.from_json(record["policy"], f"{where}: policy")
        with expecting("the description of a checkpoint", source):
            robots = {
                name: Robot(
                    Embodiment.from_json(robot["embodiment"], stored=True),
                    normalize.from_json(robot["statistics"], source),
                )
                for name, robot in record["robots"].items()
            }
            tokenizer = Tokenizer(base64.b64decode(record["tokenizer"]), source)
        return cls(
            policy, record["training"], robots, tokenizer, record["position"], record["digests"]
        )


def _from_format_2(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns format 2 into format 3.

    In format 2 the config was one flat record, of what the policy needs and of the training.
    """
    policy, training = policy_config.split(record["config"])
    rest = {name: value for name, value in record.items() if name != "config"}
    return rest | {"policy": policy, "training": training}
