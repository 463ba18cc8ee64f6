"""Data sets on which rewards are checked and models measured, and a policy that is probed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customized_grpo.config import load_config
from customized_grpo.data.dreambench import REFERENCES
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.training.assemble import assemble
from known_cases import critters, photographs

__all__ = ["critters", "photographs"]

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


@pytest.fixture
def write_list(tmp_path: Path) -> Callable[..., Path]:
    """A list of noise pictures, two prompts per subject."""

    def write(subjects: int = 4) -> Path:
        rng, entries = np.random.default_rng(0), []
        for subject in range(subjects):
            name = f"s{subject}.png"
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / name)
            entries += [{"prompt": f"a thing {n}", "image_paths": [name], "subject": f"s{subject}"} for n in range(2)]
        (tmp_path / "list.json").write_text(json.dumps(entries))
        return tmp_path / "list.json"

    return write


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one update that sampled in four steps without guidance."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assemble(load_config(TINY, [f"output={folder}", "optimizer.lr=0.001", "model.guidance=0"])).train()
    return folder


@pytest.fixture(scope="session")
def dreambench() -> Path:
    """30 photographed subjects: $CUSTOMIZED_GRPO_DREAMBENCH or ../shared/dreambench of the repository."""
    sibling = Path(__file__).parents[3] / "shared" / "dreambench"
    folder = Path(os.environ.get("CUSTOMIZED_GRPO_DREAMBENCH", sibling))
    if not folder.is_dir():
        pytest.skip("no DreamBench photographs here")
    return folder


@pytest.fixture(scope="session")
def small_dreambench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DreamBench's layout with 30 subjects of three tiny photographs (noise) each, and 2 x 25 prompts."""
    root, rng = tmp_path_factory.mktemp("dreambench"), np.random.default_rng(0)
    for subject, reference in REFERENCES.items():
        (root / subject).mkdir()
        for name in (reference, "x.jpg", "y.jpg"):
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(root / subject / name)
    prompts = [f"'a {{0}} {{1}} in place {n}'.format(unique_token, class_token)," for n in range(25)]
    block = "\n".join(["prompt_list = [", *prompts[:-1], prompts[-1].rstrip(","), "]"])
    classes = "\n".join(f"{subject},toy" for subject in REFERENCES)
    text = f"Classes\n\nsubject_name,class\n{classes}\n\nPrompts\n\nObject Prompts\n\n{block}\n\n"
    (root / "prompts_and_classes.txt").write_text(f"{text}Live Subject Prompts\n\n{block}\n")
    return root


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that `Path.read_bytes` reads, in order, while the test runs."""
    names, read_bytes = [], Path.read_bytes

    def observed(path: Path) -> bytes:
        names.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", observed)
    return names


@pytest.fixture
def built_in(make_policy: Callable[..., FluxKontextPolicy]) -> FluxKontextPolicy:
    """The generator with an adapter that does nothing yet."""
    return make_policy(rank=2)
