"""Dataset cards say, show and catch what they must.

The robot is tiny, with one gripper and two cameras.
"""

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open
from pi0_jax.data.index.findings import told_findings
from pi0_jax.data.index.gripper_check import grippers, trends
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Standardised
from pi0_jax.data.write import ArrayFeature, ImageFeature, TextFeature
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError
from pi0_jax.preprocess import normalize
from pi0_jax.report import card_facts, card_figures
from pi0_jax.report.cards import Card, write_cards
from tests.tiny_data import reach_episodes, shard_files, write_reach

STEPS = {
    "observation": {
        "front": ImageFeature(36, 64),
        "hand": ImageFeature(32, 32),
        "state": ArrayFeature((3,), np.float32),
    },
    "action": ArrayFeature((2,), np.float32),
    "ok": ArrayFeature((), np.int64),
    "language_instruction": TextFeature(),
}
PROMPTS = ("<script>alert('x')</script> costs $5", "pick it up", "", *("pick it up",) * 3)
FAILED = 1
LENGTH, HORIZON = 20, 4
ROBOT = Embodiment(
    "tiny",
    "tiny arm",
    {"base_0_rgb": "front", "left_wrist_0_rgb": "hand"},
    (StateDim("x", "m"), StateDim("gripper", "1", one_means="open"), StateDim("pad", "1")),
    (ActionDim("dx", "m", "relative"), ActionDim("gripper", "1", "absolute", one_means="open")),
    control_hz=5.0,
    execute_steps=2,
)


def two_coloured(height: int, width: int, left: tuple[int, int, int]) -> np.ndarray:
    """Returns uint8[height, width, 3]: `left` on the left half, grey on the right."""
    image = np.full((height, width, 3), 128, np.uint8)
    image[:, : width // 2] = left
    return image


def step(episode: int, number: int) -> dict:
    """Returns a step of an episode whose gripper closes at step 8 and opens at step 14.

    These are the commands, and the gripper follows two steps later. `front` is red, and `hand` is
    stored as BGR.
    """
    command = 0.0 if 8 <= number < 14 else 1.0
    opening = 0.0 if 10 <= number < 16 else 1.0
    return {
        "observation": {
            "front": two_coloured(36, 64, (220, 30, 20)),
            "hand": two_coloured(32, 32, (10, 60, 200)),
            "state": np.array([0.01 * number + 0.1 * episode, opening, 0.1], np.float32),
        },
        "action": np.array([0.01, command], np.float32),
        "ok": np.int64(episode != FAILED),
        "language_instruction": PROMPTS[episode],
    }


def recorded(columns: Columns) -> Standardised:
    """Everything as it was recorded; failures are dropped.

    The last step has no action.
    """
    steps = len(columns["steps/action"])
    success = bool(columns["steps/ok"][-1])
    keep = (np.arange(steps) < steps - 1) & success
    state, action = columns["steps/observation/state"], columns["steps/action"]
    return Standardised(state, action, keep, stop=steps - 1, success=success)


def inverted(columns: Columns) -> Standardised:
    """Takes everything as recorded, with a mistake: 1 - gripper."""
    result = recorded(columns)
    return result._replace(action=result.action * [1, -1] + [0, 1])


def state_upside_down(columns: Columns) -> Standardised:
    result = recorded(columns)
    return result._replace(state=result.state * [1, -1, 1] + [0, 1, 0])


def stuck(columns: Columns) -> Standardised:
    """Takes everything as recorded, with a gripper that is never told anything."""
    result = recorded(columns)
    return result._replace(action=result.action * [1, 0] + [0, 1])


def stateless(columns: Columns) -> Standardised:
    result = recorded(columns)
    return result._replace(state=result.state[:, :0])


ROW = Dataset(
    name="tiny",
    tfds_name="tiny",
    versions=("1.0.0",),
    embodiment=ROBOT,
    cameras={
        "front": CameraField("steps/observation/front"),
        "hand": CameraField("steps/observation/hand", "BGR"),
    },
    fields={
        "steps/observation/state": RawField((3,), "float32"),
        "steps/action": RawField((2,), "float32"),
        "steps/ok": RawField((), "int64"),
    },
    language=Language(("steps/language_instruction",)),
    standardise=recorded,
    revision=1,
    held_out=0.0,
    notes=("Colours of <b>hand</b> are fixed.",),
)
# A robot whose gripper state is 1 where it is closed, and one that does not say how it stands.
CLOSED = (ROBOT.state[0], StateDim("gripper", "1", one_means="closed"), ROBOT.state[2])
CLOSED_ROW = dataclasses.replace(
    ROW, standardise=state_upside_down, embodiment=dataclasses.replace(ROBOT, state=CLOSED)
)
MISTAKEN = dataclasses.replace(ROW, name="mistaken", standardise=inverted)
STATELESS_ROW = dataclasses.replace(
    ROW, standardise=stateless, embodiment=dataclasses.replace(ROBOT, state=())
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    steps = [[step(i, number) for number in range(LENGTH)] for i in range(len(PROMPTS))]
    write_reach(folder, name="tiny", steps=STEPS, episodes=[{"steps": one} for one in steps])
    return folder


def card_of(row: Dataset, data_dir: Path, share: float | None = None) -> Card:
    index = build_or_open(row, data_dir, progress=False)
    frames = index.frames("train")
    chunks, _ = index.chunks(frames, HORIZON)
    values = index.state[frames], chunks.reshape(-1, chunks.shape[-1])
    statistics = normalize.Statistics(*(normalize.accumulate([one]) for one in values))
    return Card(index, statistics, HORIZON, share)


class Page(HTMLParser):
    """Holds what a browser would show: text, pictures, links, findings, and names of all tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.pictures: list[Path] = []
        self.links: list[Path] = []
        self.findings: list[tuple[str, str]] = []  # level, text
        self._folder, self._level = path.parent, ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "img":
            self.pictures.append(self._folder / given["src"])
        if tag == "a":
            self.links.append((self._folder / given["href"]).resolve())
        self._level = given["class"] if tag == "div" else ""

    def handle_data(self, data):
        self.words.append(data)
        if self._level:
            self.findings.append((self._level, data))
            self._level = ""

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(card: Card, tmp_path: Path) -> Page:
    folder = write_cards([card], tmp_path / "cards").parent
    return Page(folder / card.index.name / "index.html")


@pytest.fixture(scope="module")
def cards(data_dir, tmp_path_factory):
    """Writes the cards of a right row and of one with a mistake."""
    both = [card_of(ROW, data_dir, 0.75), card_of(MISTAKEN, data_dir, 0.25)]
    return write_cards(both, tmp_path_factory.mktemp("c"))


def test_what_a_card_says(cards):
    page = Page(cards.parent / "tiny" / "index.html")
    for said in (
        "tiny arm (embodiment tiny)",
        "5 Hz; 0.4 min in all",
        "6 (5 succeeded, 1 failed)",
        "120; an episode has 20 to 20, median 20",
        "76 train (of 6 episodes), 0 val (of 0 episodes)",  # 4 episodes of 19 steps
        "share of the mixture 75.00%",
        "front: 36x64, RGB, slot base_0_rgb",
        "hand: 32x32, BGR, slot left_wrist_0_rgb",
        "3: x [m], gripper [1], pad [1]",
        "2: dx [m], gripper [1]",
        "76 of 76 training frames",
        "304 of 304 actions: chunks of 4 steps",
        "2 distinct prompts; 1 of 6 episodes have none",
        "pick it up 4",
        "<script>alert('x')</script> costs $5 1",
        "Colours of <b>hand</b> are fixed.",
        "Everything as it was recorded; failures are dropped.",
    ):
        assert said in page.text
    # text from the data is text, and nothing comes from elsewhere
    assert not page.tags & {"script", "link", "iframe"}


def test_what_a_card_finds(cards, data_dir):
    assert Page(cards.parent / "tiny" / "index.html").findings == [
        ("look", "state dimension pad is constant: 0.1 in every training frame"),
        ("look", "no frame is kept in split val"),
        ("look", "2 of 6 episodes have no kept frame"),
        (
            "look",
            "36.7% of the steps are dropped: 6 after their episode's last action; 19 in episodes"
            " marked as failed; 19 in episodes without an instruction",
        ),
        ("look", "1 of 6 episodes have no instruction"),
        *(("look", finding.text) for finding in told_findings(build_or_open(ROW, data_dir, progress=False))),
        # two steps at 5 Hz
        ("fine", "the state rises as the action opens (correlation +1.00, 0.4 s later), as declared"),
    ]  # fmt: skip


def test_an_inverted_gripper_is_a_problem_on_its_card_and_in_the_list(cards, data_dir):
    index = build_or_open(MISTAKEN, data_dir, progress=False)
    (trend,) = trends(index)
    problem = trend.finding.text
    assert problem.startswith("INVERTED")
    page, overview = Page(cards.parent / "mistaken" / "index.html"), Page(cards)
    assert page.findings[0] == ("wrong", f"gripper: {problem}")
    assert any("closed when 100% of the episodes begin" in text for _, text in page.findings)
    assert ("wrong", problem) in page.findings  # beside the gripper's own section
    assert overview.findings == [
        ("look", "7 to look at"),
        ("wrong", f"gripper: {problem}"),
        ("look", "8 to look at"),
    ]
    assert overview.links[:2] == [cards.parent / "tiny" / "index.html"] * 2
    assert "tiny tiny arm 5 6 120 76 0 75.00%" in overview.text


def test_a_state_that_counts_the_other_way_is_right_if_it_is_declared(data_dir, tmp_path):
    page = page_of(card_of(CLOSED_ROW, data_dir), tmp_path)
    ((level, said),) = [finding for finding in page.findings if "action opens" in finding[1]]
    assert level == "fine" and "the state falls as the action opens" in said


def test_pictures_show_the_colours_that_the_model_sees(cards):
    folder = cards.parent / "tiny"
    # hand's files hold BGR: what is 10, 60, 200 there is 200, 60, 10
    for number, red_and_blue in ((0, (220, 20)), (1, (200, 10))):
        for file, expected in (
            (f"camera-{number}.png", red_and_blue),
            (f"camera-{number}-swapped.png", red_and_blue[::-1]),
        ):
            with Image.open(folder / file) as image:
                red, _, blue = image.getpixel((4, 16))
            assert np.abs(np.array([red, blue]) - expected).max() <= 4


def test_every_picture_is_there_and_shows_something(cards):
    for page in cards.parent.glob("*/index.html"):
        pictures = Page(page).pictures
        assert sum(path.name.startswith("episode-") for path in pictures) == 3
        assert {"state.png", "action.png"} <= {path.name for path in pictures}
        for path in pictures:
            with Image.open(path) as image:
                assert np.asarray(image).std() > 10
    assert len(list(cards.parent.rglob("*.png"))) == 2 * (3 + 2 + 4)


def test_a_strip_is_in_time_order_and_states_are_drawn_as_openings(data_dir):
    index = build_or_open(CLOSED_ROW, data_dir, progress=False)
    strip = card_figures.strip(index, 0)
    assert strip.steps.tolist() == [1, 5, 8, 11, 15, 18]
    assert strip.kept.tolist() == [True] * 19 + [False]
    opening, command = card_figures.curves(index, 0, grippers(index)[0])
    assert opening.opening[strip.steps].tolist() == [1, 1, 1, 0, 0, 1]
    assert "drawn upside down" in opening.label
    assert command.opening[strip.steps].tolist() == [1, 1, 0, 0, 1, 1]
    assert np.isnan(command.opening[19])


def test_a_still_gripper_skipped_episodes_outliers_and_varying_images_are_found(data_dir, tmp_path):
    card = card_of(dataclasses.replace(ROW, name="still", standardise=stuck), data_dir)
    card.index.skipped[:] = [f"episode {i}: NaN" for i in range(12)]
    card.index.image_sizes["steps/observation/hand"] = {"min": [30, 32], "max": [32, 40]}
    card.statistics.state.maximum[0] = 100.0
    findings = page_of(card, tmp_path).findings
    assert [text for level, text in findings if level == "wrong"] == [
        *(f"skipped when the index was built: episode {i}: NaN" for i in range(10)),
        "... and 2 more episodes skipped when the index was built",
        "gripper: action dimension gripper never moves: it is 1 in every training frame",
    ]
    looks = " | ".join(text for level, text in findings if level == "look")
    for said in (
        "gripper: state and action hardly move together (correlation +0.00)",
        "images of steps/observation/hand vary in size: 30x32 to 32x40",
        "state dimension x reaches ",
        "standard deviations from its mean (0 to 100 m)",
    ):
        assert said in looks


def test_repeated_episodes_and_files_that_are_not_read_are_found(tmp_path):
    directory = write_reach(tmp_path, episodes=reach_episodes((6, 7, 5)) * 2)
    (directory / "reach_arm3-train.tfrecord-00003-of-00004").write_bytes(b"")
    index = build_or_open(ROWS["reach_arm3"], tmp_path, progress=False)
    assert card_facts.copied_episodes(index) == [(0, 3), (1, 4), (2, 5)]
    copies, files, *images = card_facts.quick_findings(index, card_facts.count_prompts(index))
    assert all("images of steps/observation/" in finding.text for finding in images)
    assert copies.level == "wrong" and "of 1 such pairs one is held out" in copies.text
    assert copies.text.endswith(": 3 of 0, 4 of 1, 5 of 2")
    assert files.level == "look" and files.text.startswith("1 files")
    assert files.text.endswith(": reach_arm3-train.tfrecord-00003-of-00004")


def test_without_a_gripper_there_is_no_gripper_section(tmp_path):
    write_reach(tmp_path, (6, 7, 5))
    page = page_of(card_of(ROWS["reach_arm3"], tmp_path), tmp_path)
    assert "Gripper" not in page.text and "gripper" not in page.text
    assert "no mixture given" in page.text and "The row has no notes." in page.text


def test_a_robot_without_a_state_shows_its_action_alone(data_dir, tmp_path):
    page = page_of(card_of(STATELESS_ROW, data_dir), tmp_path)
    assert "This robot has no state." in page.text
    assert "No gripper has both an action and a state." in page.text
    assert [path.name for path in page.pictures][-1] == "action.png"


def test_a_large_dataset_is_sampled_and_says_so(data_dir, tmp_path, monkeypatch):
    assert card_facts.evenly(100, 4).tolist() == [12, 37, 62, 87]
    assert card_facts.evenly(3, 4).tolist() == [0, 1, 2] and card_facts.evenly(0, 4).tolist() == []
    monkeypatch.setattr(card_facts, "SAMPLED_ROWS", 40)
    card = card_of(ROW, data_dir)
    assert card_facts.action_sample(card.index, HORIZON).shape == (40, 2)
    text = page_of(card, tmp_path).text
    assert "40 of 76 training frames" in text and "40 of 304 actions" in text


def test_cards_replace_cards_and_nothing_else(data_dir, tmp_path):
    card, output = card_of(ROW, data_dir), tmp_path / "cards"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    write_cards([card], output)
    (output / "tiny" / "index.html").write_text("old")
    write_cards([card], output)
    assert sorted(path.name for path in output.iterdir()) == ["index.html", "thesis.txt", "tiny"]
    assert (output / "tiny" / "index.html").read_text() != "old"
    with pytest.raises(InputError, match="different names, found 'tiny' 2 times"):
        write_cards([card, card], output)
    (output / "index.html").write_text("my own list")
    with pytest.raises(InputError, match="cards/index.html: expected no page, .* found another"):
        write_cards([card], output)
    # nothing half written is left
    assert sorted(path.name for path in output.iterdir()) == ["index.html", "thesis.txt", "tiny"]


def test_a_card_that_fails_leaves_the_cards_that_were_there(tmp_path):
    write_reach(tmp_path / "data", (6, 7, 5))
    card = card_of(ROWS["reach_arm3"], tmp_path / "data")
    page = write_cards([card], tmp_path / "cards")
    written = page.read_bytes()
    fresh = card_of(ROWS["reach_arm3"], tmp_path / "data")
    for shard in shard_files(tmp_path / "data" / "reach_arm3" / "1.0.0"):
        shard.unlink()
    for output in (tmp_path / "cards", tmp_path / "others"):
        with pytest.raises(InputError, match="expected a readable file"):
            write_cards([fresh], output)
    assert page.read_bytes() == written
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "reach_arm3"]
    assert not (tmp_path / "others").exists()
