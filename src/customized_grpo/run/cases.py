"""Pictures of cases as files: in a run's images/, and wherever else cases are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from customized_grpo.files.durable import make_folder, write_text
from customized_grpo.files.pictures import Shown, save_png
from customized_grpo.run.logs import as_json

CASES = "cases.json"
REFERENCE_SIDE = 512  # pixels, at most, of the references that are kept beside the pictures


def keep_reference(reference: Image.Image, file: Path) -> None:
    """Save a reference for people to look at, made smaller where it is a photograph."""
    small = reference.copy()
    small.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE))
    save_png(small, file)


def keep_cases(images: Path, name: str, shown: Sequence[Shown]) -> None:
    """Write the cases' pictures to `images`/`name`/, their references, once for all names, to `images` itself.

    `images`/`name`/cases.json lists them: sample, subject, prompt, scores (null: could not be scored), and the two
    files relative to `images`.
    """
    make_folder(images / name)
    rows = []
    for number, each in enumerate(shown):
        reference, picture = f"reference-{number:02d}.png", f"{name}/{number:02d}.png"
        if not (images / reference).exists():
            keep_reference(each.reference, images / reference)
        save_png(each.picture, images / picture)
        about = {"sample": each.sample, "subject": each.subject, "prompt": each.prompt}
        rows.append(as_json({**about, "reference": reference, "picture": picture, "scores": each.scores}))
    write_text(images / name / CASES, json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
