"""Paths that cannot be written are refused in one line, before anything is computed."""

import errno
import os
from pathlib import Path

import pytest

from customized_grpo.errors import UsageError
from customized_grpo.files.durable import SavingError, append_text, check_file, check_folder, make_folder, write_text

REFUSED = {
    "a file": ("file", "{file} is a file"),
    "within a file": ("file/new", "{file} is a file"),
    "a long name": ("x" * 300, "File name too long"),
    "a long path": ("x/" * 3000 + "x", "File name too long"),
    "a NUL character": ("a\0b", "embedded null byte"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_cannot_be_made(kind: str, tmp_path: Path):
    name, problem = REFUSED[kind]
    (tmp_path / "file").touch()
    path = tmp_path / name
    with pytest.raises(UsageError) as refused:
        check_folder(path, "--work")
    assert str(refused.value) == f"--work {path}: {problem.format(file=tmp_path / 'file')}; name another folder"


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind != "a file"])
def test_a_file_that_cannot_be_written(kind: str, tmp_path: Path):
    name, problem = REFUSED[kind]
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=rf"^--output .*: {problem.format(file=tmp_path / 'file')}; name another f"):
        check_file(tmp_path / name)


def test_a_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)  # root may write anywhere
    for check in (check_folder, check_file):
        with pytest.raises(UsageError, match=rf"^--output .*: {tmp_path} is not writable; name another folder$"):
            check(tmp_path / "new" / "report.html")


def test_a_folder_where_a_file_is_needed(tmp_path: Path):
    with pytest.raises(UsageError, match=rf"is a folder; name the file to write, such as {tmp_path / 'report.html'}"):
        check_file(tmp_path)


def test_usable_paths_are_not_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "folder")
    check_file(tmp_path / "file")
    check_file(tmp_path / "new" / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "within"
    for write in (lambda: write_text(path, ""), lambda: append_text(path, ""), lambda: make_folder(path)):
        with pytest.raises(SavingError) as failed:
            write()
        assert str(failed.value) == f"could not write {path}: Not a directory"
        assert failed.value.reason == os.strerror(errno.ENOTDIR)
