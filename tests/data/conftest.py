import os
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest
from PIL import Image

from customized_grpo.data import DataError


@pytest.fixture
def dreambench() -> Path:
    """30 photographed subjects: $CUSTOMIZED_GRPO_DREAMBENCH or shared/dreambench next to the repository."""
    default = Path(__file__).parents[2].parent / "shared" / "dreambench"
    folder = Path(os.environ.get("CUSTOMIZED_GRPO_DREAMBENCH", default))
    if not folder.is_dir():
        pytest.skip("the DreamBench photographs are not on this machine")
    return folder


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Saves pictures of one colour, by default each of its own, below the temporary folder, which it returns."""

    def draw(*names: str, colour: str | None = None) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 3), colour or crc32(name.encode()) & 0xFFFFFF).save(tmp_path / name)
        return tmp_path

    return draw


@pytest.fixture
def problems() -> Callable[..., list[str]]:
    """The problems that a loader reports."""

    def problems(load: Callable[..., object], *arguments: object) -> list[str]:
        with pytest.raises(DataError) as caught:
            load(*arguments)
        return list(caught.value.problems)

    return problems
