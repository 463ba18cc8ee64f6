"""Runs examples/first_hour.ipynb from top to bottom. `python tests/first_hour.py --write` keeps what its cells show.

Needs the extra `notebook`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_hour.ipynb"


def executed(updates: int | None = None) -> Any:
    """The notebook after a run in a new kernel. An error in a cell is raised. Streams to stderr are left out.

    updates  in place of those that the notebook trains
    """
    import nbformat  # pyright: ignore[reportMissingImports]
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if updates is not None:
        (training,) = [cell for cell in notebook.cells if "UPDATES = 20" in cell.source]
        training.source = training.source.replace("UPDATES = 20", f"UPDATES = {updates}")
    NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # progress bars
    return notebook


def pictures(notebook: Any) -> list[str]:
    """The PNG pictures that the cells show, in base64."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def printed(notebook: Any) -> str:
    """What the cells print."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


if __name__ == "__main__":
    import nbformat  # pyright: ignore[reportMissingImports]

    result = executed()
    if sys.argv[1:] == ["--write"]:
        nbformat.write(result, NOTEBOOK)
    print(printed(result))
