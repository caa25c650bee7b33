"""Makes policies ready for evaluation: from a checkpoint, or behind a server's address."""

from collections.abc import Sequence
from functools import partial

from pi0_jax.convert.metadata import find_embodiment
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.policy import Policy
from pi0_jax.serve.client import Client
from pi0_jax.sim.evaluation import CONDITIONS, Case, Condition, Contestant


def opened(
    checkpoint: str,
    *,
    robots: Sequence[str | None],
    conditions: Sequence[str],
    embodiment: str | None,
    num_steps: int | None,
    seed: int,
) -> list[Contestant]:
    """Returns every robot of a checkpoint under every condition.

    Args:
        checkpoint: the checkpoint's folder.
        robots: names of the checkpoint's robots; None is its only one.
        conditions: some of the names in CONDITIONS.
        embodiment: the record of the robots in their world, as a name or a .json file; None takes
            the checkpoint's own record.
        num_steps: the number of Euler steps; None takes the run's.
        seed: the seed of the untrained policies' weights.

    Raises:
        InputError: a robot or a condition is unknown. Whatever Policy.open raises comes through.
    """
    known = _known(conditions)
    trained = Policy.open(checkpoint, num_steps=num_steps)
    own = {robot: trained.robot(robot).embodiment for robot in robots}
    policies = {
        condition: trained.untrained(seed) if condition == "untrained" else trained
        for condition in known
    }
    return [
        Contestant(
            Case(own[robot].name, condition),
            partial(policy.act, robot=robot),
            find_embodiment(embodiment) if embodiment else own[robot],
        )
        for condition, policy in policies.items()
        for robot in robots
    ]


def served(
    client: Client, *, conditions: Sequence[str], embodiment: str | None
) -> list[Contestant]:
    """Returns a server's robot under every condition.

    Args:
        client: the client of the server.
        conditions: some of the names in CONDITIONS; a server has no untrained policy.
        embodiment: the record of the robot in its world, as a name or a .json file; None takes the
            record that the server sends.

    Raises:
        InputError: there is no such record; a condition is unknown or the server does not have it;
            or no server answers at the address.
    """
    known = _known(conditions)
    if "untrained" in known:
        raise InputError("condition untrained: expected a checkpoint, found a server")
    try:
        metadata = client.metadata
    except TimeoutError as error:
        raise InputError(str(error)) from error
    if embodiment is None and "embodiment" not in metadata:
        raise InputError("the server does not send its robot's record; expected --embodiment")
    record = (
        Embodiment.from_json(metadata["embodiment"], stored=True)
        if embodiment is None
        else find_embodiment(embodiment)
    )
    return [Contestant(Case(record.name, condition), client.act, record) for condition in known]


def _known(conditions: Sequence[str]) -> list[Condition]:
    names: dict[str, Condition] = {condition: condition for condition in CONDITIONS}
    for condition in conditions:
        if condition not in names:
            raise InputError(
                f"condition {condition!r} is unknown; expected some of {', '.join(CONDITIONS)}"
            )
    return [names[condition] for condition in conditions]
