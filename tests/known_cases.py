"""Fixtures: data sets on which rewards are checked and calibrated."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.calibration.known_pictures import Cases, load_cases
from customized_grpo.critters.samples import DEVELOPMENT_CRITTERS, draw_samples
from customized_grpo.sections import Data


@pytest.fixture(scope="session")
def critters() -> Cases:
    return Cases(draw_samples(24, DEVELOPMENT_CRITTERS, 0))


@pytest.fixture
def photographs(tmp_path: Path) -> Callable[..., Cases]:
    """A list of plain pictures: subject -> (class word, number of other views), two prompts of each."""

    def make(**subjects: tuple[str | None, int]) -> Cases:
        entries = []
        for number, (subject, (word, views)) in enumerate(subjects.items()):
            (tmp_path / subject).mkdir(exist_ok=True)
            names = [f"{subject}/{view}.png" for view in range(1 + views)]
            for view, name in enumerate(names):
                Image.new("RGB", (50, 30), (40 * number, 60 * view, 99)).save(tmp_path / name)
            entry = {"image_paths": names[:1], "other_views": names[1:], "class_word": word}
            entries += [entry | {"prompt": f"a {subject} {where}"} for where in ("in the snow", "at night")]
        file = tmp_path / "list.json"
        file.write_text(json.dumps(entries))
        return load_cases(Data(source=str(file)), 100)

    return make
