"""A plain folder of photographs of one subject and its class word: the prompts are ours (see `prompts.py`)."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from customized_grpo.data.findings import DataError, Findings, check_pictures
from customized_grpo.data.images import pictures_in
from customized_grpo.data.prompts import TRAINING, VALIDATION
from customized_grpo.data.sample import Sample


def load_photographs(root: Path, class_word: str) -> tuple[list[Sample], list[Sample]]:
    """(training, validation) samples; validation prompts are never trained on, but the subject is the same.

    Every photograph is the reference in turn, the others are its other views. Prompts turn slowly, photographs fast,
    so any head of the samples shows all photographs. Ids: "dog1.jpg/07" and, of validation, "dog1.jpg/v07".

    class_word  as it stands in a prompt after "the": "dog", "wooden toy"

    Warns that one subject alone will be overfitted.

    Raises:
        DataError: everything wrong with the folder at once; whatever lies there must be a picture.
    """
    if not root.is_dir():
        raise DataError(root, ["no such folder"], "Check the path.")
    found, findings = pictures_in(root), Findings(root)
    folders = [path for path in found if path.is_dir()]
    for folder in folders:
        findings.add([], f"{folder}: is a folder; several subjects go in a list or an imagefolder")
    check_pictures(((None, path) for path in found if path not in folders), findings)
    if not found:
        findings.add([], "holds no photographs")
    findings.raise_if_any("Leave only photographs of the subject there, or describe them in a metadata.jsonl.")
    warnings.warn(
        f"one subject alone ({root.resolve().name}, photographs: {len(found)}): the model will overfit to it; "
        "held-out cases have prompts of their own but the same photographs, and say nothing about other subjects",
        stacklevel=2,
    )
    return _samples(root, found, class_word, TRAINING, ""), _samples(root, found, class_word, VALIDATION, "v")


def _samples(
    root: Path, photographs: Sequence[Path], class_word: str, templates: Sequence[str], mark: str
) -> list[Sample]:
    return [
        Sample(
            id=f"{photograph.name}/{mark}{number:02d}",
            subject=root.resolve().name,
            prompt=template.format(class_word),
            references=(photograph,),
            other_views=tuple(other for other in photographs if other != photograph),
            class_word=class_word,
        )
        for number, template in enumerate(templates)
        for photograph in photographs
    ]
