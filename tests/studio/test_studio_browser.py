"""The studio in a real browser, started as a user starts it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from chromium import Opened
from customized_grpo.config import load_config
from customized_grpo.training.assemble import assemble
from program import TINY
from runs import SMALL

pytestmark = pytest.mark.slow
api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install 'customized-grpo[browser]'")
pytest.importorskip("gradio", reason="no Gradio: pip install 'customized-grpo[studio]'")
HOSTILE = "<script>alert(1)</script> ${alert(2)} {{ 7 * 7 }} <img src=x onerror=alert(3)>"
USUAL = "Method not implemented."  # Gradio's own warning whenever its stream of events ends


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with two runs that the studio is started in."""
    folder = tmp_path_factory.mktemp("studio")
    settings = [*SMALL, "updates=2", "save_every=1", "keep_last=9", "evaluation.every=1", "optimizer.lr=0.05"]
    assemble(load_config(TINY, [f"output={folder / 'runs' / 'first'}", *settings])).train()
    shutil.copytree(folder / "runs" / "first", folder / "runs" / "second")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "customized_grpo", "studio", "--no-browser", "runs/first", "runs/second"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        yield program.stdout.readline().split()[1]
        program.terminate()
    assert program.returncode == 143
    assert not list(folder.glob("customized-grpo-studio-*"))


class Studio(Opened):
    """The page once it shows its first pictures; at the end it has made no request elsewhere and no complaint."""

    def __init__(self, browser: Any, address: str, **settings: Any):
        super().__init__(browser, address, **settings)
        self.address = address
        self.page.set_default_timeout(60_000)
        self.page.locator(".pair img").first.wait_for()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        super().__exit__(kind, *error)
        if kind is None:
            assert {urlsplit(url).netloc for url in self.requests if not url.startswith(("data:", "blob:"))} == {
                urlsplit(self.address).netloc
            }
            assert [text for text in self.complaints if text != USUAL] == []

    def picture(self, column: int = 1) -> str:
        return self.page.locator(".pair img").nth(column).get_attribute("src")

    def changed(self, column: int, before: str) -> None:
        """Waits until another picture is shown."""
        api.expect(self.page.locator(".pair img").nth(column)).not_to_have_attribute("src", before)

    def generate(self, prompt: str) -> None:
        self.page.get_by_label("Prompt").fill(prompt)
        self.page.get_by_role("button", name="Generate").click()


def test_the_sliders_go_through_steps_and_checkpoints(browser: Any, address: str):
    with Studio(browser, address) as studio:
        page, last = studio.page, [studio.picture(0), studio.picture(1)]
        steps, checkpoints = (page.get_by_role("slider", name=name) for name in ("Denoising step", "Checkpoint"))
        assert steps.get_attribute("aria-valuetext") == "step 3"
        steps.press("Home")
        first = [studio.picture(0), studio.picture(1)]
        assert not {*first} & {*last}
        assert page.locator(".trial output").inner_text() == "1"
        assert checkpoints.get_attribute("aria-valuetext") == "update 2"
        checkpoints.press("ArrowLeft")
        api.expect(page.locator(".pair figcaption").nth(1)).to_contain_text("update 1")
        assert page.locator(".trial output").inner_text() == "1"  # the step stays
        steps.press("End")
        assert studio.picture(0) == last[0]
        assert studio.picture(1) != last[1]
        checkpoints.press("ArrowRight")
        api.expect(page.locator(".pair img").nth(1)).to_have_attribute("src", last[1])


def test_uploads_are_generated_and_a_bad_one_is_named(browser: Any, address: str, folder: Path):
    Image.new("CMYK", (40, 30), (0, 200, 200, 0)).save(folder / "mine.tiff")
    (folder / "bad.png").write_text("no picture")
    with Studio(browser, address) as studio:
        page, before = studio.page, studio.picture()
        page.locator("input[type=file]").set_input_files([folder / "mine.tiff"])
        api.expect(page.locator(".chosen img")).to_have_attribute("width", "40")
        studio.generate("a critter at night, at the left, without a hat")
        studio.changed(1, before)
        page.locator("input[type=file]").set_input_files([folder / "bad.png"])
        api.expect(page.locator(".problem")).to_contain_text("bad.png: not a picture that Pillow can read")
        assert page.locator(".chosen img").get_attribute("width") == "40"
        kept = [path for path in folder.glob("customized-grpo-studio-*/**/*") if path.suffix in (".tiff", ".png")]
        assert kept == []
        page.locator("[data-choice='1']").click()
        api.expect(page.locator(".chosen img")).to_have_attribute("width", "32")


def test_a_prompt_is_text_and_an_empty_one_is_refused(browser: Any, address: str):
    with Studio(browser, address) as studio:
        before = studio.picture()
        studio.generate(HOSTILE)
        studio.changed(1, before)
        assert studio.page.locator(".asked").inner_text() == HOSTILE
        studio.generate("  ")
        api.expect(studio.page.locator(".problem")).to_have_text("the prompt is empty; say what to show")
        studio.generate("a critter at night, at the left, without a hat")
        studio.page.locator(".pair img").first.wait_for()
        api.expect(studio.page.locator(".problem")).to_have_count(0)


def test_a_run_is_followed_while_it_trains(browser: Any, address: str, folder: Path):
    run = folder / "runs" / "second"
    with Studio(browser, address) as studio:
        page = studio.page
        chooser = page.locator(".form:has(> .chooser)").bounding_box()
        assert chooser["width"] < 400  # no empty row beside it
        page.get_by_label("Run", exact=True).first.click()
        page.get_by_role("option", name="second").click()
        page.get_by_role("tab", name="Run").click()
        progress = page.locator(".progress p")
        api.expect(page.locator("h2", has_text="second")).to_be_visible()
        api.expect(progress).to_contain_text("update 2 of 2")
        slider = page.get_by_role("slider", name="Update")
        slider.press("Home")
        row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        row |= {"update": 3, "warnings": [{"update": 3, "kind": "hacking suspected", "message": HOSTILE}]}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        api.expect(progress).to_contain_text("update 3 of 2")
        assert page.locator(".warnings").inner_text().endswith(HOSTILE)
        assert slider.get_attribute("aria-valuetext") == "update 0"  # as it was left


def test_cases_are_sorted_and_filtered_by_what_changed(browser: Any, address: str, folder: Path):
    scores = [
        [row["scores"]["identity_reward"] for row in json.loads(file.read_text())]
        for file in sorted((folder / "runs/first/images").glob("eval-*/cases.json"))
    ]
    changes = [after - before for before, after in zip(scores[0], scores[-1], strict=True)]
    with Studio(browser, address) as studio:
        studio.page.get_by_role("tab", name="Cases").click()
        cards = studio.page.locator(".wall .card:visible")
        api.expect(cards).to_have_count(len(changes))
        studio.page.get_by_label("Sort by").select_option("identity reward")
        studio.page.locator("select.column").select_option("change")
        shown = [int(card.get_attribute("data-card")) for card in cards.all()]
        assert shown == sorted(range(len(changes)), key=lambda n: -changes[n])
        studio.page.locator("select.changed").select_option("better")
        api.expect(cards).to_have_count(sum(change > 0 for change in changes))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_only_vertically_and_themes_follow_the_system(browser: Any, address: str, scheme: str):
    with Studio(browser, address, width=400, scheme=scheme) as studio:
        for tab in ("Try", "Run", "Cases"):
            studio.page.get_by_role("tab", name=tab).click()
            assert studio.page.evaluate("document.documentElement.scrollWidth") == 400
        paper = studio.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(251, 250, 247)", "dark": "rgb(20, 22, 26)"}[scheme]
