"""The README and the pages under docs/: their code runs, their commands parse, their links lead somewhere."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from customized_grpo.cli import app
from customized_grpo.commands.generate import GenerationRequest, write_pictures
from customized_grpo.config import load_config
from customized_grpo.data import Sample
from customized_grpo.policies.base import Policy
from customized_grpo.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(ROOT.glob("docs/*.md"))


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_block(page: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)
    return block


def commands(pages: Sequence[Path]) -> list[str]:
    """Every command of the program in a code block of a page, without comments and placeholders."""
    fences = [
        found for page in pages for found in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    ]
    blocks = [block for language, block in fences if language in ("", "sh")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^|-m )customized[-_]grpo (.*?)(?:  +#.*)?$", line) for line in lines]
    return list(dict.fromkeys(match[1] for match in found if match and "..." not in match[1]))


COMMANDS = commands(PAGES)
# The others name what a package adds, and are run with it: test_plugins.py, test_extending_page.py.
OF_THIS_PACKAGE = commands([page for page in PAGES if page.name not in ("api.md", "extending.md")])


def test_the_readme_is_short():
    assert len(text("README.md").splitlines()) <= 150


# --- code ------------------------------------------------------------------------------------------------------------


def test_the_mathematics_can_be_used_in_another_training_loop():
    names: dict[str, Any] = {}
    exec(python_block("README.md"), names)
    assert names["advantages"].shape == (4, 12, 4)
    assert names["advantages"].isfinite().all()
    assert names["weight"].tolist() == pytest.approx([0.7, 0.7, 0.7, 0.7])


def test_plain_diffusers_makes_the_picture_that_generate_makes(
    make_trainer: Callable[..., Trainer],
    excite: Callable[[Policy], None],
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    snippet = python_block("docs/diffusers.md")
    (prompt,) = re.findall(r'prompt="(.*?)"', snippet)
    (adapter,) = re.findall(r'load_lora_weights\("(.*?)"\)', snippet)
    (reference,) = re.findall(r'Image\.open\("(.*?)"\)', snippet)
    # The files that exist in the repository after `make demo`, with an adapter whose alpha is half its rank.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    Path(reference).parent.mkdir(parents=True)
    samples[0].reference_images()[0].save(reference)
    sampling = load_config("critters").sampling
    recipe = (f"sampling.num_steps={sampling.num_steps}", f"sampling.shift={sampling.shift}", "updates=0")
    trainer = make_trainer(f"output={Path(adapter).parent}", *recipe, "adapter.rank=4", "adapter.alpha=2")
    excite(trainer.policy)
    trainer.train()

    names: dict[str, Any] = {}
    exec(snippet, names)
    request = GenerationRequest(
        references=[Path(reference)],
        prompts=[prompt],
        seeds=[0],
        model="critters",
        adapter=Path(adapter),
        device="cpu",
    )
    tuned, compared = write_pictures(request, tmp_path / "out", compare=True)
    theirs, ours = np.asarray(names["image"]).astype(int), np.asarray(Image.open(tuned)).astype(int)
    # Our noise levels are computed in float64, the scheduler's in float32: the last bit of a pixel may differ.
    assert np.abs(theirs - ours).max() <= 1
    base = np.asarray(Image.open(compared))[18 : 18 + 256, 262 : 262 + 256][4::8, 4::8].astype(int)
    assert np.abs(base - ours).max() > 10  # the adapter changes the picture


# --- commands --------------------------------------------------------------------------------------------------------


def test_there_are_commands_to_test():
    assert {command.split()[0] for command in COMMANDS} >= {"train", "evaluate", "compare", "generate", "probe"}
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_arguments_and_options_that_they_show(command: str):
    name, *arguments = shlex.split(command)
    program: Any = get_command(app)
    program.commands[name].make_context(name, arguments)  # exits if one is unknown or missing


@pytest.mark.parametrize("command", [command for command in OF_THIS_PACKAGE if command.startswith("train")])
def test_training_commands_name_settings_that_exist(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)  # for docs/examples
    _, recipe, *arguments = shlex.split(command)
    recipe = "critters" if recipe.startswith("runs/") else recipe  # a run of that recipe
    load_config(recipe, [argument for argument in arguments if not argument.startswith("--")])


# --- links and figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("column", "row"),
    [(0, "joint success"), (1, "oracle: identity right"), (2, "oracle: prompt right")],
)
def test_the_demo_in_the_readme_is_the_mean_of_the_demo_page(column: int, row: str):
    base, *seeds = map(float, re.findall(r" (\d\.\d+) \[", _row(text("docs/demo.md"), row)))
    assert len(seeds) == 3
    _, _, readme = text("README.md").partition("**`make demo`**")
    assert _figure(readme, "base", column) == base
    tuned = _figure(readme, "rule `joint`, 80 updates, mean of seeds 0, 1 and 2", column)
    assert tuned == pytest.approx(sum(seeds) / 3, abs=5e-4)


def _row(page: str, name: str) -> str:
    (line,) = re.findall(rf"^\| (?:\*\*)?{re.escape(name)}(?:\*\*)? \|.*$", page, re.MULTILINE)[:1]
    return line


def _figure(page: str, name: str, column: int) -> float:
    return float(_row(page, name).strip("|").split("|")[1 + column])
