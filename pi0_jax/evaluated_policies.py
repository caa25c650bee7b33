"""Makes policies ready for evaluation: from a checkpoint, or behind a server's address."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from pi0_jax import checkpoints
from pi0_jax.convert.metadata import find_embodiment
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.policy import Policy
from pi0_jax.serve.client import Client
from pi0_jax.serve.wire import read_api_key
from pi0_jax.sim.evaluation import CONDITIONS, Case, Condition, Contestant
from pi0_jax.sim.reach_rollouts import in_reach_world


@contextlib.contextmanager
def contestants(
    checkpoint: str | None,
    server: str | None,
    *,
    api_key_file: str | None,
    in_reach: bool,
    robots: Sequence[str] | None,
    conditions: Sequence[str],
    embodiment: str | None,
    num_steps: int | None,
    seed: int,
) -> Iterator[tuple[list[Contestant], str]]:
    """Gives the policies of a checkpoint or of a server, and where they come from.

    The arguments are the flags of launch.evaluate. `in_reach` says that the policies run in the
    reach world; then `robots` are, if not given, those of the checkpoint that this world has.

    Raises:
        InputError: the flags do not go together. What `opened` and `served` raise comes through.
    """
    if not conditions or bool(checkpoint) == bool(server):
        raise InputError("expected --conditions, and either --checkpoint or --server")
    if server and (robots or num_steps):
        raise InputError("--robots, --num_steps: expected with --checkpoint, found --server")
    if api_key_file and not server:
        raise InputError("--api_key_file: expected with --server, found --checkpoint")
    if server:
        # The first connection waits while the server compiles.
        with Client(server, api_key=read_api_key(api_key_file), timeout=600.0) as client:
            yield served(client, conditions=conditions, embodiment=embodiment), server
        return
    step = checkpoints.find(str(checkpoint))
    if in_reach and not robots:
        robots = in_reach_world(checkpoints.read_description(step).robots)
    yield (
        opened(
            str(step),
            robots=robots or [None],
            conditions=conditions,
            embodiment=embodiment,
            num_steps=num_steps,
            seed=seed,
        ),
        str(step),
    )


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
    policies = {one: trained.untrained(seed) if one == "untrained" else trained for one in known}
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
    """Returns a server's robot under every condition; the arguments are as those of `opened`.

    Raises:
        InputError: there is no record of the robot; a condition is unknown, or "untrained", which
            no server has; or no server answers at the address.
    """
    known = _known(conditions)
    if "untrained" in known:
        raise InputError("condition untrained: expected a checkpoint, found a server")
    try:
        metadata = client.metadata
    except TimeoutError as error:
        raise InputError(str(error)) from error
    if embodiment:
        record = find_embodiment(embodiment)
    elif "embodiment" in metadata:
        record = Embodiment.from_json(metadata["embodiment"], stored=True)
    else:
        raise InputError("the server does not send its robot's record; expected --embodiment")
    return [Contestant(Case(record.name, condition), client.act, record) for condition in known]


def _known(conditions: Sequence[str]) -> list[Condition]:
    names: dict[str, Condition] = {condition: condition for condition in CONDITIONS}
    for name in conditions:
        if name not in names:
            expected = ", ".join(CONDITIONS)
            raise InputError(f"condition {name!r} is unknown; expected some of {expected}")
    return [names[condition] for condition in conditions]
