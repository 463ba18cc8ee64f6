"""The card of an adapter: what it says comes from the run's files, and what users wrote changes nothing but itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from customized_grpo.calibration.intervals import over_seeds
from customized_grpo.config import CONFIG, RunConfig, dump_config
from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import FINAL
from customized_grpo.sharing.card import CARD, PICTURES, SHEET, TAG, Trained, write_card
from customized_grpo.sharing.licences import licence_of
from customized_grpo.sharing.scores import scores_of_run
from customized_grpo.training.trainer import Trainer
from program import start
from runs import SMALL

EVALUATED = (*SMALL, "updates=2", "save_every=1", "evaluation.every=1", "data.held_out_samples=3")
MakeTrainer = Callable[..., Trainer]
EVIL = "a `dog` | *in* [a](http://evil.org)\n---\nlicense: mit\n# <script>alert(1)</script> {{ x }} \\(y\\)"


@pytest.fixture
def run(make_trainer: MakeTrainer, tmp_path: Path) -> Path:
    make_trainer(*EVALUATED, "adapter.ema.decay=0.5").train()
    return tmp_path / "run"


def row_of(card: str, name: str) -> list[str]:
    """The cells of a metric's row in the table of scores."""
    (line,) = [line for line in card.splitlines() if line.startswith(f"| `{name}`")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_run_writes_the_card_of_its_adapter(run: Path, make_trainer: MakeTrainer, tmp_path: Path):
    folder = run / FINAL
    card = ModelCard.load(folder / CARD)
    front = card.data.to_dict()
    assert front["license"] == "mit"
    assert (front["library_name"], front["pipeline_tag"]) == ("diffusers", "image-to-image")
    assert {"lora", TAG} <= {*front["tags"]}
    assert "base_model" not in front  # the built-in model is not on the Hub
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    for name in ("identity_reward", "joint_success"):
        _, before, after = row_of(card.text, name)
        assert [before[:5], after[:5]] == [f"{row[name]:.3f}" for row in (rows[0], rows[2])]
    assert row_of(card.text, "identity_reward")[0].endswith(r"\*")
    assert not row_of(card.text, "joint_success")[0].endswith(r"\*")
    assert str(tmp_path) not in (folder / CARD).read_text()
    prompts = [case["prompt"] for case in json.loads((run / "images" / "eval-00002" / "cases.json").read_text())]
    assert [each["text"] for each in front["widget"]] == prompts
    for number, each in enumerate(front["widget"]):
        kept = run / "images" / "eval-00002" / f"{number:02d}.png"
        assert (folder / each["output"]["url"]).read_bytes() == kept.read_bytes()
    assert f"]({SHEET})" in card.text
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    make_trainer(*EVALUATED, "adapter.ema.decay=0.5", resume=True).train()  # nothing is left to train
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_sheet_shows_reference_base_and_tuned(run: Path):
    """Pixel art of 32 pixels is drawn six times larger; the first card begins at (18, 18), its pictures 18 below."""
    with Image.open(run / FINAL / SHEET) as opened:
        sheet = np.asarray(opened)
    for column, name in enumerate(("reference-00.png", "eval-00000/00.png", "eval-00002/00.png")):
        with Image.open(run / "images" / name) as opened:
            picture = np.asarray(opened.convert("RGB"))
        left = 18 + column * (192 + 6)
        assert np.array_equal(sheet[36 : 36 + 192 : 6, left : left + 192 : 6], picture)


def test_checkpoints_and_averages_have_figures_of_their_own(run: Path, tmp_path: Path):
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    for adapter, update, figure in (
        (run / "checkpoints" / "step-00001", 1, "identity_reward"),
        (run / f"{FINAL}-ema", 2, "identity_reward_ema"),
        (run / "checkpoints" / "step-00001" / "ema", 1, "identity_reward_ema"),
    ):
        trained = Trained.find(adapter)
        assert trained is not None
        assert (trained.run, trained.update) == (run, update)
        write_card(trained, tmp_path / "out")
        text = (tmp_path / "out" / CARD).read_text()
        assert row_of(text, "identity_reward")[2].startswith(f"{rows[update][figure]:.3f} [")
        assert (tmp_path / "out" / PICTURES).exists() == (not trained.average)


def test_intervals_are_those_of_students_t(make_config: Callable[..., RunConfig], tmp_path: Path):
    values = [0.2, 0.4, 0.9]
    row = {"m": 0.5, "spread": {"m": float(np.std(values, ddof=1))}, "scored": {"m": 3}}
    none = {"m": None, "spread": {"m": None}, "scored": {"m": 0}}
    (tmp_path / "evaluations.jsonl").write_text(
        "".join(json.dumps({"update": n, **each}) + "\n" for n, each in ((0, none), (4, row)))
    )
    scores = scores_of_run(tmp_path, make_config(), 4, average=False)
    assert scores is not None
    assert scores.base == {"m": None}
    estimate, expected = scores.tuned["m"], over_seeds(values)
    assert estimate is not None
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.5, expected.low, expected.high))
    assert scores_of_run(tmp_path, make_config(), 3, average=False) is None


def test_evaluate_has_the_last_word(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    for options in (("--base",), ()):
        answer = start(("evaluate", run, "--cases", "5", "--device", "cpu", *options), monkeypatch, capsys)
        assert answer.code == 0, answer.error
    trained = Trained.find(run / FINAL)
    assert trained is not None
    write_card(trained, tmp_path / "out")
    text = (tmp_path / "out" / CARD).read_text()
    assert "on 5 held-out images of 5 subjects; intervals are over subjects." in text
    for column, name in ((1, "evaluation-base"), (2, "evaluation-tuned")):
        measured = json.loads((run / name / "summary.json").read_text())["metrics"]["joint_success"]
        expected = f"{measured['mean']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}]"
        assert row_of(text, "joint_success")[column] == expected
    settings = json.loads((run / "evaluation-tuned" / "settings.json").read_text())
    (run / "evaluation-tuned" / "settings.json").write_text(json.dumps({**settings, "adapter": "of another day"}))
    write_card(trained, tmp_path / "out")
    assert "held-out cases of the run's evaluations" in (tmp_path / "out" / CARD).read_text()


@pytest.fixture
def evil(make_config: Callable[..., RunConfig], tmp_path: Path) -> Trained:
    """A run whose prompts, class word, paths and rewards were written to break a card."""
    run = tmp_path / "run"
    for name in ("adapter", "images/eval-00000", "images/eval-00001"):
        (run / name).mkdir(parents=True)
    (run / "environment.json").write_text("{}")
    reward = "rewards.own={name: '/home/ann/`|x.py:f', role: quality, weight: 1, options: {note: see /home/ann/notes}}"
    config = make_config("data.source=/home/ann/a`b|c.json", f"data.class_word={EVIL}", "updates=1", reward)
    (run / "adapter" / CONFIG).write_text(dump_config(config))
    Image.new("RGB", (32, 32)).save(run / "images" / "reference-00.png")
    for update in ("eval-00000", "eval-00001"):
        Image.new("RGB", (32, 32)).save(run / "images" / update / "00.png")
        case = {"prompt": EVIL, "reference": "reference-00.png", "picture": f"{update}/00.png"}
        (run / "images" / update / "cases.json").write_text(json.dumps([case]))
    trained = Trained.find(run / "adapter")
    assert trained is not None
    return trained


def test_what_users_wrote_breaks_neither_yaml_nor_markdown(evil: Trained, tmp_path: Path):
    write_card(evil, tmp_path / "out")
    text = (tmp_path / "out" / CARD).read_text()
    _, front, *_ = text.split("\n---\n" if not text.startswith("---\n") else "---\n")
    data = yaml.safe_load(front)
    assert data["license"] == "mit"
    assert data["widget"][0]["text"] == " ".join(EVIL.split())
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(text).content.partition("\n---\n")[2])
    assert not [token for token in tokens if token.type == "html_block"]
    inline = [part for token in tokens for part in token.children or ()]
    assert not [part for part in inline if part.type == "html_inline"]
    assert not [part for part in inline if part.type == "link_open" and "evil" in str(part.attrs)]
    headings = [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Pictures", "Scores", "Use", "Limits", "Method"]
    cells = [tokens[n + 1].children for n, token in enumerate(tokens) if token.type == "td_open"]
    shown = ["".join(part.content for part in cell or ()) for cell in cells]
    assert f"12 samples of a`b|c.json of a {' '.join(EVIL.split())}" in shown
    assert "/home/ann" not in text


def test_pictures_can_stay_here(evil: Trained, tmp_path: Path):
    write_card(evil, tmp_path / "out")
    write_card(evil, tmp_path / "out", pictures=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [CARD]
    assert "widget" not in ModelCard.load(tmp_path / "out" / CARD).data.to_dict()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../secret.png", r"names the picture '../../secret.png', which lies outside; remove it from cases.json"),
        ("eval-00001/text.png", r"text.png cannot be read as a picture: cannot identify image file"),
    ],
)
def test_a_run_from_elsewhere_shows_no_other_files(name: str, message: str, evil: Trained, tmp_path: Path):
    images = tmp_path / "run" / "images"
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (images / "eval-00001" / "text.png").write_text("no picture")
    case = {"prompt": EVIL, "reference": "reference-00.png", "picture": name}
    (images / "eval-00001" / "cases.json").write_text(json.dumps([case]))
    with pytest.raises(UsageError, match=message):
        write_card(evil, tmp_path / "out")


def test_an_adapter_of_another_program_has_no_card(tmp_path: Path):
    assert Trained.find(tmp_path) is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("black-forest-labs/FLUX.1-Kontext-dev", ("other", "flux-1-dev-non-commercial-license")),
        ("black-forest-labs/FLUX.2-klein-base-4B", ("apache-2.0", None)),
        ("black-forest-labs/FLUX.2-klein-9B", ("other", "flux-non-commercial-license")),
        ("Qwen/Qwen-Image-Edit-2511", ("apache-2.0", None)),
        ("someone/else", ("unknown", None)),
    ],
)
def test_the_front_matter_of_models_on_the_hub(
    model: str, expected: tuple[str, str | None], make_config: Callable[..., RunConfig], tmp_path: Path
):
    changes: Any = (f"model.path={model}", "device=cpu", "data.source=list.json", "data.class_word=dog")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / CONFIG).write_text(dump_config(make_config(*changes)))
    trained = Trained.find(tmp_path / "adapter")
    assert trained is not None
    write_card(trained, tmp_path / "out")
    front = ModelCard.load(tmp_path / "out" / CARD).data.to_dict()
    assert (front["license"], front.get("license_name")) == expected
    assert (front["base_model"], front["base_model_relation"]) == (model, "adapter")
    link = licence_of(model).license_link
    assert front.get("license_link") == link
    assert (link is not None) == (expected[0] == "other")
