"""A plain folder of photographs of one subject and its class word, with the built-in prompts of `prompts.py`."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from customized_grpo.data.checks import check_pictures
from customized_grpo.data.copies import without_copies
from customized_grpo.data.findings import Findings
from customized_grpo.data.prompts import TRAINING, VALIDATION
from customized_grpo.data.reading import list_folder
from customized_grpo.data.sample import Sample
from customized_grpo.data.subjects import name_of
from customized_grpo.files.paths import is_folder


def load_photographs(root: Path, class_word: str) -> tuple[list[Sample], list[Sample]]:
    """(training, validation) samples; validation prompts are never trained on, but the subject is the same.

    Each photograph is the reference of one sample per prompt, with all others as its other views. Samples are ordered
    by prompt, then by photograph, so that even the first few show every photograph. Ids: "dog1.jpg/07", and
    "dog1.jpg/v07" for validation.

    class_word  what follows "the" in a prompt: "dog", "wooden toy"

    Warns that a single subject will be overfitted.

    Raises:
        DataError: all problems of the folder at once; every visible file must be a picture.
    """
    contents, findings = list_folder(root), Findings(root)
    folders = [path for path in contents if is_folder(path)]
    for folder in folders:
        findings.add([], f"{folder}: is a folder; for several subjects, use a list, an imagefolder or captions")
    checked = check_pictures(((None, path) for path in contents if path not in folders), findings)
    if not contents:
        findings.add([], "holds no photographs")
    findings.raise_if_any("Keep only photographs of the subject there, or describe the files in a metadata.jsonl.")
    warnings.warn(
        f"one subject alone ({name_of(root)}, photographs: {len(contents)}): the model will overfit to it; "
        "held-out cases have new prompts but the same photographs, and tell nothing about other subjects",
        stacklevel=2,
    )
    training = _samples(root, contents, class_word, TRAINING, "")
    both = without_copies([*training, *_samples(root, contents, class_word, VALIDATION, "v")], checked)
    return both[: len(training)], both[len(training) :]


def _samples(
    root: Path, photographs: Sequence[Path], class_word: str, templates: Sequence[str], mark: str
) -> list[Sample]:
    return [
        Sample(
            id=f"{photograph.name}/{mark}{number:02d}",
            subject=name_of(root),
            prompt=template.format(class_word),
            references=(photograph,),
            other_views=tuple(view for view in photographs if view != photograph),
            class_word=class_word,
        )
        for number, template in enumerate(templates)
        for photograph in photographs
    ]
