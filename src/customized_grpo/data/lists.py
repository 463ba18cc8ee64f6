"""Lists of samples in JSON and JSONL, checked as a whole."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from customized_grpo.data.entries import Entry, read_entries
from customized_grpo.data.findings import DataError, Findings, Place, check_ids, check_inside, check_pictures, show
from customized_grpo.data.images import inside
from customized_grpo.data.sample import Sample

_FIELDS = ("prompt", "image_paths", "image_path", "id", "subject", "other_views", "mask", "class_word")


def load_list(
    path: Path | str,
    root: Path | str | None = None,
    *,
    spelled: Mapping[str, str] | None = None,
    pictures: int | None = None,
) -> list[Sample]:
    """The samples of a list: `.json` (one array of objects) or `.jsonl` (one object per line), in UTF-8.

    An object has `prompt` and `image_paths` (or `image_path`), and may have `id`, `subject`, `other_views`,
    `mask` and `class_word`; null means absent, any other field goes to `extra`. By default the id is the
    position counted from 0 ("00012"), the subject the name of the folder that holds the first picture.

    Pictures are looked up under `root`, by default the folder of the list. If they are not there as listed,
    the leading folders that all paths share are dropped one by one until every picture is found. DreamBench
    lists "dreambooth/dataset/backpack/02.jpg"; a root that holds "backpack/02.jpg" will do.

    A path that leads out of `root`, absolute or by "..", is refused: whoever wrote the list does not choose which
    files are read here (see `inside`).

    spelled   other names for fields, ours -> the list's: {"image_path": "file_name"}
    pictures  so many references in every sample; None: one or more

    Raises:
        DataError: everything wrong with the list at once: syntax, types, empty prompts, missing or unreadable
            pictures, duplicate ids.
    """
    path = Path(path)
    own, root = root is None, path.parent if root is None else Path(root)
    spelled = spelled or {}
    findings = Findings(path)
    drafts = [
        draft
        for position, (place, item) in enumerate(read_entries(path, findings))
        if (draft := _draft(place, f"{position:05d}", item, findings, spelled, pictures))
    ]
    if not drafts and not findings:
        raise DataError(path, ["holds no samples"], "Write one object per sample.")
    files, dropped = _locate({name for draft in drafts for name in draft.names}, root, upwards=not own)
    check_ids(((draft.place, draft.id) for draft in drafts), findings)
    uses = [(draft.place, name) for draft in drafts for name in draft.names]
    check_inside(((place, name) for place, name in uses if name not in files), root, findings)
    check_pictures(((place, files[name]) for place, name in uses if name in files), findings)
    looked = f'{root}, without the leading "{dropped}"' if dropped else str(root)
    needed = f'"{spelled.get("prompt", "prompt")}" and "{spelled.get("image_path", "image_paths")}"'
    findings.raise_if_any(
        f"Each sample needs {needed}. Correct the list, or give another root for its pictures (looked up in {looked})."
    )
    return [draft.sample(files) for draft in drafts]


@dataclass(frozen=True)
class _Draft:
    """One entry of a list, as far as it is right; paths are still as listed."""

    place: Place
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


def _draft(
    place: Place,
    default_id: str,
    item: object,
    findings: Findings,
    spelled: Mapping[str, str],
    pictures: int | None,
) -> _Draft | None:
    if not isinstance(item, dict):
        findings.add([place], f"must be an object with prompt and image_paths, not {show(item)}")
        return None
    entry = Entry(place, item, findings, spelled)
    return _Draft(
        place=place,
        id=entry.text("id") or default_id,
        subject=entry.text("subject"),
        prompt=entry.required_text("prompt"),
        references=_references(entry, pictures),
        other_views=entry.texts("other_views"),
        mask=entry.text("mask"),
        class_word=entry.text("class_word"),
        extra={name: value for name, value in item.items() if name not in (*_FIELDS, *spelled.values())},
    )


def _references(entry: Entry, pictures: int | None) -> list[str]:
    single, several = entry.key("image_path"), entry.key("image_paths")
    if "image_path" in entry and "image_paths" in entry:
        entry.say(f"has both {single} and {several}; keep one")
    if "image_path" in entry:
        path = entry.text("image_path")
        paths = [] if path is None else [path]
    else:
        if entry.fields.get(several) in (None, []):
            entry.say(f"has no {entry.spelled.get('image_path', several)}; list at least one picture of the subject")
        paths = entry.texts("image_paths")
    if paths and pictures not in (None, len(paths)):
        entry.say(f"has {len(paths)} references where {pictures} are needed")
    return paths


def _locate(names: set[str], root: Path, *, upwards: bool) -> tuple[dict[str, Path], str]:
    """The file of each listed path under root, and the shared leading folders that had to be dropped.

    A path that leads out of root has no file.

    upwards  ".." may be dropped too: not in the list's own folder, where "../a.png" is another file than "a.png"
    """
    relative = [PurePath(name) for name in names if not PurePath(name).is_absolute()]
    shared = PurePath(os.path.commonpath([path.parent for path in relative]) if relative else "").parts
    shared = shared if upwards or os.pardir not in shared else ()
    found: list[int] = []
    for count in range(len(shared) + 1):
        here = (inside(PurePath(*path.parts[count:]), root) for path in relative)
        found.append(sum(file is not None and _is_file(file) for file in here))
        if found[-1] == len(relative):
            break
    dropped = found.index(max(found))  # where none finds them all: the nearest, for the findings
    files = {}
    for name in names:
        path = PurePath(name)
        file = inside(path if path.is_absolute() else PurePath(*path.parts[dropped:]), root)
        if file is not None:
            files[name] = file
    return files, "/".join(shared[:dropped])


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a name too long to be a file's


# --- imagefolder -----------------------------------------------------------------------------------------------------

METADATA = "metadata.jsonl"


def load_imagefolder(root: Path) -> list[Sample]:
    """A sample per line: `file_name` is the reference, `text` (or `prompt`) the prompt; the rest as in a list.

    Raises:
        DataError: no `metadata.jsonl`, or everything wrong with it at once.
    """
    if not (root / METADATA).is_file():
        raise DataError(root, [f"no {METADATA}"], 'Write one with a line {"file_name": ..., "text": ...} per picture.')
    return load_list(root / METADATA, spelled={"image_path": "file_name", "prompt": "text"})
