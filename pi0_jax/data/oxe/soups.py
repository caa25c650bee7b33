"""Published mixtures, by name. A dataset's share of the samples is in proportion to weight x n^frames_power, n its kept frames.

power 0     the weights are the shares               power 1     weights multiply frames: all frames alike at weight 1
power 0.43  the π0 paper's (section V-A): large sets are seen less often than their size says, small ones more often
"""

from collections.abc import Mapping
from typing import NamedTuple

_RLDS = "_converted_externally_to_rlds"


class Soup(NamedTuple):
    weights: Mapping[str, float]  # dataset -> weight
    frames_power: float


# Octo's oxe_magic_soup: its published multipliers.
_MAGIC = {
    "fractal20220817_data": 0.54087122203,
    "kuka": 0.8341046294,
    "bridge_dataset": 1.0,
    "taco_play": 2.0,
    "jaco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "roboturk": 2.0,
    "nyu_door_opening_surprising_effectiveness": 1.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 2.0,
    "toto": 1.0,
    "language_table": 0.1,
    f"stanford_hydra_dataset{_RLDS}": 2.0,
    f"austin_buds_dataset{_RLDS}": 1.0,
    f"nyu_franka_play_dataset{_RLDS}": 3.0,
    f"furniture_bench_dataset{_RLDS}": 0.1,
    f"ucsd_kitchen_dataset{_RLDS}": 2.0,
    f"austin_sailor_dataset{_RLDS}": 1.0,
    f"austin_sirius_dataset{_RLDS}": 1.0,
    "bc_z": 0.2,
    f"dlr_edan_shared_control{_RLDS}": 1.0,
    f"iamlab_cmu_pickup_insert{_RLDS}": 1.0,
    "utaustin_mutex": 1.0,
    "berkeley_fanuc_manipulation": 2.0,
    "cmu_stretch": 1.0,
}


def _without(weights: Mapping[str, float], *names: str) -> dict[str, float]:
    return {name: weight for name, weight in weights.items() if name not in names}


# OpenVLA's two: no set that has a wrist camera only; FMB, Dobb-E and DROID (end-effector velocities, as the rest of the soup) added.
_PLUS = {
    **_without(_MAGIC, "nyu_door_opening_surprising_effectiveness"),
    "fmb": 1.0,
    "dobbe": 0.2,
    "droid_cartesian": 0.06,
}
_PLUS_MINUS = {**_without(_PLUS, "language_table", "droid_cartesian"), "fractal20220817_data": 1.0}

SOUPS = {
    "oxe_magic_soup": Soup(_MAGIC, 1.0),
    "oxe_magic_soup_plus": Soup(_PLUS, 1.0),
    "oxe_magic_soup_plus_minus": Soup(_PLUS_MINUS, 1.0),
    # The open part of π0's own mixture (paper, section V-A): a dataset counts as one task-robot group.
    "pi0_open": Soup(dict.fromkeys([*_MAGIC, "droid"], 1.0), 0.43),
}
