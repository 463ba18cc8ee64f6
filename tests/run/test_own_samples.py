"""A run keeps its own samples: what it trains on and holds out does not change under it."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from customized_grpo.compare.arm import _check_same_cases
from customized_grpo.config import ConfigError, load_config
from customized_grpo.data import Sample
from customized_grpo.data.digests import digests
from customized_grpo.errors import UsageError
from customized_grpo.files.json_text import JsonError
from customized_grpo.measure.evaluate import evaluate, write_evaluation
from customized_grpo.measure.request import EvaluationRequest, make_request
from customized_grpo.run.own_samples import OWN_SAMPLES, DataChangedError, OwnSamples
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer
from program import TINY
from runs import SMALL, rows_of

Edit = Callable[[list[dict[str, Any]], Path], None]
SUBJECTS = "abcd"


def draw(file: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((36, 32)).save(file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with list.json, four subjects with three prompts each, and a run of two updates that trained on it."""
    folder, entries = tmp_path_factory.mktemp("own"), []
    for number, subject in enumerate(SUBJECTS):
        draw(folder / f"{subject}.png", number)
        about = {"image_paths": [f"{subject}.png"], "subject": subject, "class_word": "toy"}
        entries += [{"prompt": f"the toy {subject}, {view}", **about} for view in range(3)]
    (folder / "list.json").write_text(json.dumps(entries))
    with contextlib.chdir(folder):
        start().train()
    return folder


def start(*overrides: str, resume: bool = False) -> Trainer:
    data = ["data.source=list.json", "data.train_samples=null", "data.held_out_share=0.5"]
    settings = [*SMALL, *data, "output=run", "updates=2", "save_every=1", "evaluation.every=1"]
    return assemble(load_config(TINY, [*settings, *overrides]), resume=resume)


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the data included: the working folder."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "copy"))
    return Path()


def edit(folder: Path, change: Edit) -> None:
    file = folder / "list.json"
    entries = json.loads(file.read_text())
    change(entries, folder)
    file.write_text(json.dumps(entries))


def another_prompt(entries: list[dict[str, Any]], _: Path) -> None:
    for entry in entries:
        entry["prompt"] += " at night"


def another_order(entries: list[dict[str, Any]], _: Path) -> None:
    """Ids are positions, so each id now names another sample."""
    entries.reverse()


def another_subject(entries: list[dict[str, Any]], _: Path) -> None:
    for entry in entries:
        entry["subject"] = "all"


def fewer(entries: list[dict[str, Any]], _: Path) -> None:
    del entries[-5:]


def another_picture(_: list[dict[str, Any]], folder: Path) -> None:
    for subject in SUBJECTS:
        draw(folder / f"{subject}.png", 100)


def another_view(entries: list[dict[str, Any]], _: Path) -> None:
    for entry in entries:
        entry["other_views"] = ["a.png"]


CHANGES: list[tuple[Edit, str]] = [
    (another_prompt, r"of 12 samples 12 with another prompt, subject or class word \(0"),
    (another_order, r"of 12 samples 12 with another prompt, subject or class word \(.*\); 12 with other pictures"),
    (another_subject, r"of 12 samples 12 with another prompt"),
    (fewer, r"of 12 samples 5 gone \("),
    (another_picture, r"of 12 samples 12 with other pictures"),
    (another_view, r"of 12 samples 12 with other pictures"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_changed_data_is_named_and_refused_by_resume_and_evaluate(folder: Path, change: Edit, message: str):
    edit(folder, change)
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    with pytest.raises(DataChangedError, match=rf"{message}.*put the data back as it was, or start another run"):
        start("updates=3", resume=True)
    with pytest.raises(DataChangedError, match=r"of 6 samples .*add data\.source=\.\.\. to measure on all of it"):
        _ = make_request(str(folder / "run"), []).samples
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("appended", ["a", "e"], ids=["known subject", "new subject"])
def test_a_run_goes_on_with_its_own_samples_when_the_list_grows(finished: Path, folder: Path, appended: str):
    """A fifth subject would change which subjects are held out."""
    draw(folder / "e.png", 5)
    edit(folder, lambda entries, _: entries.append({**entries[0], "image_paths": ["e.png"], "subject": appended}))
    with pytest.warns(UserWarning, match="the data holds 1 sample more than the run began with; it goes on without"):
        resumed = start("updates=3", resume=True)
    resumed.train()
    with contextlib.chdir(shutil.copytree(finished, folder / "same")):
        start("updates=3", resume=True).train()
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert rows_of(folder / "run", log) == rows_of(folder / "same" / "run", log)


def test_moved_data_is_the_same_data(folder: Path):
    for subject in SUBJECTS:
        (folder / "moved").mkdir(exist_ok=True)
        (folder / f"{subject}.png").rename(folder / "moved" / f"{subject}.png")
    assert start("data.root=moved", "updates=3", resume=True).samples
    assert len(make_request("run/adapter-step-00002", ["data.root=moved"]).samples) == 6


# --- what evaluate takes for held out --------------------------------------------------------------------------------


def ids(samples: list[Sample]) -> set[str]:
    return {sample.id for sample in samples}


@pytest.mark.parametrize("part", ["", "adapter", "checkpoints/step-00001"])
def test_what_was_held_out_is_measured_however_the_data_would_be_divided_now(folder: Path, part: str):
    """As if the run had been divided by another rule: its record counts."""
    target = folder / "run" / part
    own = OwnSamples.read(target)
    assert own is not None
    assert ids(make_request(str(target), []).samples) == own.held_out.keys()
    OwnSamples(own.held_out, own.train).write(target)
    assert ids(make_request(str(target), []).samples) == own.train.keys()
    assert len({s.subject for s in make_request(str(target), [], cases=2).samples}) == 2


@pytest.mark.parametrize(("override", "own"), [("seed=1", "seed=0"), ("data.held_out_share=0.3", "share=0.5")])
def test_another_division_is_refused(folder: Path, override: str, own: str):
    with pytest.raises(UsageError, match=rf"divided its data with .*{own}, .*remove {override}"):
        make_request(str(folder / "run"), [override])
    assert ids(make_request(str(folder / "run"), ["seed=0"]).samples)


def test_pictures_of_another_start_are_not_kept(folder: Path):
    references = sorted((folder / "run" / "images").glob("reference-*.png"))
    right = [file.read_bytes() for file in references]
    for file in references:
        draw(file, 99)
    start("updates=3", resume=True).train()
    assert [file.read_bytes() for file in references] == right


def test_an_evaluation_does_not_go_on_with_other_pictures(folder: Path):
    def request() -> Any:
        return make_request(TINY, ["data.source=list.json", "device=cpu"], cases=2)

    evaluate(request(), folder / "ev")
    settings = json.loads((folder / "ev" / "settings.json").read_text())
    del settings["content"]  # as an older version left it: nothing to compare with
    (folder / "ev" / "settings.json").write_text(json.dumps(settings))
    evaluate(request(), folder / "ev")
    edit(folder, another_picture)
    with pytest.raises(ConfigError, match="holds another evaluation: content"):
        evaluate(request(), folder / "ev")
    with pytest.raises(ConfigError, match=r"was made when the data was not what it is now: its pictures"):
        write_evaluation(request(), folder / "tuned", folder / "ev")
    edit(folder, another_prompt)
    with pytest.raises(ConfigError, match=r"not what it is now: sample \d+ has another prompt"):
        write_evaluation(request(), folder / "tuned", folder / "ev")


def test_the_arms_of_a_comparison_are_tested_on_the_same_cases(folder: Path):
    """The second arm, or the base, is tested when the data has changed since the first one."""
    request = EvaluationRequest(load_config("run"), held_out=True, cases=2)
    _check_same_cases(request, folder / "run")
    _check_same_cases(request, folder / "not started")
    edit(folder, another_picture)
    request = EvaluationRequest(load_config("run"), held_out=True, cases=2)
    with pytest.raises(DataChangedError, match=r"of 2 samples 2 with other pictures .*that run is run; put the data"):
        _check_same_cases(request, folder / "run")


# --- the record ------------------------------------------------------------------------------------------------------


def test_a_run_of_an_older_version_gets_its_record_when_it_is_resumed(folder: Path):
    record = folder / "run" / OWN_SAMPLES
    before = record.read_bytes()
    record.unlink()
    with pytest.warns(UserWarning, match=r"has no samples\.json.*cannot be checked, and is recorded from now on"):
        trainer = start("updates=3", resume=True)
    trainer.train()
    assert record.read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", '{"train": {"0": 1}}', '{"train": {"0": "a"}, "held_out": {}}'])
def test_a_damaged_record_is_one_line(folder: Path, content: str):
    (folder / "run" / OWN_SAMPLES).write_text(content)
    with pytest.raises(JsonError, match=r"samples\.json.*restore it from a copy, or remove it") as caught:
        start("updates=3", resume=True)
    assert "\n" not in str(caught.value)


def test_a_digest_tells_text_from_pictures_and_ignores_ids_and_paths(tmp_path: Path):
    draw(tmp_path / "a.png", 0)
    draw(tmp_path / "b.png", 1)
    shutil.copyfile(tmp_path / "a.png", tmp_path / "c.png")

    def of(prompt: str = "p", file: str = "a.png", **fields: Any) -> Any:
        made = Sample(id="x", subject="s", prompt=prompt, references=(tmp_path / file,), **fields)
        return digests([made])["x"]

    assert of(file="c.png") == of()
    assert (of("q").text != of().text, of("q").pictures == of().pictures) == (True, True)
    assert (of(file="b.png").text == of().text, of(file="b.png").pictures != of().pictures) == (True, True)
    view = (tmp_path / "b.png",)
    assert len({of(other_views=view).pictures, of(mask=view[0]).pictures, of().pictures}) == 3
    assert of(class_word="dog").text != of(extra={"style": "ink"}).text != of().text
    with Image.open(tmp_path / "a.png") as picture:
        in_memory = Sample(id="x", subject="s", prompt="p", references=(picture,))
        assert digests([in_memory])["x"].text == of().text


def test_until_something_is_trained_the_data_may_be_divided_anew(folder: Path):
    shutil.rmtree("run/checkpoints")
    Path("run/checkpoints/step-00001.saving").mkdir(parents=True)  # left by a crash while it was saved
    settings = ("seed=1", "data.train_samples=4", "data.held_out_share=0.25")
    fresh, again = start(*settings, "output=fresh"), start(*settings, resume=True)
    assert [sample.id for sample in again.plan.samples] == [sample.id for sample in fresh.plan.samples]
    assert len(again.plan.samples) == 4
    assert OwnSamples.read(folder / "run") == OwnSamples.read(folder / "fresh")
