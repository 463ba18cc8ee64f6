"""`customized-grpo report`: one page from run, evaluation, comparison and demo folders.

The page holds its pictures, style and script, asks nothing of any network and opens with a double click.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from customized_grpo.files.durable import check_file, make_folder, write_text
from customized_grpo.report.cases import ReportError
from customized_grpo.report.folders import distinct, read_parts
from customized_grpo.report.page import render

__all__ = ["ReportError", "write_report"]


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page of these folders to the file `output`, in place of an older one; returns it.

    Raises ReportError for a folder that is none of the four kinds, ValueError for a picture that cannot be read.
    """
    check_file(output)
    try:
        parts = read_parts(folders)
    except (KeyError, TypeError, AttributeError) as error:  # whole JSON and YAML, but of something else
        named = ", ".join(map(str, folders))
        raise ReportError(f"{named}: some file is not as this program writes it ({error!r}); copy it again") from error
    make_folder(output.parent)
    write_text(output, render(", ".join(distinct(list(dict.fromkeys(folders)))), parts))
    return output
