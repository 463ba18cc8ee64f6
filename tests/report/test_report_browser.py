"""The report in a real browser: the system's Chromium, or Playwright's own if it is installed."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_folders import HOSTILE, fake_comparison, fake_demo, fake_run

from chromium import Opened
from customized_grpo.report import write_report

pytestmark = pytest.mark.slow
api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install 'customized-grpo[browser]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report([fake_demo(folder / "demo")], folder / "demo.html")
    write_report([fake_run(folder / "a"), fake_run(folder / "b")], folder / "runs.html")
    everything = [folder / "demo", fake_comparison(folder / "ablation"), folder / "a"]
    write_report(everything, folder / "everything.html")
    write_report([fake_comparison(folder / "many", weights=(0.3, 0.4, 0.6))], folder / "many.html")
    return folder


@pytest.mark.parametrize("name", ["demo", "runs", "everything", "many"])
def test_it_opens_without_errors_and_makes_no_request(browser: Any, folder: Path, name: str):
    with Opened(browser, (folder / f"{name}.html").as_uri()) as opened:
        requested = [url for url in opened.requests if not url.startswith("data:")]
        assert requested == [(folder / f"{name}.html").as_uri()]
        assert opened.complaints == []
        broken = "[...document.images].filter(i => { i.loading = 'eager'; return i.complete && !i.naturalWidth })"
        assert opened.page.evaluate(f"{broken}.length") == 0


def test_a_prompt_is_text_whatever_it_contains(browser: Any, folder: Path):
    with Opened(browser, (folder / "runs.html").as_uri()) as opened:
        assert "hacked" not in opened.page.title()
        prompts = opened.page.locator(".film .prompt").all_text_contents()
        assert prompts == [HOSTILE, HOSTILE]
        opened.page.evaluate("document.querySelector('.prompt').innerHTML = '<img src=x onerror=document.title=1>'")
        opened.page.wait_for_timeout(100)
        assert opened.page.title() != "1"  # even if markup got in, the policy would not run it


def test_the_table_is_the_json(browser: Any, folder: Path):
    summary = json.loads((folder / "demo" / "summary.json").read_text())
    with Opened(browser, (folder / "demo.html").as_uri()) as opened:
        for part, number in (("", 0), ("_unseen_combinations", 1)):
            table = opened.page.locator("table").nth(number)
            for metric, base in summary[f"base{part}"].items():
                cells = table.locator(f"tr[data-metric={metric}] td").all_inner_texts()
                for figure, cell in zip((base, summary[f"tuned{part}"][metric]), cells, strict=False):
                    assert cell == f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def test_the_slider_goes_through_training_by_keyboard_and_pointer(browser: Any, folder: Path):
    with Opened(browser, (folder / "demo.html").as_uri()) as opened:
        page = opened.page
        slider = page.get_by_role("slider", name="Update")
        picture = page.locator(".film figure[data-case] img").first
        last = picture.get_attribute("src")
        assert slider.get_attribute("aria-valuetext") == "update 12"
        slider.focus()
        page.keyboard.press("Home")
        first = picture.get_attribute("src")
        assert first != last
        assert slider.get_attribute("aria-valuetext") == "update 0"
        assert page.locator(".film output").inner_text() == "0"
        assert page.locator(".now.on").count() > 0
        page.keyboard.press("ArrowRight")
        assert picture.get_attribute("src") == last
        slider.click(position={"x": 3, "y": 16})
        assert picture.get_attribute("src") == first
        page.get_by_role("button", name="Play").press("Enter")
        api.expect(page.locator(".film output")).to_have_text("12")
        assert picture.get_attribute("src") == last
        assert opened.complaints == []


def test_arms_are_selected_in_charts_and_pictures(browser: Any, folder: Path):
    with Opened(browser, (folder / "many.html").as_uri()) as opened:
        page = opened.page
        names = "[...new Set([...document.querySelectorAll('.film figure[data-arm]')].filter(e => e.checkVisibility())"
        names += ".map(e => e.querySelector('figcaption').textContent))]"
        lines = "[...new Set([...document.querySelectorAll('g.arm:not(.off)')].map(e => e.dataset.arm))].sort()"
        assert page.locator(".picker output").inner_text() == "naive, sars_tdw"
        assert page.evaluate(names) == ["naive", "sars_tdw"]
        assert page.evaluate(lines) == ["0", "1"]
        page.locator(".picker summary").press("Enter")
        page.get_by_role("button", name="two weights").press("Enter")
        assert page.evaluate(names) == ["weight.3", "weight.4"]
        assert page.evaluate(lines) == ["2", "3"]
        page.get_by_role("checkbox", name="naive").press("Space")
        assert page.evaluate(names) == ["naive", "weight.3", "weight.4"]
        assert page.get_by_role("button", name="two weights").get_attribute("aria-pressed") == "false"
        page.get_by_role("button", name="all", exact=True).click()
        assert page.locator(".picker output").inner_text() == "5 of 5"
        heights = (
            "[...document.querySelector('svg.chart').querySelectorAll('.name')].map(e => Number(e.getAttribute('y')))"
        )
        places = sorted(page.evaluate(heights))
        assert len(places) == 5
        assert min(after - before for before, after in pairwise(places)) >= 13.9  # names do not cover each other
        assert opened.complaints == []


def test_a_table_is_sorted_by_its_heads(browser: Any, folder: Path):
    with Opened(browser, (folder / "many.html").as_uri()) as opened:
        table = opened.page.locator("table").first
        arms = "rows => rows.map(row => row.dataset.model)"
        listed = table.locator("tbody tr").evaluate_all(arms)
        assert listed == ["base", "naive", "sars_tdw", "weight.3", "weight.4", "weight.6"]
        button = table.get_by_role("button", name="joint success")
        button.press("Enter")
        assert table.locator("tbody tr").evaluate_all(arms) == listed[::-1]
        assert table.locator("th[aria-sort=descending]").count() == 1
        button.press("Enter")
        assert table.locator("tbody tr").evaluate_all(arms) == listed
        assert table.locator("th[aria-sort=ascending]").count() == 1


def test_a_wall_is_sorted_by_a_score_and_searched(browser: Any, folder: Path):
    with Opened(browser, (folder / "demo.html").as_uri()) as opened:
        page = opened.page
        cards = "[...document.querySelectorAll('section.wall .card')].filter(e => !e.hidden).map(e => +e.dataset.card)"
        assert page.evaluate(cards) == [0, 1, 2, 3, 4]
        page.evaluate("data[0].wall.scores.forEach((case_, n) => case_[1][0] = [.2, .9, null, .4, .5][n])")
        wall = page.locator("section.wall")
        wall.get_by_label("Sort by").select_option("identity reward")
        assert page.evaluate(cards) == [1, 4, 3, 0, 2]  # of the tuned model; a case without a score comes last
        wall.get_by_label("Direction").select_option("lowest first")
        assert page.evaluate(cards) == [0, 3, 4, 1, 2]
        wall.get_by_label("Column").select_option("base")
        assert page.evaluate(cards) == [0, 1, 2, 3, 4]
        wall.get_by_label("Column").select_option("change from base to tuned")
        assert page.evaluate(cards) == [0, 3, 4, 1, 2]
        for change, left in (("better", [1]), ("worse", [0, 3]), ("same", [4])):  # from .5 of the base
            wall.locator("select.changed").select_option(change)
            assert page.evaluate(cards) == left
        wall.locator("select.changed").select_option("all")
        wall.get_by_label("Find").fill("PROMPT 3")
        assert page.evaluate(cards) == [3]
        assert wall.locator(".finder output").inner_text() == "1 of 5"
        wall.get_by_label("Find").fill("")
        wall.get_by_label("Sort by").select_option("list order")
        assert page.evaluate(cards) == [0, 1, 2, 3, 4]
        assert opened.complaints == []


def test_themes_follow_the_system_and_the_button(browser: Any, folder: Path):
    paper = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        with Opened(browser, (folder / "demo.html").as_uri(), scheme=scheme) as opened:
            seen[scheme] = opened.page.evaluate(paper)
            opened.page.get_by_role("button", name="Switch to the").click()
            seen[f"{scheme}, switched"] = opened.page.evaluate(paper)
    assert seen["light"] != seen["dark"]
    assert (seen["light, switched"], seen["dark, switched"]) == (seen["dark"], seen["light"])


@pytest.mark.parametrize("name", ["demo", "runs", "everything", "many"])
def test_a_phone_scrolls_only_vertically(browser: Any, folder: Path, name: str):
    with Opened(browser, (folder / f"{name}.html").as_uri(), width=400) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") == 400
        outside = """[...document.querySelectorAll("main *, header *")].filter(element =>
            !element.closest(".scroll, nav, pre, svg, .visually-hidden") && element.checkVisibility() &&
            element.getBoundingClientRect().right > 401)"""
        assert opened.page.evaluate(f"{outside}.map(e => e.className)") == []


def test_the_keyboard_reaches_everything_in_order(browser: Any, folder: Path):
    with Opened(browser, (folder / "demo.html").as_uri()) as opened:
        reached = []
        for _ in range(14):
            opened.page.keyboard.press("Tab")
            focused = "(e => e.id || e.className || e.textContent)(document.activeElement)"
            reached.append(opened.page.evaluate(focused))
        assert reached[0] == "skip"
        assert reached.index("theme") < reached.index("scroll") < reached.index("play") < reached.index("slider-0")
