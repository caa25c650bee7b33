"""The multipliers of the published mixtures give the shares that were published."""

import pytest

from pi0_jax.data.oxe.soups import SOUPS
from pi0_jax.errors import InputError
from pi0_jax.train import config
from tests.test_own_dataset import config_values

# Training steps of each dataset after the published filters.
FRAMES = {
    "fractal20220817_data": 3_786_400,
    "kuka": 2_455_879,
    "bridge_dataset": 2_135_463,
    "taco_play": 213_972,
    "jaco_play": 70_127,
    "berkeley_cable_routing": 38_240,
    "roboturk": 168_423,
    "nyu_door_opening_surprising_effectiveness": 18_196,
    "viola": 68_913,
    "berkeley_autolab_ur5": 87_783,
    "toto": 294_139,
    "language_table": 7_045_476,
    "stanford_hydra_dataset_converted_externally_to_rlds": 358_234,
    "austin_buds_dataset_converted_externally_to_rlds": 34_112,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 34_448,
    "furniture_bench_dataset_converted_externally_to_rlds": 3_948_057,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": 3_970,
    "austin_sailor_dataset_converted_externally_to_rlds": 353_094,
    "austin_sirius_dataset_converted_externally_to_rlds": 279_939,
    "bc_z": 5_471_693,
    "dlr_edan_shared_control_converted_externally_to_rlds": 8_928,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 146_241,
    "utaustin_mutex": 361_883,
    "berkeley_fanuc_manipulation": 62_613,
    "cmu_stretch": 25_016,
    "fmb": 1_137_459,
    "dobbe": 1_139_911,
    "droid_cartesian": 27_044_326,
    "droid": 27_044_326,
}


@pytest.mark.parametrize(
    ("name", "datasets", "percent"),
    [
        (
            "oxe_magic_soup",
            25,
            {
                "fractal20220817_data": 16.94,
                "kuka": 16.95,
                "bridge_dataset": 17.67,
                "bc_z": 9.05,
                "language_table": 5.83,
            },
        ),
        (
            "oxe_magic_soup_plus",
            27,
            {
                "bridge_dataset": 14.18,
                "droid_cartesian": 10.78,
                "fmb": 7.55,
                "dobbe": 1.51,
                "toto": 1.95,
            },
        ),
        (
            "oxe_magic_soup_plus_minus",
            25,
            {"fractal20220817_data": 26.17, "bridge_dataset": 14.76, "fmb": 7.86, "viola": 0.95},
        ),
    ],
)
def test_shares_are_the_published_ones(name, datasets, percent):
    weights, power = SOUPS[name]
    amounts = {dataset: weight * FRAMES[dataset] ** power for dataset, weight in weights.items()}
    assert len(weights) == datasets
    for dataset, expected in percent.items():
        assert 100 * amounts[dataset] / sum(amounts.values()) == pytest.approx(expected, abs=0.006)


def test_pi0_open_is_the_magic_soup_with_bridge_and_droid_each_once():
    weights, power = SOUPS["pi0_open"]
    assert weights == {**dict.fromkeys(SOUPS["oxe_magic_soup"].weights, 1.0), "droid": 1.0}
    assert power == 0.43


def test_a_mixture_by_name_stands_for_its_datasets_and_weights():
    run = config.from_mapping(
        config_values(mixture="oxe_magic_soup_plus_minus", datasets=(), weights=())
    )
    assert (
        dict(zip(run.datasets, run.weights, strict=True))
        == SOUPS["oxe_magic_soup_plus_minus"].weights
    )
    assert run.frames_power == 1.0
    assert config.from_mapping(config_values(mixture="")) == config.from_mapping(config_values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mixture": "magic"},
            "config.mixture 'magic' is unknown; expected one of oxe_magic_soup, ",
        ),
        (
            {"mixture": "pi0_open"},
            "config.mixture is 'pi0_open', which has its own datasets; expected config.datasets to be empty",
        ),
        (
            {"mixture": "oxe_magic_soup", "datasets": (), "weights": (), "frames_power": 0.43},
            "config.mixture is 'oxe_magic_soup', which has its own frames_power; expected config.frames_power 0, found 0.43",
        ),
        ({"frames_power": -1.0}, "config.frames_power is -1.0; expected a number of at least 0"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        config.from_mapping(config_values(**changes))
