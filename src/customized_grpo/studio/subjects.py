"""The subject to generate: chosen from the held-out cases of a run, or uploaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from customized_grpo.critters.samples import asking
from customized_grpo.data import Sample
from customized_grpo.data.findings import show
from customized_grpo.data.images import load_image, open_bytes
from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN
from customized_grpo.files.text import flaw_of
from customized_grpo.inputs import LARGEST_SEED
from customized_grpo.studio.opened import Opened
from customized_grpo.training.evaluation import case_seed
from customized_grpo.training.samples import load_samples, own_samples

CHOICES = 24  # held-out cases to choose from


def choices(opened: Opened) -> list[Sample]:
    """The first held-out cases of a run; without a run, those of the built-in world.

    Raises InputError if the run's data is not here, or has changed.
    """
    config = opened.config
    if config.data.source in BUILT_IN:
        few = {"train_samples": 1, "held_out_samples": min(CHOICES, config.data.held_out_samples)}
        return load_samples(config.model_copy(update={"data": config.data.model_copy(update=few)}))[1]
    config = config.model_copy(update={"output": str(opened.run)})  # the folder may have been moved
    return own_samples(config, resume=True, check=False)[1][:CHOICES]


@dataclass(frozen=True)
class Upload:
    """An uploaded file in memory: a picture that `load_image` reads."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def open_image(self) -> Image.Image:
        return open_bytes(self.data)

    def content(self) -> bytes:
        return self.data


def uploaded(files: Sequence[Path], class_word: str | None) -> Sample:
    """A sample with these pictures as its references, without a prompt. The files are removed once they are read.

    Raises PictureError if one of them cannot be read as a picture.
    """
    uploads = []
    for file in files:
        uploads.append(Upload(file.name, file.read_bytes()))
        file.unlink()
    pictures = tuple(load_image(upload) for upload in uploads)
    digest = hashlib.blake2b(b"".join(upload.data for upload in uploads), digest_size=8).hexdigest()
    return Sample(f"upload-{digest}", "upload", "", pictures, class_word=class_word)


def with_prompt(sample: Sample | None, prompt: str) -> Sample:
    """What is to be generated. Raises UsageError if there is no reference, or nothing to show."""
    if sample is None:
        raise UsageError("no reference; choose a picture of the subject, or drop one")
    if not prompt.strip():
        raise UsageError("the prompt is empty; say what to show")
    if flaw := flaw_of(prompt):
        raise UsageError(f"the prompt {show(prompt)} {flaw}")
    return asking(sample, prompt)


def seed_of(text: str, sample: Sample) -> int:
    """The seed that a user wrote; without one, that of the case in every evaluation. Raises UsageError."""
    if not text.strip():
        return case_seed(sample)
    seed = int(text) if text.strip().isdecimal() else -1
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(
            f"the seed {show(text)} is not a whole number from 0 to {LARGEST_SEED}; leave it empty or change it"
        )
    return seed
