"""What the studio's components do, and what the command refuses."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from customized_grpo.config import load_config
from customized_grpo.data import Sample
from customized_grpo.studio import markup, server
from customized_grpo.studio.generating import Made, Studio, Trial
from customized_grpo.studio.opened import BUILT_IN, Opened, open_folders
from customized_grpo.studio.page import Page
from customized_grpo.studio.subjects import choices
from customized_grpo.training.trainer import Trainer
from program import Refusal
from runs import SMALL

HOSTILE = "</div><script>alert(1)</script> ${alert(2)} {{ 7 * 7 }} '\" <img src=x onerror=alert(3)>"
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra studio is not installed")


@pytest.fixture(scope="module")
def built_in() -> Opened:
    return Opened(BUILT_IN, load_config("critters", []))


@pytest.fixture
def page(built_in: Opened) -> Page:
    return Page({BUILT_IN: built_in}, "a line", Studio("cpu"))


@pytest.fixture
def run(make_trainer: Callable[..., Trainer]) -> Opened:
    trainer = make_trainer(*SMALL, "updates=2", "save_every=1", "keep_last=9", "evaluation.every=1")
    trainer.train()
    return open_folders([trainer.directory.path])[0][0]


# --- the first tab ---------------------------------------------------------------------------------------------------


def test_a_subject_brings_its_prompt_unless_another_was_written(page: Page):
    offered, _, first, prompt, problem, *_ = page.choose_run(BUILT_IN)
    samples = choices(page.opened[BUILT_IN])
    assert (first.id, prompt, problem) == (samples[0].id, samples[0].prompt, "")
    assert len(re.findall("data-choice=", offered)) == len(samples)
    _, second, prompt, _ = page.pick(BUILT_IN, prompt, first, 1)
    assert (second.id, prompt) == (samples[1].id, samples[1].prompt)
    assert page.pick(BUILT_IN, "my own words", second, 2)[2] == "my own words"
    assert page.pick(BUILT_IN, "", second, 3)[2] == samples[3].prompt


def test_a_bad_upload_leaves_the_subject_and_says_why(page: Page, samples: list[Sample], tmp_path: Path):
    (tmp_path / "x.png").write_text("no picture")
    _, kept, files, problem = page.upload(BUILT_IN, [str(tmp_path / "x.png")], samples[0])
    assert (kept, files) == (samples[0], None)
    assert "x.png: not a picture that Pillow can read" in problem


def test_a_failed_generation_is_one_line_and_the_next_one_works(
    page: Page, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trial, result, _, _, problem = page.generate(BUILT_IN, None, "a dog", "0")
    assert (trial, result) == (None, "")
    assert "no reference; choose a picture of the subject, or drop one" in problem
    with monkeypatch.context() as patch:
        patch.setattr(Studio, "_make", lambda *_: 1 / 0)
        *_, problem = page.generate(BUILT_IN, samples[0], "a dog", "0")
    assert "a bug: ZeroDivisionError: division by zero (the traceback is where" in problem
    assert "Traceback" in capsys.readouterr().err
    trial, result, slider, scores, problem = page.generate(BUILT_IN, samples[0], samples[0].prompt, "0")
    assert isinstance(trial, Trial)
    assert (slider, problem) == ("", "")
    assert result.count("<figure") == 1
    assert "identity reward" in scores


def test_texts_stay_texts(page: Page, samples: list[Sample]):
    *_, result, _, _, problem = page.generate(BUILT_IN, samples[0], HOSTILE, "0")
    assert problem == ""
    for text in (result, markup.problem(HOSTILE), markup.header(HOSTILE), markup.checkpoints([HOSTILE, "b"], HOSTILE)):
        assert "&lt;script&gt;" in text
        assert not re.search("<script|<img src=x", text)


def test_a_checkpoint_is_generated_when_it_is_asked_for(run: Opened):
    page = Page({run.name: run}, "", Studio("cpu"))
    sample = choices(run)[0]
    trial, result, slider, _, _ = page.generate(run.name, sample, sample.prompt, "3")
    assert list(trial.tuned) == ["update 2"]
    assert 'value="1"' in slider
    before, scores, problem = page.tune(trial, "update 1")
    assert (list(trial.tuned), problem) == (["update 2", "update 1"], "")
    assert "update 1" in before
    assert before != result
    assert scores
    assert "update 7 has been removed" in page.tune(trial, "update 7")[-1]


def test_bars_are_shares_and_changes_have_a_sign():
    def made(**scores: float) -> Made:
        return Made((), scores)

    base, tuned = made(dino=0.25, hpsv3=-2.0, lost=float("nan")), made(dino=0.5, hpsv3=6.0, lost=float("nan"))
    rows = {row["name"]: row for row in markup._score_rows(base, tuned, frozenset({"dino"}))}
    assert rows["DINO identity"]["values"] == [("0.25", 0.25), ("0.50", 0.5)]
    assert (rows["DINO identity"]["change"], rows["DINO identity"]["way"]) == ("+0.25", "up")
    assert rows["hpsv3"]["values"] == [("−2.00", 0.0), ("6.00", 1.0)]
    assert (rows["lost"]["values"], rows["lost"]["change"]) == ([("–", None), ("–", None)], None)
    assert [row["trained"] for row in rows.values()] == [True, False, False]


# --- the tabs of a run -----------------------------------------------------------------------------------------------


def test_a_run_is_shown_again_only_when_it_has_changed(run: Opened):
    page = Page({run.name: run}, "", Studio("cpu"))
    shown = page.watch(run.name, None, again=False)
    assert shown is not None
    about, cases, seen = shown
    assert "update <b>2</b> of 2, finished" in about
    assert about.count('class="chart"') > 3
    assert cases.count('data-card="') == run.config.data.held_out_samples
    assert "change from base to update 2" in cases
    assert page.watch(run.name, seen, again=False) is None
    assert run.run is not None
    log = run.run / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:1]))
    shown = page.watch(run.name, seen, again=False)
    assert shown is not None
    assert "update <b>1</b> of 2, last entry" in shown[0]
    log.write_text("not JSON\n")
    shown = page.watch(run.name, shown[2], again=False)
    assert shown is not None
    assert "metrics.jsonl, line 1: not JSON" in shown[0]


def test_without_a_run_the_tabs_say_how_to_open_one(page: Page):
    shown = page.watch(BUILT_IN, None, again=True)
    assert shown is not None
    assert all("customized-grpo studio runs/critters" in tab for tab in shown[:2])


# --- the server ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_served_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    refuse = Refusal(tmp_path, monkeypatch, capsys)
    monkeypatch.setattr(server, "find_spec", lambda _: None)
    assert refuse.line("studio") == 'studio: gradio is not installed; pip install "customized-grpo[studio]"'
    monkeypatch.setattr(server, "find_spec", lambda _: True)
    assert "nowhere is not a folder" in refuse.line("studio", "nowhere")
    with socket.create_server((server.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert refuse.line("studio", "--port", port).startswith(f"--port: no free port on 127.0.0.1 ({port}: ")


def test_the_first_free_port_is_taken(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server((server.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(server, "PORTS", range(port, port + 40))
        assert port < server.free_port(None) < port + 40


@needs_gradio
@pytest.mark.slow
def test_a_signal_closes_the_page_and_removes_what_was_uploaded(tmp_path: Path):
    command = [sys.executable, "-m", "customized_grpo", "studio", "--no-browser"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        assert re.fullmatch(r"studio: http://127\.0\.0\.1:\d+/ shows the built-in model .*; Ctrl-C stops it\n", line)
        (uploads,) = tmp_path.glob("customized-grpo-studio-*")
        (uploads / "mine.png").touch()
        program.send_signal(signal.SIGINT)
        _, error = program.communicate(timeout=60)
    assert program.returncode == 130
    assert error.endswith("SIGINT: the studio is closed, and uploaded pictures are removed\n")
    assert not uploads.exists()
