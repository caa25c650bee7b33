"""Released π0.5 checkpoints are converted both ways, and open as policies."""

import dataclasses
import json

import numpy as np
import pytest

from pi0_jax import convert, verify
from pi0_jax.convert import tree
from pi0_jax.errors import InputError
from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import VARIANTS, pi05
from pi0_jax.policy import Policy
from tests import policies
from tests.checkpoints_of_others import GOLDEN, UNEVEN, random_parameters, write_openpi
from tests.policies import observation
from tests.test_convert import check_equal

TOY = GOLDEN / "openpi_pi05_toy_checkpoint"
UNEVEN_PI05 = pi05(UNEVEN, max_tokens=11)
PICO = dataclasses.replace(VARIANTS["pi05_pico"], action_dim=9)
OPTIONS = convert.Options(
    embodiment="droid", tokenizer="small", sizes={"horizon": 4, "max_tokens": 128}
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return write_openpi(tmp_path_factory.mktemp("openpi") / "theirs", random_parameters(PICO))


def test_a_published_checkpoint_loads_without_renaming():
    toy = flatten(verify.load_vectors(verify.SHIPPED_PI05_VECTORS).params)
    source = convert.open(TOY)
    assert source.format == "openpi_jax" and len(source.leaves) == 51
    check_equal(source, toy)


def test_every_format_there_and_back_bit_for_bit(tmp_path):
    flat = random_parameters(UNEVEN_PI05)
    path = write_openpi(tmp_path / "theirs", flat, value_level=True)
    options = convert.Options(
        embodiment="droid", tokenizer="small", sizes={"horizon": 7, "max_tokens": 11}
    )
    for number, to in enumerate(["openpi_pytorch", "lerobot", "openpi_jax", "lerobot"]):
        output = tmp_path / f"{number}_{to}"
        convert.run(path, output, to, options)
        source = convert.open(output)
        assert source.format == to and source.sizes == tree.sizes_of_config(UNEVEN_PI05)
        assert source.metadata.normalization == "quantile"
        check_equal(source, flat)
        path, options = output, convert.DEFAULTS  # the rest travels beside the weights


def test_a_released_pi05_is_a_policy_whose_prompt_tells_the_state(theirs, tmp_path):
    """openpi's and LeRobot's folders, and ours, give the same actions."""
    with pytest.warns(UserWarning, match="the prompt tells the state, as published"):
        opened = Policy.open(
            theirs, embodiment="droid", tokenizer="small", sizes=OPTIONS.sizes, dtype="float32"
        )
    assert opened.config.variant == "pi05_pico" and opened.config.max_tokens == 128
    assert opened.config.state_in_prompt and opened.config.normalization == "quantile"
    seen, noise = observation("droid"), np.ones((4, 9), np.float32)
    expected = opened(seen, noise=noise)["actions"]
    for to in ("lerobot", "ours"):
        convert.run(theirs, tmp_path / to, to, OPTIONS)
        (tmp_path / to / "pi0_jax.json").unlink(missing_ok=True)
    ours = Policy.open(tmp_path / "ours", dtype="float32")
    np.testing.assert_allclose(ours(seen, noise=noise)["actions"], expected, atol=1e-6)
    ported = Policy.open(
        tmp_path / "lerobot",
        embodiment="droid",
        tokenizer="small",
        sizes={"head_dim": 8, "image_heads": 2},
        dtype="float32",
    )
    assert ported.config.state_in_prompt and ported.config.max_tokens == 128
    np.testing.assert_allclose(ported(seen, noise=noise)["actions"], expected, atol=2e-4)


def test_a_pi05_for_libero_reads_no_state_if_the_user_says_so(theirs, tmp_path):
    options = dataclasses.replace(OPTIONS, state_in_prompt=False)
    report = convert.run(theirs, tmp_path / "ours", "ours", options)
    assert not any("tells the state" in note for note in report.notes)
    assert not Policy.open(tmp_path / "ours").config.state_in_prompt
    report = convert.run(tmp_path / "ours", tmp_path / "lerobot", "lerobot")
    assert any("reads no state" in note for note in report.notes)
    # What travels beside LeRobot's files says it too.
    convert.run(tmp_path / "lerobot", tmp_path / "back", "ours")
    assert not Policy.open(tmp_path / "back").config.state_in_prompt
    with pytest.raises(InputError, match="state_in_prompt: expected .*False, found True"):
        convert.run(
            tmp_path / "lerobot", tmp_path / "o", "ours", convert.Options(state_in_prompt=True)
        )


def test_a_run_becomes_a_lerobot_directory_of_its_own_type(tmp_path):
    config = dict(
        variant="pi05_pico", max_tokens=128, normalization="quantile", state_in_prompt=True
    )
    run = policies.write_checkpoint(tmp_path / "run", ["droid"], **config)
    convert.run(run, tmp_path / "lerobot", "lerobot")
    record = json.loads((tmp_path / "lerobot" / "config.json").read_text())
    assert (record["type"], record["tokenizer_max_length"]) == ("pi05", 128)
    record["type"] = "pi0"
    (tmp_path / "lerobot" / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="expected a policy of type pi05, .* found pi0"):
        convert.open(tmp_path / "lerobot")


def test_a_tensor_of_the_other_model_is_refused(tmp_path):
    flat = random_parameters(PICO) | {"state_proj/bias": np.zeros(24, np.float32)}
    with pytest.raises(InputError, match=r"expected one model, .* of a π0.5 and .*state_proj.* π0"):
        convert.open(write_openpi(tmp_path / "theirs", flat))


def test_a_prompts_bins_need_quantiles(theirs, tmp_path):
    """A LeRobot directory may normalise by mean and deviation, which the bins do not fit."""
    folder = tmp_path / "lerobot"
    convert.run(theirs, folder, "lerobot", OPTIONS)
    (folder / "pi0_jax.json").unlink()
    for file in folder.glob("*.json"):
        file.write_text(file.read_text().replace('"QUANTILES"', '"MEAN_STD"'))
    options = dataclasses.replace(OPTIONS, sizes={"head_dim": 8, "image_heads": 2})
    with pytest.raises(InputError, match="normalization is 'zscore'; expected 'quantile'"):
        convert.run(folder, tmp_path / "ours", "ours", options)
    blind = dataclasses.replace(options, state_in_prompt=False)
    convert.run(folder, tmp_path / "blind", "ours", blind)
    assert Policy.open(tmp_path / "blind").config.normalization == "zscore"
