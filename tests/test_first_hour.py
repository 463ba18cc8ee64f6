"""The notebook in examples/: what is stored in it, and a run from top to bottom."""

import base64
import json
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from first_hour import NOTEBOOK, executed, pictures, printed


def check(notebook: Any, gain: float) -> None:
    """Whether its figures are sane, joint success has risen by as much, and its pictures show something."""
    conflict = int(re.findall(r"conflict: (\d+)%", printed(notebook))[0])
    assert 15 <= conflict <= 75  # independent rewards would give 50
    assert "[32, 12, 9], groups x pictures x steps" in printed(notebook)
    (before, after) = re.findall(r"both right on 96 held-out cases: (\S+) before, (\S+) after", printed(notebook))[0]
    assert 0.15 <= float(before) <= 0.45
    assert float(after) >= float(before) + gain
    shown = [Image.open(BytesIO(base64.b64decode(png))).convert("RGB") for png in pictures(notebook)]
    assert len(shown) == 7
    assert all(np.asarray(picture).std() > 10 for picture in shown)


def test_the_stored_notebook_shows_a_run_of_its_own_cells():
    assert NOTEBOOK.stat().st_size < 1_000_000
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)], (
        "python tests/first_hour.py --write"
    )
    assert {output["output_type"] for cell in code for output in cell["outputs"]} == {"display_data", "stream"}
    for cell in code:
        assert len(cell["source"]) <= 30
        for output in cell["outputs"]:
            output["text"] = "".join(output.get("text", ()))  # stored as lines
            output.get("data", {}).update({kind: "".join(data) for kind, data in output.get("data", {}).items()})
    check(notebook, gain=0.3)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom():
    pytest.importorskip("nbclient", reason="needs the extra notebook, which make test-all installs")
    check(executed(updates=10), gain=0.05)  # half of them: it takes minutes
