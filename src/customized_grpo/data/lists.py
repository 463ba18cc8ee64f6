"""Lists of samples in JSON and JSONL, and imagefolders, checked as a whole."""

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from customized_grpo.data.checks import check_ids, check_inside, check_pictures
from customized_grpo.data.copies import warn_of_copies
from customized_grpo.data.entries import Entry, read_entries
from customized_grpo.data.findings import DataError, Findings, Place, show
from customized_grpo.data.masks import check_masks
from customized_grpo.data.reading import list_folder
from customized_grpo.data.sample import Sample
from customized_grpo.data.subjects import Pictures, folder_of, subjects_of
from customized_grpo.files.paths import as_stored, display, inside, is_file

_FIELDS = ("prompt", "image_paths", "image_path", "id", "subject", "other_views", "mask", "class_word")


def load_list(
    path: Path | str,
    root: Path | str | None = None,
    *,
    aliases: Mapping[str, str] | None = None,
    reference_count: int | None = None,
) -> list[Sample]:
    """The samples of a list: `.json` (one array of objects) or `.jsonl` (one object per line), in UTF-8.

    An object has `prompt` and `image_paths` (or `image_path`), and may have `id`, `subject`, `other_views`,
    `mask` and `class_word`; null means absent, any other field goes to `extra`. By default the id is the
    position counted from 0 ("00012") and the subject is the folder of the first picture (see `subjects_of`).

    Pictures are looked up under `root`, by default the folder of the list. If they are not found as listed,
    the leading folders that all paths share are dropped one by one until every picture is found: DreamBench
    lists "dreambooth/dataset/backpack/02.jpg", and a root that holds "backpack/02.jpg" will do.

    A path that leads out of `root`, absolute or by "..", is refused: the author of a list must not choose which
    files are read here (see `inside`).

    aliases          other names of fields, ours -> the list's: {"image_path": "file_name"}
    reference_count  the number of references that every sample must have; None: one or more

    Raises:
        DataError: all problems of the list at once: syntax, types, empty prompts, missing or unreadable
            pictures, duplicate ids.
    """
    path = Path(path)
    own_folder, root = root is None, path.parent if root is None else Path(root)
    aliases = aliases or {}
    findings = Findings(path)
    drafts = [
        draft
        for position, (place, value) in enumerate(read_entries(path, findings))
        if (draft := _draft(place, f"{position:05d}", value, findings, aliases, reference_count))
    ]
    if not drafts and not findings:
        raise DataError(path, ["holds no samples"], "Write one object per sample.")
    files, dropped = _locate({name for draft in drafts for name in draft.names}, root, upwards=not own_folder)
    check_ids(((draft.place, draft.id) for draft in drafts), findings)
    uses = [(draft.place, name) for draft in drafts for name in draft.names]
    check_inside(((place, name) for place, name in uses if name not in files), root, findings)
    pictures = [(draft.place, files[name]) for draft in drafts for name in draft.pictures if name in files]
    checked = check_pictures(pictures, findings)
    inside_root = [draft for draft in drafts if draft.references and all(name in files for name in draft.names)]
    masks = [(draft.place, files[draft.references[0]], files[draft.mask]) for draft in inside_root if draft.mask]
    check_masks(masks, checked, findings)
    unnamed = [draft.located(files) for draft in inside_root if draft.subject is None]
    subjects = subjects_of(unnamed, root, findings)
    searched = display(root) + (f', without the leading "{dropped}"' if dropped else "")
    needed = f'"{aliases.get("prompt", "prompt")}" and "{aliases.get("image_path", "image_paths")}"'
    findings.raise_if_any(
        f"Each sample needs {needed}. Correct the list, or set another root for its pictures (searched in {searched})."
    )
    _warn_of_reading(path, searched if dropped else None, {name for draft in drafts for name in draft.extra}, aliases)
    samples = [draft.sample(files, subjects) for draft in drafts]
    warn_of_copies(samples, checked)
    return samples


def _warn_of_reading(path: Path, searched: str | None, names: Iterable[str], aliases: Mapping[str, str]) -> None:
    """Warn of paths without their leading folders, and of fields that are nearly called as those that are read."""
    if searched is not None:
        warnings.warn(f"the pictures of {display(path)} were found in {searched}", stacklevel=3)
    read = {_plain(name): name for name in (*_FIELDS, *aliases.values())}
    if unread := {name: read[_plain(name)] for name in sorted(names) if _plain(name) in read}:
        meant = ", ".join(f"{show(name)} (did you mean {known}?)" for name, known in unread.items())
        warnings.warn(f"fields of {display(path)} that nothing reads: {meant}", stacklevel=3)


def _plain(name: str) -> str:
    return re.sub("[^a-z]", "", name.casefold()).removesuffix("s")


@dataclass(frozen=True)
class _Draft:
    """One entry of a list without its wrong fields; paths are still as listed."""

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
    def pictures(self) -> list[str]:
        return [*self.references, *self.other_views]

    @property
    def names(self) -> list[str]:
        return [*self.pictures, *([] if self.mask is None else [self.mask])]

    def located(self, files: dict[str, Path]) -> Pictures:
        return self.place, [files[name] for name in self.references], [files[name] for name in self.other_views]

    def sample(self, files: dict[str, Path], subjects: dict[Path, str]) -> Sample:
        return Sample(
            id=self.id,
            subject=self.subject or subjects[folder_of(files[self.references[0]])],
            prompt=self.prompt,
            references=tuple(files[name] for name in self.references),
            other_views=tuple(files[name] for name in self.other_views),
            mask=None if self.mask is None else files[self.mask],
            class_word=self.class_word,
            extra=self.extra,
        )


def _draft(
    place: Place,
    default_id: str,
    value: object,
    findings: Findings,
    aliases: Mapping[str, str],
    reference_count: int | None,
) -> _Draft | None:
    if not isinstance(value, dict):
        findings.add([place], f"must be an object with prompt and image_paths, not {show(value)}")
        return None
    entry = Entry(place, value, findings, aliases)
    return _Draft(
        place=place,
        id=entry.text("id") or default_id,
        subject=entry.text("subject"),
        prompt=entry.required_text("prompt"),
        references=_references(entry, reference_count),
        other_views=entry.texts("other_views"),
        mask=entry.text("mask"),
        class_word=entry.text("class_word"),
        extra={name: field for name, field in value.items() if name not in (*_FIELDS, *aliases.values())},
    )


def _references(entry: Entry, reference_count: int | None) -> list[str]:
    single, several = entry.key("image_path"), entry.key("image_paths")
    if "image_path" in entry and "image_paths" in entry:
        entry.report(f"has both {single} and {several}; keep one")
    if "image_path" in entry:
        path = entry.text("image_path")
        paths = [] if path is None else [path]
    else:
        if entry.fields.get(several) in (None, []):
            name = entry.aliases.get("image_path", several)
            entry.report(f"has no {name}; list at least one picture of the subject")
        paths = entry.texts("image_paths")
    if paths and reference_count not in (None, len(paths)):
        entry.report(f"needs {reference_count} references, has {len(paths)}")
    return paths


def _locate(names: set[str], root: Path, *, upwards: bool) -> tuple[dict[str, Path], str]:
    """The file of each listed path under root, and the shared leading folders that had to be dropped.

    A path that leads out of root has no file.

    upwards  whether ".." may be dropped too; not for the list's own folder, where "../a.png" and "a.png" differ
    """
    relative = [PurePath(name) for name in names if not PurePath(name).is_absolute()]
    shared = PurePath(os.path.commonpath([path.parent for path in relative]) if relative else "").parts
    shared = shared if upwards or os.pardir not in shared else ()
    counts: list[int] = []  # files found without the first 0, 1, 2, ... shared folders
    for leading in range(len(shared) + 1):
        files = (inside(PurePath(*path.parts[leading:]), root) for path in relative)
        counts.append(sum(file is not None and is_file(as_stored(file)) for file in files))
        if counts[-1] == len(relative):
            break
    dropped = counts.index(max(counts))  # the best match, for the findings, if no choice finds all files
    located = {}
    for name in names:
        path = PurePath(name)
        file = inside(path if path.is_absolute() else PurePath(*path.parts[dropped:]), root)
        if file is not None:
            located[name] = as_stored(file)
    return located, "/".join(shared[:dropped])


# --- imagefolder -----------------------------------------------------------------------------------------------------

METADATA = ("metadata.jsonl", "metadata.csv")
_SHOWN = 5  # names in a warning


def metadata_of(folder: Path) -> list[Path]:
    """The files that make a folder an imagefolder."""
    return [file for name in METADATA if is_file(file := folder / name)]


def load_imagefolder(root: Path) -> list[Sample]:
    """One sample per line of `metadata.jsonl` or row of `metadata.csv`: `file_name` is the reference, `text` (or
    `prompt`) the prompt; all other fields are those of a list.

    Raises:
        DataError: there is no such file or both, or all its problems at once.
    """
    remedy = f'Write a {METADATA[0]} with a line {{"file_name": ..., "text": ...}} per picture, or a {METADATA[1]}.'
    list_folder(root, remedy)  # raises if root itself is the problem
    files = metadata_of(root)
    if len(files) != 1:
        problem = f"both {' and '.join(METADATA)}; keep one" if files else f"no {' or '.join(METADATA)}"
        raise DataError(root, [problem], remedy)
    samples = load_metadata(files[0], None)
    if left := _unnamed(root, samples):
        names = ", ".join(display(path.relative_to(root)) for path in left[:_SHOWN])
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        warnings.warn(f"pictures that {display(files[0])} does not name are left out: {names}{more}", stacklevel=2)
    return samples


def _unnamed(root: Path, samples: Sequence[Sample]) -> list[Path]:
    """The pictures in a folder and below, by their names' endings, that no sample has."""
    sources = [source for s in samples for source in (*s.references, *s.other_views, s.mask, s.prompt_picture)]
    named = {os.path.normpath(source) for source in sources if isinstance(source, Path)}
    kinds = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in kinds and not path.name.startswith(".") and os.path.normpath(path) not in named
    )


def load_metadata(file: Path, root: Path | None) -> list[Sample]:
    """The samples of an imagefolder's `metadata.jsonl` or `metadata.csv`. Raises DataError."""
    return load_list(file, root, aliases={"image_path": "file_name", "prompt": "text"})
