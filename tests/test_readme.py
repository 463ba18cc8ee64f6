"""What the README shows runs, and does what it says."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from customized_grpo.commands.generate import GenerationRequest, write_pictures
from customized_grpo.config import load_config
from customized_grpo.data import Sample
from customized_grpo.policies.base import Policy
from customized_grpo.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^customized-grpo train (.*?)(?:  +#.*)?$", README, re.MULTILINE)


def test_the_mathematics_goes_into_a_loop_of_ones_own():
    _, snippet = SNIPPETS
    names: dict[str, Any] = {}
    exec(snippet, names)
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
    snippet, _ = SNIPPETS
    (prompt,) = re.findall(r'prompt="(.*?)"', snippet)
    (adapter,) = re.findall(r'load_lora_weights\("(.*?)"\)', snippet)
    (reference,) = re.findall(r'Image\.open\("(.*?)"\)', snippet)
    # What the snippet finds in the repository after `make demo`, with an adapter whose alpha is half its rank.
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
    request = GenerationRequest([Path(reference)], [prompt], [0], "critters", Path(adapter), None, None, "cpu")
    tuned, compared = write_pictures(request, tmp_path / "out", compare=True)
    theirs, ours = np.asarray(names["image"]).astype(int), np.asarray(Image.open(tuned)).astype(int)
    # Our noise levels are computed in float64, the scheduler's in float32: the last bit of a pixel may differ.
    assert np.abs(theirs - ours).max() <= 1
    base = np.asarray(Image.open(compared))[18 : 18 + 256, 262 : 262 + 256][4::8, 4::8].astype(int)
    assert np.abs(base - ours).max() > 10  # and the adapter shows


@pytest.mark.parametrize("command", COMMANDS)
def test_training_commands_are_right(command: str):
    recipe, *arguments = shlex.split(command)
    load_config(recipe, [argument for argument in arguments if not argument.startswith("--")])


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 4
