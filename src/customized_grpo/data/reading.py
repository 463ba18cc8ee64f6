"""Text files and folders, read as a whole; whatever prevents that becomes a DataError."""

from pathlib import Path

from customized_grpo.data.findings import DataError
from customized_grpo.files.paths import warn_of_twins, why


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(path, [why(error)], "Check the path.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(path, [f"line {line}: not UTF-8"], "Save it as UTF-8.") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, which end at a line feed, a carriage return or both, and at nothing else: copied text
    has separators such as U+2028 and form feeds inside a line.

    Raises:
        DataError: as for `read_text`.
    """
    return read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def list_folder(folder: Path, remedy: str = "Check the path.") -> list[Path]:
    """All files and folders in a folder, sorted by name, without hidden ones. Endings are ignored, so no file is
    skipped without notice.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (OSError, ValueError) as error:
        raise DataError(folder, [why(error)], remedy) from error
    warn_of_twins(folder, (path.name for path in paths))
    return paths
