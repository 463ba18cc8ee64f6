"""The page: three tabs of components, and what they do. Everything that the user sees of a result is in markup.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from customized_grpo.data import Sample
from customized_grpo.errors import InputError
from customized_grpo.studio import markup
from customized_grpo.studio.generating import Studio, Trial, told
from customized_grpo.studio.opened import Live, Opened
from customized_grpo.studio.subjects import choices, seed_of, uploaded, with_prompt

REFRESH = 2.0  # seconds between two looks at the folder of a run
NO_RUN = (
    "No run is open. Train one with: customized-grpo train critters, and open it while it trains with: "
    "customized-grpo studio runs/critters"
)


@dataclass
class Page:
    """The page of some runs. Its state in a browser: the chosen sample, the trial, and what was last seen of a run."""

    opened: dict[str, Opened]
    line: str
    studio: Studio
    live: Live = field(default_factory=Live)
    _choices: dict[str, list[Sample]] = field(default_factory=dict)

    # --- what the components do: values in, values out ---------------------------------------------------------------

    def choose_run(self, name: str) -> tuple[Any, ...]:
        """Subjects to choose from, the first of them with its prompt, and an empty result."""
        opened = self.opened[name]
        problem = ""
        if name not in self._choices:
            try:
                self._choices[name] = choices(opened)
            except InputError as error:
                problem = f"{error}; its held-out cases cannot be chosen, but you can drop a picture"
        samples = self._choices.get(name, [])
        first = next(iter(samples), None)
        empty = markup.hint("Press Generate." if samples else "Drop a picture of the subject, then press Generate.")
        pictures = markup.choices(samples), markup.chosen(first)
        return *pictures, first, first.prompt if first else "", markup.problem(problem), empty, "", "", None

    def pick(self, name: str, prompt: str, current: Sample | None, choice: int) -> tuple[Any, ...]:
        """Another held-out subject; its prompt, unless the user has written one."""
        sample = self._choices[name][choice]
        written = prompt.strip() and prompt != (current.prompt if current else "")
        return markup.chosen(sample), sample, prompt if written else sample.prompt, ""

    def upload(self, name: str, files: Sequence[str] | None, current: Sample | None) -> tuple[Any, ...]:
        """The user's own pictures as references; the sample is unchanged if one of them cannot be read."""
        problem = ""
        if files:
            try:
                current = uploaded([Path(file) for file in files], self.opened[name].config.data.class_word)
            except InputError as error:
                problem = str(error)
        return markup.chosen(current), current, None, markup.problem(problem)

    def generate(self, name: str, sample: Sample | None, prompt: str, seed: str) -> tuple[Any, ...]:
        """Base and tuned. If it fails, one line; the server goes on.

        seed  empty: that of the case in the run's evaluations, so that its pictures are those of the third tab
        """
        opened = self.opened[name]
        try:
            asked = with_prompt(sample, prompt)
            trial = self.studio.begin(opened, asked, seed_of(seed, asked))
        except Exception as error:  # told() prints the traceback of a bug
            return None, "", "", "", markup.problem(told(error))
        last = next(iter(trial.tuned), None)
        slider = markup.checkpoints(list(opened.checkpoints()), last)
        return trial, markup.result(trial, last), slider, markup.scores(trial, last), ""

    def tune(self, trial: Trial | None, checkpoint: str) -> tuple[Any, ...]:
        """The tuned picture of another checkpoint."""
        try:
            if trial is None:
                return "", "", ""
            self.studio.tune(trial, checkpoint)
        except Exception as error:  # as above
            return "", "", markup.problem(told(error))
        return markup.result(trial, checkpoint), markup.scores(trial, checkpoint), ""

    def watch(self, name: str, seen: Any, again: bool) -> tuple[Any, ...] | None:
        """The tabs of a run, and what was seen of it; None if nothing has changed since."""
        opened = self.opened[name]
        state = {"name": name, **self.live.state(opened)}
        if state == seen and not again:
            return None
        try:
            content = self.live(opened)
        except InputError as error:  # a file may be half written; the next look shows it
            return markup.problem(str(error)), markup.problem(str(error)), state
        if content is None:
            return markup.hint(NO_RUN), markup.hint(NO_RUN), state
        return markup.run(opened, *content), markup.cases(*content), state


def build(page: Page) -> Any:
    """The page as Gradio's Blocks."""
    gr: Any = import_module("gradio")
    names = list(page.opened)
    with gr.Blocks(title="customized-grpo studio", analytics_enabled=False, fill_width=True) as blocks:
        _html(gr, markup.header(page.line))
        run = gr.Dropdown(names, value=names[0], label="Run", visible=len(names) > 1, elem_classes="chooser")
        problem = _html(gr)
        sample, trial, seen = gr.State(None), gr.State(None), gr.State(None)
        with gr.Tabs():
            with gr.Tab("Try"):
                parts = _try_tab(gr)
            with gr.Tab("Run"):
                about = _html(gr)
            with gr.Tab("Cases"):
                cases = _html(gr)
        _connect_try(gr, page, blocks, run, problem, sample, trial, parts)
        tabs = [about, cases, seen]

        def look(name: str, state: Any) -> Any:
            return page.watch(name, state, again=False) or tuple(gr.skip() for _ in tabs)

        def open_run(name: str) -> Any:
            return page.watch(name, None, again=True)

        silent = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        gr.Timer(REFRESH).tick(look, [run, seen], tabs, **silent)
        gr.on([blocks.load, run.change], open_run, [run], tabs, **silent)
    return blocks


@dataclass
class _Try:
    """The components of the first tab."""

    chosen: Any
    choices: Any
    files: Any
    prompt: Any
    seed: Any
    button: Any
    result: Any
    checkpoints: Any
    scores: Any


def _try_tab(gr: Any) -> _Try:
    with gr.Row(elem_classes="try"):
        with gr.Column(scale=4, min_width=320, elem_classes="ask"):
            chosen, choices = _html(gr), _html(gr)
            files = gr.File(file_count="multiple", type="filepath", show_label=False, height=64, elem_classes="drop")
            prompt = gr.Textbox(label="Prompt", lines=2, max_lines=8, placeholder="what to show the subject in")
            with gr.Row(elem_classes="go"):
                seed = gr.Textbox(label="Seed", placeholder="the case's", max_lines=1, min_width=110, scale=1)
                button = gr.Button("Generate", variant="primary", scale=3, min_width=120)
        with gr.Column(scale=8, min_width=320, elem_classes="answer"):
            result, checkpoints, scores = _html(gr), _html(gr), _html(gr)
    return _Try(chosen, choices, files, prompt, seed, button, result, checkpoints, scores)


def _connect_try(
    gr: Any, page: Page, blocks: Any, run: Any, problem: Any, sample: Any, trial: Any, parts: _Try
) -> None:
    private = {"api_visibility": "private"}
    silent = {**private, "queue": False, "show_progress": "hidden"}
    one_at_a_time = {**private, "concurrency_limit": 1, "concurrency_id": "model"}
    make = {
        "fn": page.generate,
        "inputs": [run, sample, parts.prompt, parts.seed],
        "outputs": [trial, parts.result, parts.checkpoints, parts.scores, problem],
        "show_progress": "minimal",
        "show_progress_on": parts.result,
        **one_at_a_time,
    }

    def begin(name: str, *asked: Any) -> Any:
        """The first picture without being asked, where it takes a moment."""
        if page.opened[name].built_in:
            return page.generate(name, *asked)
        return tuple(gr.skip() for _ in make["outputs"])

    answer = [parts.result, parts.checkpoints, parts.scores]
    start = gr.on(
        [blocks.load, run.change],
        page.choose_run,
        [run],
        [parts.choices, parts.chosen, sample, parts.prompt, problem, *answer, trial],
        **silent,
    )
    start.then(**{**make, "fn": begin})
    parts.choices.select(
        _with_event(gr, lambda name, prompt, current, event: page.pick(name, prompt, current, event.choice)),
        [run, parts.prompt, sample],
        [parts.chosen, sample, parts.prompt, problem],
        **silent,
    )
    parts.files.upload(page.upload, [run, parts.files, sample], [parts.chosen, sample, parts.files, problem], **silent)
    gr.on([parts.button.click, parts.prompt.submit], **make)
    parts.checkpoints.input(
        _with_event(gr, lambda trial, event: page.tune(trial, event.checkpoint)),
        [trial],
        [parts.result, parts.scores, problem],
        show_progress="hidden",
        trigger_mode="always_last",
        **one_at_a_time,
    )


def _html(gr: Any, value: str = "") -> Any:
    """A place for HTML from markup.py. page.js fills it, so that widgets inside keep their state."""
    return gr.HTML(
        value,
        html_template='<div class="report"></div>',
        js_on_load="studio.mount(element, props, trigger, watch)",
        apply_default_css=False,
    )


def _with_event(gr: Any, handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose last argument, `event`, is the data that page.js sent along: Gradio goes by its annotation."""
    handler.__annotations__ = {"event": gr.EventData}
    return handler
