"""`customized-grpo report`: one page from folders of runs, evaluations, comparisons, probes and demos.

The page contains its pictures, style and script, makes no network request and opens with a double click.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from customized_grpo.files.durable import check_file, make_folder, write_text
from customized_grpo.report.folders import distinct_names, read_parts
from customized_grpo.report.formats import ReportError
from customized_grpo.report.page import render

__all__ = ["ReportError", "write_report"]


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page of these folders to the file `output`, replacing an older one; returns the file.

    Raises ReportError for a folder of none of the five kinds, another InputError for a damaged file or picture.
    """
    check_file(output)
    page = render(", ".join(distinct_names(list(dict.fromkeys(folders)))), read_parts(folders))
    make_folder(output.parent)
    write_text(output, page)
    return output
