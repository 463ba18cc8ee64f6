"""`report`: one page that contains everything, shows what the files hold, and takes no text for markup."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_folders import HOSTILE, TINY, fake_comparison, fake_demo, fake_evaluation, fake_run

from customized_grpo.config import load_config
from customized_grpo.data.images import PictureError
from customized_grpo.measure.evaluate import write_evaluation
from customized_grpo.measure.probe import run_probe
from customized_grpo.measure.request import make_request
from customized_grpo.report import ReportError, write_report
from customized_grpo.report.album import BUDGET, PIXEL_ART, Album, thumbnail
from customized_grpo.report.page import as_json_script
from customized_grpo.training.trainer import Trainer

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """A page as lists: (tag, attributes) of all elements, tables as rows of texts, whether every tag is closed."""

    def __init__(self, file: Path):
        super().__init__()
        self.text = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.shown: list[str] = []
        self.data = ""
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.data += data if data.startswith("[") else ""
            return
        if self.open[-1:] != ["style"]:
            self.shown.append(data)
        if {"th", "td"} & {*self.open}:
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def rows(self, table: int = 0) -> dict[str, list[str]]:
        """The body of a table: first cell -> other cells, with single blanks."""
        lines = [[" ".join(cell.split()) for cell in row] for row in self.tables[table][1:]]
        return {row[0].removesuffix(" trained on"): row[1:] for row in lines}


def page_of(*folders: Path) -> Page:
    return Page(write_report(folders, folders[0].parent / "report.html"))


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(make_trainer: Callable[..., Trainer]) -> Path:
    trainer = make_trainer("updates=2", "evaluation.every=1", "evaluation.grid=3")
    trainer.train()
    return trainer.directory.path


# --- every page ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A demo, a comparison and a run on one page."""
    folder = tmp_path_factory.mktemp("report")
    return page_of(fake_demo(folder / "demo"), fake_comparison(folder / "ablation"), fake_run(folder / "alone"))


def test_a_page_contains_all_that_it_shows(everything: Page):
    for tag, attributes in everything.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                assert str(value).startswith(("data:", "#")), (tag, name)
    assert "url(" not in everything.text
    assert "@import" not in everything.text
    assert not re.findall(r"https?://", everything.text)
    (policy,) = [str(meta["content"]) for meta in everything.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in policy


def test_texts_are_never_markup(everything: Page):
    assert len(everything.all("script")) == 2  # the data and the program
    assert HOSTILE in everything.shown
    assert "it <b>fell</b>" in everything.shown
    assert len(re.findall(r"<script\b", everything.text)) == 2
    assert "innerHTML" not in everything.text
    assert not [name for _, attributes in everything.elements for name in attributes if name.startswith("on")]


def test_json_in_a_script_cannot_end_it():
    hostile = [HOSTILE, "</script><script>alert(1)//", "<!--"]
    assert "<" not in as_json_script(hostile)
    assert json.loads(as_json_script(hostile)) == hostile


def test_a_screen_reader_finds_its_way(everything: Page):
    tags = [tag for tag, _ in everything.elements]
    assert all(tags.count(tag) == 1 for tag in ("main", "header", "footer", "nav", "h1"))
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(image.get("alt") for image in everything.all("img"))
    ids = [attributes["id"] for _, attributes in everything.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [a["aria-labelledby"] for _, a in everything.elements if "aria-labelledby" in a]
    links = [str(link["href"])[1:] for link in everything.all("a")]
    assert {*named, *links, *(str(label["for"]) for label in everything.all("label") if "for" in label)} <= {*ids}
    assert all("aria-label" in svg or "aria-hidden" in svg for svg in everything.all("svg"))


def test_the_page_has_no_paths_of_its_author(everything: Page):
    """Reports are passed around: they have no output folder and no command line."""
    assert "/home/someone" not in everything.text


# --- its content -----------------------------------------------------------------------------------------------------


def test_the_table_of_a_demo_is_its_summary(tmp_path: Path):
    page = page_of(fake_demo(tmp_path / "demo"))
    for table in (0, 1):
        rows = page.rows(table)
        assert rows["joint success"][:3] == ["0.250 [0.200, 0.310]", "0.750 [0.700, 0.790]", "+0.500"]
        assert len(rows) == 4
    marked = [row[0] for row in page.tables[0] if "trained on" in row[0]]
    assert [" ".join(each.split()) for each in marked] == ["identity reward trained on"]
    assert "The first 5 of 512 cases in list order, not selected." in " ".join(page.shown)
    assert "hacking suspected" in page.text
    assert "1 warning while training" in page.text


def test_the_tables_of_a_comparison_are_its_json(tmp_path: Path):
    folder = fake_comparison(tmp_path / "ablation")
    page, content = page_of(folder), json.loads((folder / "comparison.json").read_text())
    rows = page.rows()
    for place, arm in enumerate(("base", "naive", "sars_tdw")):
        figure = content["arms"][arm]["figures"]["joint_success"]
        assert figure["mean"] == pytest.approx(0.1 * place + 0.05)
        expected = f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        assert rows["joint success"][place] == expected.replace("-", "−")
    assert [
        name for name in rows if f"{name} trained on" in " ".join(" ".join(r[0].split()) for r in page.tables[0])
    ] == [
        "DINO identity",
        "CLIP prompt",
    ]
    primary = page.tables[1]
    assert [" ".join(primary[1][0].split()), primary[1][4], len(primary)] == ["sars_tdw − naive", "primary", 2]
    assert len(page.tables[2]) == len(content["differences"])  # a line of heads, and all but the primary one
    assert page.rows(-1) == {arm: ["2", "none", "none", "none", "none"] for arm in ("naive", "sars_tdw")}
    degraded = content["degradation"][0]["competitive_degradation"]
    degraded |= {"at_end": 1, "on_the_way": 2, "first_update": 4, "last_update": 12, "warned": 1}
    degraded["updates"] = {"0": [4, 12], "1": [4]}
    (folder / "comparison.json").write_text(json.dumps(content))
    assert page_of(folder).rows(-1)["naive"][1] == "at the end 1, on the way 2 (updates 4–12), warned 1"
    film = json.loads(page.data)[0]["film"]
    assert film["updates"] == [0, 12]
    assert len(film["frames"][0][0]) == 2  # two arms side by side
    assert "prompt of seed 0" in page.text
    assert "prompt of seed 1" not in page.text


def test_many_arms_are_rows_of_a_table_and_shown_by_selection(tmp_path: Path):
    folder = fake_comparison(tmp_path / "ablation", weights=(0.3, 0.4, 0.6))
    page, content = page_of(folder), json.loads((folder / "comparison.json").read_text())
    assert [" ".join(cell.split()) for cell in page.tables[0][0]] == ["arm", "", "joint success"]
    for arm, cells in page.rows().items():
        figure = content["arms"][arm]["figures"]["joint_success"]
        expected = f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        assert cells[-1] == expected.replace("-", "−")
    assert set(page.rows()) == {"base", "naive", "sars_tdw", "weight.3", "weight.4", "weight.6"}
    boxes = {str(box["value"]): "checked" in box for box in page.all("input") if box["type"] == "checkbox"}
    assert boxes == {"0": True, "1": True, "2": False, "3": False, "4": False}  # the primary question's arms
    places = [str(button["data-places"]) for button in page.all("button") if "data-places" in button]
    assert places == ["0 1", "2 3", "0 1 2 3 4"]  # main question, the file's own selection, all
    off = {str(group["data-arm"]) for group in page.all("g") if group.get("class") == "arm off"}
    assert off == {"2", "3", "4"}
    hidden = {str(figure["data-arm"]) for figure in page.all("figure") if "hidden" in figure}
    assert hidden == {"2", "3", "4"}
    assert "The dotted line joins weight.3, weight.4, naive, weight.6" in page.text
    assert (
        len([line for line in page.all("polyline") if line.get("class") == "front"]) == 2
    )  # by the rewards, by the oracle
    found = {each["arm"]: each for each in content["beyond_front"] if each["plane"][0] == "oracle_identity"}
    margin = found["sars_tdw"]
    expected = f"{margin['mean']:+.3f} [{margin['low']:+.3f}, {margin['high']:+.3f}], {margin['beyond']} of 2"
    assert page.rows(-2)["sars_tdw"][-1] == expected.replace("-", "−")


def test_arms_that_beat_the_base_are_shown_enlarged_next_to_the_complete_plane(tmp_path: Path):
    folder = fake_comparison(tmp_path / "ablation", weights=(0.3, 0.4, 0.6))
    assert ", enlarged" not in page_of(folder).text  # no arm's prompt is above the base's
    content = json.loads((folder / "comparison.json").read_text())
    content["arms"]["base"]["figures"]["oracle_prompt"]["mean"] -= 0.1
    (folder / "comparison.json").write_text(json.dumps(content))
    text = page_of(folder).text
    assert "identity right against prompt right, enlarged" in text
    assert "DINO identity against CLIP prompt, enlarged" not in text  # the arms equal the base there


def test_pictures_of_the_base_alone_make_no_film(tmp_path: Path):
    folder = fake_run(tmp_path / "run")
    assert "Watch it learn" in page_of(folder).text
    file = folder / "evaluations.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    assert "Watch it learn" not in page_of(folder).text


def test_the_calibrated_figure_of_a_run_has_a_row_a_chart_and_a_meaning(tmp_path: Path):
    folder = fake_run(tmp_path / "run")
    assert "joint quality" not in page_of(folder).text
    file = folder / "evaluations.jsonl"
    rows = [json.loads(line) | {"joint_calibrated": 0.25} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page_of(folder).text
    assert text.count("joint quality, calibrated") >= 3
    assert "identity times prompt, each 0 for what bad and 1 for what good pictures get" in text


def test_runs_with_different_starts_are_each_compared_with_their_own(tmp_path: Path):
    """With the first run's start as the base of all, a rise of another could look like a fall."""
    one, other = (fake_run(tmp_path / name) for name in ("one", "other"))
    assert "base" in page_of(one, other).text
    file = other / "evaluations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    lower = [{**row, "identity_reward": row["identity_reward"] - 0.3} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in lower))
    page = page_of(one, other)
    assert "compare each with its own first evaluation" in page.text
    first, last = rows[0]["update"], rows[-1]["update"]
    heads = [" ".join(cell.split()) for cell in page.tables[0][0]]
    assert [head for head in heads if "update" in head] == [
        f"{name}, update {n}" for name in ("one", "other") for n in (first, last)
    ]


def test_the_scores_that_a_wall_is_sorted_by(tmp_path: Path):
    page = page_of(fake_demo(tmp_path / "demo"))
    wall = json.loads(page.data)[0]["wall"]
    assert wall["columns"] == ["base", "tuned"]
    assert wall["metrics"] == ["identity reward", "prompt reward", "identity right"]
    assert wall["scores"] == [[[0.5, None, 1.0]] * 2] * 5


def test_a_probe_is_shown_with_the_figures_that_it_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = load_config(str(TINY), ["output=unused", "device=cpu", "sampling.num_steps=6"])
    run_probe(config, None, prompts=2, draws=2, output=tmp_path / "probe")
    page = page_of(tmp_path / "probe")
    printed = capsys.readouterr().out
    steps = json.loads((tmp_path / "probe" / "probe.json").read_text())["steps"]
    assert len(page.rows()) == len(steps) > 4
    for step, cells in zip(steps, page.rows().values(), strict=True):
        figure = step["spread"]["identity_reward"]
        expected = f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        assert cells[1] == expected
        assert expected in printed
    assert "How strongly does it pull on the update?" in page.shown


def test_a_real_run_and_its_real_evaluations(run: Path, tmp_path: Path):
    for base in (True, False):
        request = make_request(str(run), ["device=cpu"], base=base, cases=3)
        write_evaluation(request, run / f"evaluation-{'base' if base else 'tuned'}", None)
    page = Page(write_report([run], tmp_path / "report.html"))
    tuned = json.loads((run / "evaluation-tuned" / "summary.json").read_text())["metrics"]
    for name, metric in (("DINO identity", "dino"), ("joint success", "joint_success")):
        figure = tuned[metric]
        expected = f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        assert page.rows()[name][1] == expected.replace("-", "−")
    film = json.loads(page.data)[0]["film"]
    assert film["updates"] == [0, 1, 2]
    assert [len(film["frames"]), len(film["frames"][0])] == [3, 3]
    pictures = [image for image in page.all("img") if image.get("class") == "pixels"]
    assert len(pictures) == 3 * 2 + 3 * 3  # film: reference and last frame; wall: reference, base and tuned
    assert "Which step pulls where" in page.text
    last = Image.open(run / "images" / "eval-00002" / "00.png").convert("RGB")
    assert thumbnail(last, 0).uri == film["frames"][2][0][0][0]


def test_several_runs_are_arms_side_by_side(tmp_path: Path):
    page = page_of(fake_run(tmp_path / "naive"), fake_run(tmp_path / "sars"))
    assert [" ".join(cell.split()) for cell in page.tables[0][0][1:4]] == [
        "base",
        "naive, update 12",
        "sars, update 12",
    ]
    assert "Conflict beyond chance" in page.text
    assert "Identity against prompt: judged by the oracle" in page.shown
    assert "During training: rewards" not in page.shown  # it would need an end on test cases
    again = write_report([tmp_path / "naive", tmp_path / "sars"], tmp_path / "again.html")
    assert again.read_text() == page.text


@pytest.mark.parametrize("kept", ["metrics.jsonl", "evaluations.jsonl", "images", None])
def test_a_run_that_lacks_something_is_shown_without_it(kept: str | None, tmp_path: Path):
    run = fake_run(tmp_path / "run")
    for name in {"metrics.jsonl", "evaluations.jsonl", "images"} - {kept}:
        (run / name).rename(tmp_path / name)
    assert "Settings" in page_of(run).text


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, pytest.param(512, marks=pytest.mark.slow)])
def test_a_page_of_a_thousand_pictures_stays_small(side: int, tmp_path: Path):
    page = page_of(fake_evaluation(tmp_path / "many", 800, side))
    assert len(page.all("img")) > 600
    assert len(page.text) < 20_000_000
    assert all(image["loading"] == "lazy" and image["decoding"] == "async" for image in page.all("img"))
    assert "content-visibility: auto" in page.text


def test_pixel_art_is_kept_to_the_bit_and_photographs_are_fitted():
    rng = np.random.default_rng(0)
    art = Image.fromarray(rng.integers(0, 256, (PIXEL_ART, PIXEL_ART, 3), dtype=np.uint8))
    kept = thumbnail(art, 10)
    assert (kept.width, kept.height, kept.pixel_art) == (PIXEL_ART, PIXEL_ART, True)
    assert kept.uri.startswith("data:image/png;base64,")
    photograph = Image.fromarray(rng.integers(0, 256, (600, 900, 3), dtype=np.uint8))
    smallest = thumbnail(photograph, BUDGET // 1000)  # noise: nothing compresses worse
    assert 1000 * len(smallest.uri) < 19_000_000
    large, small = thumbnail(photograph, 100_000), thumbnail(photograph, 5_000)
    assert (large.width, large.height) == (384, 256)
    assert small.width < 200
    assert len(small.uri) < 5_000 * 4 / 3 + 100
    assert small.uri.startswith("data:image/webp;base64,")


def test_equal_pictures_are_encoded_once(tmp_path: Path):
    """Equal in pixels and size, in files of other names and kinds."""
    rng = np.random.default_rng(0)
    wide = Image.fromarray(rng.integers(0, 256, (80, 120, 3), dtype=np.uint8))
    tall = Image.frombytes("RGB", (80, 120), wide.tobytes())
    files = [tmp_path / name for name in ("a.png", "b.bmp", "c.png")]
    for file, picture in zip(files, (wide, wide, tall), strict=True):
        picture.save(file)
    album = Album(files)
    assert album[files[0]] is album[files[0]] is album[files[1]]
    assert [(album[file].width, album[file].height) for file in files] == [(120, 80), (120, 80), (80, 120)]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_folders_of_no_known_kind(tmp_path: Path):
    with pytest.raises(ReportError, match=r"nowhere is not a folder; name the folder of a run"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(ReportError, match=r"is not a run \(config.yaml and environment.json\), evaluation .* or demo"):
        write_report([tmp_path], tmp_path / "report.html")
    unfinished = fake_evaluation(tmp_path / "unfinished", 1, 8)
    (unfinished / "summary.json").unlink()
    with pytest.raises(ReportError, match=r"has no summary.json: the evaluation was stopped; run it again"):
        write_report([unfinished], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_broken_picture_is_named(tmp_path: Path):
    folder = fake_evaluation(tmp_path / "broken", 1, 8)
    (folder / "images" / "00000-s0-0.png").write_bytes(b"half")
    with pytest.raises(PictureError, match=r"00000-s0-0.png: not a picture"):
        write_report([folder], tmp_path / "report.html")
