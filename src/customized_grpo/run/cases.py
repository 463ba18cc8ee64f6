"""Pictures of cases as files: in a run's images/, and wherever else cases are saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from customized_grpo.files.durable import make_folder, write_text
from customized_grpo.files.pictures import Shown, save_png
from customized_grpo.run.logs import as_json

CASES = "cases.json"
REFERENCE_SIDE = 512  # largest side, in pixels, of saved references


def keep_reference(reference: Image.Image, file: Path) -> None:
    """Save a reference for people to look at; a photograph is made smaller. Raises SavingError."""
    small = reference.copy()
    small.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE))
    save_png(small, file)


def keep_cases(images: Path, name: str, cases: Sequence[Shown], *, replace_references: bool = False) -> None:
    """Save the cases' pictures in `images`/`name`/, and their references in `images`, where all names share them.

    replace_references  write references that are there already anew: they may be those of other cases

    `images`/`name`/cases.json lists them: sample, subject, prompt, scores (null: could not be scored), and the two
    files relative to `images`. Raises SavingError.
    """
    make_folder(images / name)
    rows = []
    for number, case in enumerate(cases):
        reference, picture = f"reference-{number:02d}.png", f"{name}/{number:02d}.png"
        if replace_references or not (images / reference).exists():
            keep_reference(case.reference, images / reference)
        save_png(case.picture, images / picture)
        about = {"sample": case.sample, "subject": case.subject, "prompt": case.prompt}
        rows.append(as_json({**about, "reference": reference, "picture": picture, "scores": case.scores}))
    write_text(images / name / CASES, json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
