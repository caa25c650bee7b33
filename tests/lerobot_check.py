"""LeRobot itself opens and runs a converted π0.5, its whole pipeline included; it is run by hand.

Its model is built in a toy's sizes, by replacing the sizes in the loaded module. It needs an
environment of its own: Python 3.12, lerobot==0.6.1, transformers==5.5.4, scipy, sentencepiece.

    python -m tests.lerobot_check write DIR droid         in this project's environment
    python tests/lerobot_check.py run DIR                 in LeRobot's

The robots may be droid, whose joints are learnt relative to the state, and droid_velocity. The
tokenizer that LeRobot would fetch is replaced by the small one that ships.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

VISION = dict(image_size=28, patch_size=14, width=16, depth=2, mlp_dim=24, num_heads=2)
EXPERTS = (dict(width=32, mlp_dim=48), dict(width=16, mlp_dim=40, adaptive=True))
GEMMA = dict(experts=EXPERTS, depth=3, num_heads=8, num_kv_heads=1, head_dim=8, vocab_size=512)
HORIZON, PROMPTS = 10, ("pick up the_red block", "put it\nback ", "reach")
TOKENIZER = Path(__file__).parents[1] / "pi0_jax" / "assets" / "small_tokenizer.model"


def write(folder: Path, robot: str) -> None:
    """Writes LeRobot's directory of a π0.5 with random weights, observations, and our actions."""
    from pi0_jax import convert
    from tests import policies

    config = dict(
        variant=dict(vision=VISION, gemma=GEMMA), action_dim=32, horizon=HORIZON, max_tokens=200,
        normalization="quantile", state_in_prompt=True,
    )  # fmt: skip
    policies.write_checkpoint(folder / "run", [robot], **config)
    convert.run(folder / "run", folder / "lerobot", "lerobot")
    policy = policies.policy(robot, **config)
    record, rng = policy.robot(None), np.random.default_rng(0)
    ranges, cameras = record.statistics.state.ranges, record.embodiment.cameras.values()
    noise = rng.normal(size=(len(PROMPTS), HORIZON, 32)).astype(np.float32)
    # Some numbers lie beyond the bins of the prompt.
    states = [rng.uniform(ranges.q01 - 0.2, ranges.q99 + 0.2).astype(np.float32) for _ in PROMPTS]
    observations = [
        policies.observation(robot, seed=i, size=(28, 28), prompt=prompt) | {"state": states[i]}
        for i, prompt in enumerate(PROMPTS)
    ]
    images = {camera: np.stack([o["images"][camera] for o in observations]) for camera in cameras}
    actions = policy.act(observations, noise=noise)
    np.savez(folder / "ours.npz", noise=noise, actions=actions, state=np.stack(states), **images)


def run(folder: Path) -> None:
    """Opens the directory with LeRobot, and prints how far its actions are from ours."""
    import sentencepiece
    import torch
    import transformers
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.pi05 import modeling_pi05 as theirs
    from safetensors import safe_open

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))

    def tokens(texts, max_length: int, **_) -> dict:
        ids = [[2, *pieces.encode(text)] for text in texts]
        rows = torch.tensor([row + [0] * (max_length - len(row)) for row in ids])
        return {"input_ids": rows, "attention_mask": (rows != 0).long()}

    transformers.AutoTokenizer.from_pretrained = staticmethod(lambda *_, **__: tokens)
    own = {"gemma_2b": EXPERTS[0], "gemma_300m": EXPERTS[1]}
    shared = {name: GEMMA[name] for name in ("depth", "num_heads", "num_kv_heads", "head_dim")}
    theirs.get_gemma_config = lambda name: SimpleNamespace(
        width=own[name]["width"], mlp_dim=own[name]["mlp_dim"], **shared
    )
    backbone, expert = (
        theirs.PaliGemmaForConditionalGenerationWithPiGemma,
        theirs.PiGemmaForCausalLM,
    )

    def small_backbone(config):
        vision, width = config.vision_config, EXPERTS[0]["width"]
        vision.hidden_size, vision.num_hidden_layers = VISION["width"], VISION["depth"]
        vision.intermediate_size, vision.num_attention_heads = (
            VISION["mlp_dim"],
            VISION["num_heads"],
        )
        vision.image_size, vision.patch_size = VISION["image_size"], VISION["patch_size"]
        vision.projection_dim = config.projection_dim = width
        config.text_config.vocab_size = config._vocab_size = GEMMA["vocab_size"]
        config.image_token_index = GEMMA["vocab_size"] - 1
        return backbone(config=config)

    def small_expert(config):
        config.vocab_size = GEMMA["vocab_size"]
        return expert(config=config)

    theirs.PaliGemmaForConditionalGenerationWithPiGemma = small_backbone
    theirs.PiGemmaForCausalLM = small_expert

    directory, ours = folder / "lerobot", np.load(folder / "ours.npz")
    policy = theirs.PI05Policy.from_pretrained(directory).float().eval()
    loaded = policy.state_dict()
    with safe_open(directory / "model.safetensors", "np") as file:
        assert set(file.keys()) == loaded.keys()
        for name, tensor in loaded.items():
            assert file.get_tensor(name).tobytes() == tensor.numpy().tobytes(), name
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(directory))
    cameras = [name for name in ours.files if name not in ("noise", "actions", "state")]
    for i, prompt in enumerate(PROMPTS):
        batch = {
            f"observation.images.{name}": torch.from_numpy(ours[name][i : i + 1]).permute(
                0, 3, 1, 2
            )
            / 255
            for name in cameras
        }
        batch |= {"observation.state": torch.from_numpy(ours["state"][i : i + 1]), "task": [prompt]}
        with torch.no_grad():
            noise = torch.from_numpy(ours["noise"][i : i + 1])
            found = after(policy.predict_action_chunk(before(batch), noise=noise)).numpy()[0]
        error = np.abs(found - ours["actions"][i]).max()
        print(
            f"{prompt!r}: max error {error:.1e}, {error / np.abs(found).max():.1e} of the largest"
        )
        assert error <= 2e-4 * np.abs(found).max()
    back = folder / "back"
    for part in (policy, before, after):
        part.save_pretrained(back)
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        written, again = (json.loads((place / name).read_text()) for place in (directory, back))
        assert written == again, name
    print(f"{len(loaded)} tensors loaded as written; both processors written again as they were")


if __name__ == "__main__":
    command, place, *robots = sys.argv[1:]
    {"write": write, "run": run}[command](Path(place), *robots)
