"""Lists of samples in JSON and JSONL, checked as a whole, and their division by subject."""

import hashlib
import json
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from customized_grpo.data.images import check_image
from customized_grpo.data.sample import Sample

_FIELDS = ("prompt", "image_paths", "image_path", "id", "subject", "other_views", "mask", "class_word")
_SHOWN = 20  # problems in the message of a DataError; `problems` has all


class DataError(ValueError):
    """A list that cannot be used; `problems` has one line for each thing wrong with it."""

    def __init__(self, path: Path, problems: Sequence[str], remedy: str) -> None:
        lines = [f"  {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{path} cannot be used, {count}:", *lines, remedy]))
        self.problems = tuple(problems)


def load_list(path: Path | str, root: Path | str | None = None) -> list[Sample]:
    """The samples of a list: `.json` (one array of objects) or `.jsonl` (one object per line), in UTF-8.

    An object has `prompt` and `image_paths` (or `image_path`), and may have `id`, `subject`, `other_views`,
    `mask` and `class_word`; null means absent, any other field goes to `extra`. By default the id is the
    position counted from 0 ("00012"), the subject the name of the folder that holds the first picture.

    Pictures are looked up under `root`, by default the folder of the list. If they are not there as listed,
    the leading folders that all paths share are dropped one by one until every picture is found. DreamBench
    lists "dreambooth/dataset/backpack/02.jpg"; a root that holds "backpack/02.jpg" will do.

    Raises:
        DataError: everything wrong with the list at once: syntax, types, empty prompts, missing or unreadable
            pictures, duplicate ids.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    findings = _Findings(path)
    drafts = [
        draft
        for position, (number, item) in enumerate(_items(path, findings))
        if (draft := _draft(number, f"{position:05d}", item, findings))
    ]
    if not drafts and not findings.found:
        raise DataError(path, ["holds no samples"], "Write one object per sample.")
    files, dropped = _locate({name for draft in drafts for name in draft.names}, root)
    _check_ids(drafts, findings)
    _check_files(drafts, files, findings)
    findings.raise_if_any(root, dropped)
    return [draft.sample(files) for draft in drafts]


def split_by_subject(samples: Iterable[Sample], held_out_share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(train, held_out): no subject is in both, and each part keeps the order of the list.

    Subjects are ranked by a hash of subject and seed; the first round(share * subjects) of them, at least one
    and never all, are held out. So the split depends on the set of subjects alone, not on the order of the
    list or on how many prompts each has, and a larger share holds out a superset.

    If all samples are of one subject, its prompts are divided in the same way, and if they share the prompt
    too, the samples; a warning says so. One sample alone stays in training; a share of 0 holds out nothing.

    Raises:
        ValueError: a share outside [0, 1), or ids that repeat.
    """
    samples = list(samples)
    if not 0 <= held_out_share < 1:
        raise ValueError(f"held_out_share = {held_out_share} must be in [0, 1); .1 holds out a tenth")
    if len({sample.id for sample in samples}) < len(samples):
        raise ValueError("samples to split share an id; give each its own")
    if held_out_share == 0 or len(samples) < 2:
        return samples, []
    levels = ("subject", "prompt", "id")
    level = next(level for level in levels if len({getattr(sample, level) for sample in samples}) > 1)
    if level != "subject":
        warnings.warn(
            f"all {len(samples)} samples are of one subject ({samples[0].subject}): held out by {level} "
            "instead, which says nothing about new subjects; if there are several, name them in the list",
            stacklevel=2,
        )
    names = {getattr(sample, level) for sample in samples}
    ranked = sorted(names, key=lambda name: _hash(f"{seed}:{name}"))
    count = min(max(1, math.floor(held_out_share * len(names) + 0.5)), len(names) - 1)
    chosen = set(ranked[:count])
    train = [sample for sample in samples if getattr(sample, level) not in chosen]
    return train, [sample for sample in samples if getattr(sample, level) in chosen]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class _Findings:
    """What is wrong with the entries of one list, each with its lines (of an array: entries), from 1."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[tuple[list[int], str]] = []

    def add(self, numbers: list[int], problem: str) -> None:
        self.found.append((numbers, problem))

    def raise_if_any(self, root: Path, dropped: str) -> None:
        """Raises: DataError, in the order of the list."""
        if self.found:
            problems = [self._line(*each) for each in sorted(self.found, key=lambda each: each[0][0])]
            looked = f'{root}, without the leading "{dropped}"' if dropped else str(root)
            remedy = (
                'Each sample needs "prompt" and "image_paths". Correct the list, or give another root for '
                f"its pictures (looked up in {looked})."
            )
            raise DataError(self.path, problems, remedy)

    def _line(self, numbers: list[int], problem: str) -> str:
        one, several = ("line", "lines") if _by_line(self.path) else ("entry", "entries")
        rest = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
        shown = ", ".join(map(str, numbers[:3]))
        return f"{self.path.name}, {several if len(numbers) > 1 else one} {shown}{rest}: {problem}"


@dataclass(frozen=True)
class _Draft:
    """One entry of a list, as far as it is right; paths are still as listed."""

    number: int
    id: str
    subject: str | None
    prompt: str
    references: list[str]
    other_views: list[str]
    mask: str | None
    class_word: str | None
    extra: dict[str, Any]

    @property
    def names(self) -> list[str]:
        return [*self.references, *self.other_views, *([] if self.mask is None else [self.mask])]

    def sample(self, files: dict[str, Path]) -> Sample:
        return Sample(
            id=self.id,
            subject=self.subject or _folder_name(files[self.references[0]]),
            prompt=self.prompt,
            references=tuple(files[name] for name in self.references),
            other_views=tuple(files[name] for name in self.other_views),
            mask=None if self.mask is None else files[self.mask],
            class_word=self.class_word,
            extra=self.extra,
        )


def _folder_name(file: Path) -> str:
    folder = file.parent.absolute()
    return (folder.resolve() if folder.name == ".." else folder).name


def _by_line(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _items(path: Path, findings: _Findings) -> Iterator[tuple[int, Any]]:
    """(line or entry number, value) of each entry. Raises: DataError, if the file as a whole is no list."""
    if not _by_line(path) and path.suffix.lower() != ".json":
        remedy = "Call it .json for one array of objects, .jsonl for one object per line."
        raise DataError(path, [f"unknown ending {path.suffix!r}"], remedy)
    if not path.is_file():
        raise DataError(path, ["no such file"], "Check the path.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(path, [f"line {line}: not UTF-8"], "Save the list as UTF-8.") from error
    yield from _items_of_lines(text, findings) if _by_line(path) else _items_of_array(text, path)


def _items_of_lines(text: str, findings: _Findings) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() also breaks inside JSON strings
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            findings.add([number], f"not JSON: {error.msg}, column {error.colno}")
            continue
        yield number, item


def _items_of_array(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    remedy = "A .json list is one array of objects; call a list with one object per line .jsonl."
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"line {error.lineno}: not JSON: {error.msg}, column {error.colno}"
        raise DataError(path, [problem], remedy) from error
    if not isinstance(items, list):
        raise DataError(path, [f"must be an array, not {_show(items)}"], remedy)
    yield from enumerate(items, start=1)


class _Entry:
    """Reads the fields of one entry; null is absent, and so is what is wrong, which goes to the findings."""

    def __init__(self, number: int, given: dict[str, Any], findings: _Findings) -> None:
        self.number = number
        self.fields = {name: value for name, value in given.items() if value is not None}
        self.findings = findings

    def say(self, problem: str) -> None:
        self.findings.add([self.number], problem)

    def text(self, name: str) -> str | None:
        value = self.fields.get(name)
        if value is None or (isinstance(value, str) and value.strip()):
            return value
        self.say(f"{name} must be a text and not empty, not {_show(value)}")
        return None

    def required_text(self, name: str) -> str:
        if name not in self.fields:
            self.say(f"has no {name} (fields: {', '.join(self.fields) or 'none'})")
        return self.text(name) or ""

    def paths(self, name: str) -> list[str]:
        value = self.fields.get(name, [])
        if isinstance(value, list) and all(isinstance(each, str) and each.strip() for each in value):
            return value
        self.say(f"{name} must be a list of paths, not {_show(value)}")
        return []

    def references(self) -> list[str]:
        if "image_path" in self.fields and "image_paths" in self.fields:
            self.say("has both image_path and image_paths; keep one")
        if "image_path" in self.fields:
            single = self.text("image_path")
            return [] if single is None else [single]
        if self.fields.get("image_paths") in (None, []):
            self.say("has no image_paths; list at least one picture of the subject")
        return self.paths("image_paths")


def _draft(number: int, default_id: str, item: object, findings: _Findings) -> _Draft | None:
    if not isinstance(item, dict):
        findings.add([number], f"must be an object with prompt and image_paths, not {_show(item)}")
        return None
    entry = _Entry(number, item, findings)
    return _Draft(
        number=number,
        id=entry.text("id") or default_id,
        subject=entry.text("subject"),
        prompt=entry.required_text("prompt"),
        references=entry.references(),
        other_views=entry.paths("other_views"),
        mask=entry.text("mask"),
        class_word=entry.text("class_word"),
        extra={name: value for name, value in item.items() if name not in _FIELDS},
    )


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _locate(names: set[str], root: Path) -> tuple[dict[str, Path], str]:
    """The file of each listed path under root, and the shared leading folders that had to be dropped."""
    relative = [PurePath(name) for name in names if not PurePath(name).is_absolute()]
    shared = PurePath(os.path.commonpath([path.parent for path in relative]) if relative else "").parts
    found: list[int] = []
    for count in range(len(shared) + 1):
        found.append(sum(_is_file(root.joinpath(*path.parts[count:])) for path in relative))
        if found[-1] == len(relative):
            break
    dropped = found.index(max(found))  # where none finds them all: the nearest, for the findings
    files = {
        name: Path(name) if PurePath(name).is_absolute() else root.joinpath(*PurePath(name).parts[dropped:])
        for name in names
    }
    return files, "/".join(shared[:dropped])


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a name too long to be a file's


def _check_ids(drafts: list[_Draft], findings: _Findings) -> None:
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for draft in drafts:
        numbers[draft.id].append(draft.number)
    for name, met in numbers.items():
        if len(met) > 1:
            findings.add(met, f"id {_show(name)} is used more than once; groups are told apart by it")


def _check_files(drafts: list[_Draft], files: dict[str, Path], findings: _Findings) -> None:
    """Opens each distinct file once, however many samples use it."""
    numbers: defaultdict[Path, list[int]] = defaultdict(list)
    for draft in drafts:
        for file in dict.fromkeys(files[name] for name in draft.names):
            numbers[file].append(draft.number)
    for file, met in numbers.items():
        try:
            check_image(file)
        except ValueError as error:
            findings.add(met, str(error))
