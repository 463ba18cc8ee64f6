"""The values of `data.source` and their loaders. A new layout is one file and one line of `SOURCES`.

Other packages register theirs by an entry point (`files/plugins.py`): a function from a folder to its samples.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from customized_grpo.data.captions import has_captions, load_captions
from customized_grpo.data.copies import warn_of_shared
from customized_grpo.data.dreambench import dreambench_cases, dreambench_pairs
from customized_grpo.data.entries import ENDINGS
from customized_grpo.data.findings import DataError, show
from customized_grpo.data.lists import METADATA, load_imagefolder, load_list, load_metadata, metadata_of
from customized_grpo.data.photographs import load_photographs
from customized_grpo.data.reading import list_folder
from customized_grpo.data.sample import Sample
from customized_grpo.data.splits import split_by_subject
from customized_grpo.data.subjects import warn_of_names
from customized_grpo.data.subjects200k import load_subjects200k
from customized_grpo.data.syncd import load_syncd
from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN
from customized_grpo.files import plugins
from customized_grpo.files.paths import as_stored, display, is_file, is_folder
from customized_grpo.files.text import flaw_of, is_utf8


@dataclass(frozen=True)
class Layout:
    """How a named source is loaded: all samples of a folder, split by subject afterwards."""

    load: Callable[[Path], list[Sample]]
    class_word: bool = False  # whether data.class_word may be set


# In addition: "photographs", which is split by prompt and not by subject, and paths of lists and folders.
SOURCES = {
    "dreambench": Layout(dreambench_cases),
    "dreambench_pairs": Layout(dreambench_pairs),
    "syncd": Layout(load_syncd),
    "subjects200k": Layout(load_subjects200k),
    "imagefolder": Layout(load_imagefolder, class_word=True),
    "captions": Layout(load_captions, class_word=True),
}
PHOTOGRAPHS = "photographs"
NAMES = (*BUILT_IN, *SOURCES, PHOTOGRAPHS)


def contradictions(source: str, root: str | Path | None, class_word: str | None) -> Iterator[str]:
    """Settings that contradict each other, whatever the files hold: one line each, with the way out."""
    if problem := plugins.double(plugins.SOURCES, source, NAMES):
        yield f"data.source: {problem}"
    registered = source in plugins.names(plugins.SOURCES)
    for name, path in (("source", source), ("root", root)):
        if path is not None and not is_utf8(str(path)):
            yield f"data.{name}: the name {display(path)} is not UTF-8; give the file or folder another one"
    if (registered or source in (*SOURCES, PHOTOGRAPHS)) and root is None:
        yield f"data.root: data.source={source} needs the folder of its files; add data.root=path/to/{source}"
    if class_word is not None and not class_word.strip():
        yield f"data.class_word: {class_word!r} is empty; set for instance data.class_word=dog"
    if class_word is not None and (flaw := flaw_of(class_word)):
        yield f"data.class_word: {show(class_word)} {flaw}"
    has_class_words = registered or source in BUILT_IN or (source in SOURCES and not SOURCES[source].class_word)
    if class_word is not None and has_class_words:
        yield f"data.class_word: data.source={source} has class words of its own; remove {class_word!r}"
    if source == PHOTOGRAPHS and class_word is None:
        yield "data.class_word: photographs need a word for their subject; add for instance data.class_word=dog"


def unread_root(source: str, root: str | Path | None) -> str | None:
    """What to tell of a root that a built-in world would not read; None if there is none."""
    if root is None or source not in BUILT_IN:
        return None
    return f"data.source={source} draws its samples: data.root={root} has no effect; name the data with data.source"


def load_data(
    source: str, *, root: Path | None, class_word: str | None, held_out_share: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """(train, held_out) of a source with files, before any truncation, split by subject (`split_by_subject`).

    source          a key of `SOURCES`; "photographs"; or the path of a .json or .jsonl list, of a metadata.csv, of a
                    folder with a metadata.jsonl or metadata.csv, of one with captions, or of one with photographs of
                    one subject
    root            the folder of a named source; the folder that a list's paths start from, by default its own
    class_word      the class word of photographs, or of the samples of a list that has none
    held_out_share  share of the subjects, in [0, 1); for photographs, 0 drops the validation prompts and any other
                    value holds all of them out

    Raises:
        DataError: all problems of the files at once.
        UsageError: settings that contradict each other or the files.
    """
    if problems := list(contradictions(source, root, class_word)):
        raise UsageError("\n".join(problems))
    if source in BUILT_IN:
        raise ValueError("critters are drawn, not read: see customized_grpo.critters.samples.draw_samples")
    path, root = as_stored(Path(source)), None if root is None else as_stored(root)
    if source == PHOTOGRAPHS and root is not None:
        return _photographs(root, class_word, held_out_share)
    if source in SOURCES and root is not None:
        samples = SOURCES[source].load(root)
    elif root is not None and source in plugins.names(plugins.SOURCES):
        samples = _of_package(source, root)
    elif not is_folder(path):
        samples = _listed(path, root)
    else:
        _refuse_root(path, root)
        captions = has_captions(path)
        if not metadata_of(path) and not captions:
            return _photographs(path, class_word, held_out_share)
        samples = _described(path, captions)
    train, held_out = split_by_subject(_with_class_word(samples, source, class_word), held_out_share, seed)
    warn_of_shared(train, held_out)
    warn_of_names({sample.subject for sample in samples})
    return train, held_out


def _of_package(source: str, root: Path) -> list[Sample]:
    """The samples that another package reads. Raises PluginError if it returns anything else."""
    read = plugins.load(plugins.SOURCES, source, callable, "a function from a folder to a list of samples")
    samples = list(read(root))
    if not all(isinstance(sample, Sample) for sample in samples):
        raise plugins.PluginError(f"the data source {source!r} returned something else than samples for {root}")
    if repeated := [name for name, times in Counter(sample.id for sample in samples).items() if times > 1]:
        raise plugins.PluginError(f"the data source {source!r} has the id {repeated[0]!r} twice in {root}")
    return samples


def _listed(path: Path, root: Path | None) -> list[Sample]:
    if path.name in METADATA:
        return load_metadata(path, root)
    if is_file(path) or path.suffix.lower() in ENDINGS:
        return load_list(path, root)
    known = ", ".join([*NAMES, *plugins.names(plugins.SOURCES)])
    remedy = f"data.source is one of {known}, a .json or .jsonl list, a metadata.csv, or a folder."
    raise DataError(path, ["not the name of a source, and no such file or folder"], remedy)


def _refuse_root(folder: Path, root: Path | None) -> None:
    if root is not None:
        raise UsageError(
            f"data.root: {root} has no effect, because data.source is already the folder {folder}; remove one of them"
        )


def _described(folder: Path, captions: bool) -> list[Sample]:
    """The samples of a folder with a metadata file, with captions in text files, or with both."""
    files = metadata_of(folder)
    if files and captions:
        warnings.warn(
            f"{display(files[0])} describes the pictures, so the text files beside them are not read; "
            f"data.source=captions data.root={display(folder)} reads these",
            stacklevel=3,
        )
    return load_imagefolder(folder) if files else load_captions(folder)


def _photographs(folder: Path, class_word: str | None, held_out_share: float) -> tuple[list[Sample], list[Sample]]:
    if class_word is None:
        _refuse_outer(folder)
        raise UsageError(
            f"data.class_word: {folder} is a folder without {METADATA[0]} or captions; name the subject of its "
            "photographs, for instance data.class_word=dog"
        )
    train, validation = load_photographs(folder, class_word)
    return train, validation if held_out_share else []


def _refuse_outer(folder: Path) -> None:
    """Refuse a folder whose data are one folder deeper, or in tables."""
    contents = list_folder(folder)
    if tables := [path for path in contents if path.suffix == ".parquet"]:
        raise UsageError(
            f"data.source: {folder} holds Parquet tables ({display(tables[0].name)}); data.source=subjects200k reads "
            f"those of Subjects200K, others have to be saved as pictures and a {METADATA[0]}"
        )
    for inner in filter(is_folder, contents):
        if metadata_of(inner) or has_captions(inner):
            raise UsageError(
                f"data.source: {folder} has neither {METADATA[0]} nor captions, but its folder {inner.name} has; "
                f"name {inner}"
            )


def _with_class_word(samples: list[Sample], source: str, class_word: str | None) -> list[Sample]:
    if class_word is None:
        return samples
    own = [sample for sample in samples if sample.class_word is not None]
    if own:
        raise UsageError(
            f"data.class_word: {len(own)} of {len(samples)} samples of {source} have a class_word of their own, the "
            f"first {own[0].class_word!r}; remove {class_word!r} or theirs"
        )
    return [replace(sample, class_word=class_word) for sample in samples]
