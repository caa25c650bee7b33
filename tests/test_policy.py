"""The policy's shortcuts all give the numbers of the plain path.

Nothing compiles after warm-up, and an export runs with JAX alone.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0_jax import preprocess
from pi0_jax.errors import InputError
from pi0_jax.models import ComputeOptions, Pi0, sample, sampling
from pi0_jax.observation import CAMERA_SLOTS
from pi0_jax.policy import Policy
from pi0_jax.policy.program import PROMPT_LENGTHS, prompt_lengths
from pi0_jax.policy_config import layout, model_config
from pi0_jax.preprocess import Robot
from tests import policies
from tests.own_process import python
from tests.policies import observation

ROBOT = "droid"  # two cameras of three, joints learnt as deltas
NUM_STEPS = 3
# of two lengths that prompts are padded to
SHORT, LONG = (
    "lift it",
    "pick up the red block and then put the cup on the plate",
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return policies.policy(ROBOT, num_steps=NUM_STEPS)


@pytest.fixture(scope="module")
def unrolled() -> Policy:
    return policies.policy(ROBOT, num_steps=NUM_STEPS, scan_layers=False)


@pytest.fixture(scope="module")
def plain(policy):
    return plain_path(policy)


def plain_path(policy: Policy, dtype: str = "float32"):
    """Returns a function (observation, noise float32[H, D]) -> float32[H, A] without any shortcut.

    All three slots are encoded, and the absent one is masked. The prompt is padded to the maximum,
    and layers are scanned.
    """
    record, params = policy.robot(None), policies.parameters(policy.config)
    wanted = layout(policy.config, CAMERA_SLOTS)
    model = Pi0(model_config(policy.config), ComputeOptions(dtype=jnp.dtype(dtype)))
    dims = (
        jnp.asarray(preprocess.dimension_masks([record], wanted.action_dim))
        if policy.config.loss_dims == "real"
        else None
    )

    @jax.jit
    def plain(batch, noise):
        return sample(
            params,
            preprocess.device(batch, wanted),
            noise,
            model=model,
            num_steps=policy.num_steps,
            dim_mask=dims,
        )

    def act(seen, noise):
        actions = plain(preprocess.host([seen], [record], wanted, policy.tokenizer), noise[None])
        return preprocess.to_robot(
            np.asarray(actions), seen["state"][None], record, wanted.normalization
        )[0]

    return act


def noise_for(policy: Policy, seed: int = 0, rows: int = 1) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .normal(size=(rows, policy.config.horizon, policy.config.action_dim))
        .astype(np.float32)
    )


@pytest.mark.parametrize("layers", ["policy", "unrolled"])
def test_shortcuts_give_the_numbers_of_the_plain_path(layers, plain, request):
    """All shortcuts give the same numbers.

    An absent camera is dropped, prompts are padded as needed, layers are scanned or unrolled, the
    state is cached, and the time is tabulated.
    """
    policy = request.getfixturevalue(layers)
    (noise,) = noise_for(policy)
    assert policy.prompt_lengths(ROBOT) == (16, 24)
    assert policy.model.options.scan_layers == (layers == "policy")
    for prompt in (SHORT, LONG):
        seen = observation(ROBOT, prompt=prompt)
        found = policy(seen, noise=noise)["actions"]
        assert found.shape == (10, 8) and found.dtype == np.float32 and np.ptp(found) > 1
        np.testing.assert_allclose(found, plain(seen, noise), atol=1e-5)


@pytest.mark.parametrize(("num_steps", "unroll"), [(1, False), (3, True)])
def test_one_step_and_unrolled_steps(num_steps, unroll):
    run = policies.run_config(loss_dims="real")
    policy = Policy(
        run,
        {ROBOT: policies.robot(ROBOT)},
        policies.TOKENIZER,
        policies.parameters(run),
        num_steps=num_steps,
        unroll_steps=unroll,
    )
    seen, (noise,) = observation(ROBOT), noise_for(policy)
    np.testing.assert_allclose(
        policy(seen, noise=noise)["actions"], plain_path(policy)(seen, noise), atol=1e-5
    )


def test_rows_of_a_batch_are_what_they_are_alone(policy):
    """Prompts of different lengths, images of different sizes on one canvas."""
    rows = [observation(ROBOT, 0), observation(ROBOT, 1, size=(30, 60), prompt=LONG)]
    noise = noise_for(policy, rows=2)
    together = policy.act(rows, noise=noise)
    for row, seen, own in zip(together, rows, noise, strict=True):
        np.testing.assert_allclose(row, policy(seen, noise=own)["actions"], atol=1e-5)


def test_bfloat16_is_as_near_to_float32_as_the_plain_path(policy):
    """Weights cast once give the numbers of weights cast at each use.

    A token's time part is summed in float32, and not rounded first.
    """
    run = policies.run_config(dtype="bfloat16")
    rounded = Policy(
        run, policy.robots, policy.tokenizer, policies.parameters(run), num_steps=NUM_STEPS
    )
    assert {weight.dtype for weight in rounded.weights.values()} == {
        jnp.dtype("float32"),
        jnp.dtype("bfloat16"),
    }
    plain, errors = plain_path(rounded, "bfloat16"), []
    for seed in range(8):
        seen, (noise,) = observation(ROBOT, seed), noise_for(policy, seed)
        exact = policy(seen, noise=noise)["actions"]
        errors.append(
            [
                np.sqrt(np.mean((found - exact) ** 2))
                for found in (rounded(seen, noise=noise)["actions"], plain(seen, noise))
            ]
        )
    ours, theirs = np.mean(errors, axis=0)
    assert 0 < ours < 1.2 * theirs


def test_packed_weights_are_the_published_tree(policy, unrolled):
    params = policies.parameters(policy.config)
    for each in (policy, unrolled):
        jax.tree.map(np.testing.assert_array_equal, each.params, params)
    assert unrolled.weights["PaliGemma/llm/layers/mlp_1/gating_einsum/2"].shape == (2, 24, 40)
    # input axis first
    assert unrolled.weights["PaliGemma/llm/layers/attn/q_einsum_1/w/2"].shape[0] == 24


def test_no_weight_is_copied_when_layers_are_unrolled(unrolled):
    """The compiled function holds no slice, transpose or stack of a layer's weights.

    What `unpack` does cancels out.
    """
    wanted = unrolled.layout(unrolled.robot(None))
    batch = preprocess.host(
        [observation(ROBOT)], [unrolled.robot(None)], wanted, unrolled.tokenizer
    )
    dims = preprocess.dimension_masks([unrolled.robot(None)], wanted.action_dim)
    program = (
        unrolled._sample.lower(unrolled.weights, batch, dims, noise_for(unrolled), layout=wanted)
        .compile()
        .as_text()
    )
    stacked = sampling.unpack(unrolled.weights)["PaliGemma"]["llm"]["layers"]
    for weight in (
        stacked["mlp"]["gating_einsum"],
        stacked["attn"]["q_einsum_1"]["w"],
        stacked["mlp_1"]["linear"],
    ):
        stack = ",".join(map(str, weight.shape))
        assert f"f32[{stack}]" not in program


def test_the_same_key_gives_the_same_actions(policy):
    seen = observation(ROBOT)
    first = policy(seen, seed=3)
    np.testing.assert_array_equal(first["actions"], policy(seen, seed=3)["actions"])
    np.testing.assert_array_equal(first["actions"], policy.act([seen], [3])[0])
    assert np.any(first["actions"] != policy(seen)["actions"])
    timing = first["policy_timing"]
    assert (
        timing["infer_ms"] == pytest.approx(timing["host_ms"] + timing["device_ms"])
        and min(timing.values()) > 0
    )


def test_a_larger_canvas_changes_nothing():
    policy, seen = (
        policies.policy("google_robot", num_steps=1),
        [observation("google_robot", size=(20, 64))],
    )
    np.testing.assert_allclose(
        policy.act(seen, canvases=[(224, 224), (128, 128)]), policy.act(seen), atol=1e-5
    )
    batch = policy.prepare(seen, canvases=[(224, 224), (128, 128)]).batch
    assert {slot: pixels.shape[1:] for slot, pixels in batch.images.items()} == dict.fromkeys(
        batch.images, (128, 128, 3)
    )


@pytest.mark.parametrize(
    ("longest", "images", "lengths"),
    [
        (48, 0, (16, 32, 48)),
        (48, 196, (16, 48)),  # 212 tokens are an eighth less than 244
        (48, 256, (48,)),  # one published camera
        (48, 768, (48,)),  # three
        (200, 256, (16, 64, 128, 200)),
        (200, 768, (64, 200)),
        (12, 4, (12,)),
    ],
)
def test_a_prompt_length_has_a_program_where_it_saves_an_eighth(longest, images, lengths):
    assert prompt_lengths(longest, images) == lengths
    # Whatever the prompt, the prefix has at most a seventh more tokens than with all lengths.
    for prompt in range(1, longest + 1):
        finest = next((n for n in PROMPT_LENGTHS if prompt <= n < longest), longest)
        padded = next(n for n in lengths if prompt <= n)
        assert images + padded < (images + finest) * 8 / 7


def test_nothing_compiles_after_warm_up():
    fresh = policies.policy("google_robot", num_steps=1)
    fresh.warm_up(image_sizes=((48, 64),), batch_sizes=(1, 2))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _seconds, **_: compiled.append(event)
    )
    fresh(observation("google_robot"), seed=5)
    fresh(observation("google_robot", size=(20, 64), prompt=LONG))
    fresh.act([observation("google_robot", i) for i in range(2)], [1, 2])
    # reduced
    large = fresh.act([observation("google_robot", size=(100, 100))], canvases=[(64, 64)])
    assert large.shape == (1, 10, 7) and np.isfinite(large).all()
    assert [event for event in compiled if "compile" in event] == []
    fresh(observation("google_robot", size=(100, 100)))  # a size that was not named
    assert [event for event in compiled if "backend_compile" in event]


def test_wrong_input_is_named(policy):
    seen = observation(ROBOT)
    with pytest.raises(InputError, match=r"observation 0 \(droid\): state 'joint_2' is nan"):
        policy({**seen, "state": np.float32([0, 0, np.nan, 0, 0, 0, 0, 0])})
    with pytest.raises(InputError, match=r"field 'prompt' is missing"):
        policy({"images": seen["images"], "state": seen["state"]})
    with pytest.raises(InputError, match=r"prompt has \d+ tokens, the limit is 24"):
        policy({**seen, "prompt": "lift the block " * 50})
    with pytest.raises(InputError, match=r"noise has shape \[1, 10, 15\]; expected \[1, 10, 16\]"):
        policy(seen, noise=np.zeros((10, 15), np.float32))
    for seed in (-1, 2**32, 1.5):
        with pytest.raises(InputError, match=rf"seeds: expected .*\[0, 2\^32\), found \[{seed}\]"):
            policy(seen, seed=seed)
    with pytest.raises(InputError, match="no observations"):
        policy.act([])
    with pytest.raises(InputError, match="expected float32 or bfloat16, found 'float16'"):
        Policy.open("anywhere", dtype="float16")
    with pytest.raises(InputError, match="expected several observations, found one"):
        policy.act({"images": {}, "state": np.zeros(3), "prompt": "reach"})


def test_a_checkpoint_opens_in_another_dtype(tmp_path):
    directory = policies.write_checkpoint(tmp_path / "run", [ROBOT])
    opened = Policy.open(directory, dtype="bfloat16", num_steps=2)
    expected = Policy(
        opened.config,
        opened.robots,
        opened.tokenizer,
        policies.parameters(opened.config),
        num_steps=2,
    )
    jax.tree.map(np.testing.assert_array_equal, dict(opened.weights), dict(expected.weights))
    kept = {path.removeprefix("PaliGemma/"): w.dtype.name for path, w in opened.weights.items()}
    # The largest weight; what is computed in float32 stays so.
    assert kept["llm/embedder/input_embedding"] == kept["action_in_proj/kernel"] == "bfloat16"
    assert kept["llm/final_norm_1/scale"] == kept["action_out_proj/kernel"] == "float32"
    assert np.isfinite(opened(observation(ROBOT))["actions"]).all()


def test_compilations_are_kept_for_the_next_process(tmp_path):
    code = (
        "import jax; from pi0_jax import compilation; from tests import policies;"
        f"compilation.keep({str(tmp_path)!r}); events = [];"
        "jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split('/')[-1]));"
        "policies.policy('google_robot', num_steps=1, max_tokens=16).warm_up(image_sizes=((48, 64),));"
        "print(events.count('cache_hits'), events.count('cache_misses'))"
    )
    runs = [python("-c", code) for _ in range(2)]
    (_, missed), (hit, missed_again) = (map(int, run.stdout.split()) for run in runs)
    assert missed > 0 and missed_again == 0 and hit >= missed


RUN_EXPORT = """
import json, sys
import jax, jax.export, numpy as np, safetensors.numpy
folder = sys.argv[1]
f = jax.export.deserialize(open(f"{folder}/policy.jax", "rb").read())
params = safetensors.numpy.load_file(f"{folder}/weights.safetensors")
given = np.load(f"{folder}/given.npz")
images = {name.removeprefix("images/"): given[name] for name in given.files if name.startswith("images/")}
actions = f.call(params, images, given["tokens"], given["state"], given["noise"])
np.save(f"{folder}/actions.npy", np.asarray(actions))
print(json.dumps([f.platforms, [name for name in ("pi0_jax", "flax", "orbax") if name in sys.modules]]))
"""


@pytest.mark.parametrize("scan_layers", [True, False])
def test_an_export_runs_with_jax_alone(tmp_path, scan_layers):
    how = dict(normalization="quantile", normalization_clip=1.0, loss_dims="real")
    how |= {"embodiment_tokens": ("another", policies.robot(ROBOT).embodiment.name)}
    policy = policies.policy(ROBOT, num_steps=2, scan_layers=scan_layers, **how)
    folder = tmp_path / "exported"
    policy.export(folder, image_size=(48, 64))
    seen, noise = observation(ROBOT), noise_for(policy)
    tokens, _ = policy.tokenizer.encode(seen["prompt"], policy.config.max_tokens)
    cameras = policy.robot(None).embodiment.cameras
    images = {f"images/{slot}": seen["images"][camera][None] for slot, camera in cameras.items()}
    np.savez(
        folder / "given.npz", tokens=tokens[None], state=seen["state"][None], noise=noise, **images
    )
    done = python("-c", RUN_EXPORT, folder, cwd=tmp_path)
    assert json.loads(done.stdout) == [["cpu", "cuda", "tpu"], []]
    np.testing.assert_allclose(
        np.load(folder / "actions.npy"), policy.act([seen], noise=noise), atol=1e-5
    )

    description = json.loads((folder / "policy.json").read_text())
    assert description["inputs"]["images"]["base_0_rgb"] == {
        "shape": [1, 48, 64, 3],
        "dtype": "uint8",
        "camera": "exterior",
        "order": "RGB",
    }
    assert description["actions"]["shape"] == [1, 10, 8] and description["actions"]["dimensions"][
        7
    ] == ["gripper", "1"]
    assert (folder / "tokenizer.model").read_bytes() == policy.tokenizer.model
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported"]
    with pytest.raises(InputError, match="expected nothing there to export to, found something"):
        policy.export(folder)


def test_a_robot_must_be_named_where_there_are_several():
    both = policies.policy("droid", "libero")
    assert isinstance(both.robot("libero"), Robot)
    with pytest.raises(InputError, match="no robot is named: .* several, droid, libero"):
        both(observation("droid"))
