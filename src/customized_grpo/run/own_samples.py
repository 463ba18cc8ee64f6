"""The samples that a run trains on and those that it holds out, kept with the run.

Data changes between two starts: a list gets other prompts, photographs are exchanged, another seed or share would
divide it anew. A run keeps the ids and digests of its own samples, goes on with these alone, and is evaluated on those
that it held out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from customized_grpo.data import Sample, load_data
from customized_grpo.data.digests import SampleDigest, digests
from customized_grpo.errors import InputError
from customized_grpo.files.durable import write_text
from customized_grpo.files.json_text import read_json
from customized_grpo.sections import Data

OWN_SAMPLES = "samples.json"  # the file in the folder of a run, and beside each of its adapters
_Part = dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]+ [0-9a-f]+$")]]  # id -> digests of text and pictures


class _Parts(BaseModel):
    train: _Part
    held_out: _Part


RESTORE = "put the data back as it was"  # what a message about changed data advises
_NAMED = 3  # samples that a message names


class DataChangedError(InputError, ValueError):
    """The data is no longer what a run was trained on; one line with what has changed, and the way out."""


def read_data(data: Data, held_out_share: float, seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """All samples of a data source with files: (training, held-out). A share of 0 holds out none.

    held_out_share  of the subjects, in [0, 1)

    Raises DataError or UsageError if the source cannot be read.
    """
    root = None if data.root is None else Path(data.root)
    return load_data(data.source, root=root, class_word=data.class_word, held_out_share=held_out_share, seed=seed)


@dataclass(frozen=True)
class OwnSamples:
    """Digests of a run's samples by id, in the order in which the run uses them.

    train     those that it trains on
    held_out  all that it holds out; evaluations during training take the first `data.held_out_samples`
    """

    train: Mapping[str, SampleDigest]
    held_out: Mapping[str, SampleDigest]

    @classmethod
    def of(cls, train: Sequence[Sample], held_out: Sequence[Sample]) -> OwnSamples:
        """Reads every picture of these samples. Raises PictureError if one cannot be read."""
        known = digests([*train, *held_out])
        return cls(*({sample.id: known[sample.id] for sample in part} for part in (train, held_out)))

    @classmethod
    def read(cls, folder: Path) -> OwnSamples | None:
        """Those of a run or an adapter; None if it has none: critters, another program, or an older version.

        Raises JsonError if the file is damaged.
        """
        file = folder / OWN_SAMPLES
        if not file.exists():
            return None
        parts = read_json(file, _Parts, "restore it from a copy, or remove it to go on unchecked")
        return cls(
            **{part: {name: SampleDigest(*text.split()) for name, text in parts[part].items()} for part in parts}
        )

    def write(self, folder: Path) -> None:
        """Raises SavingError."""
        parts = {part: {name: str(each) for name, each in known.items()} for part, known in vars(self).items()}
        write_text(folder / OWN_SAMPLES, json.dumps(parts, indent=1) + "\n")

    def pick(self, samples: Iterable[Sample]) -> tuple[list[Sample], list[Sample]]:
        """(training, held-out) from all samples of the data, by id. Those that have gone are left out."""
        by_id = {sample.id: sample for sample in samples}
        train, held_out = ([by_id[name] for name in part if name in by_id] for part in (self.train, self.held_out))
        return train, held_out

    def check(self, now: Mapping[str, SampleDigest], names: Iterable[str], way_out: str) -> None:
        """Compare those samples of the run that have these ids with what they are now. Raises DataChangedError."""
        known, names = {**self.train, **self.held_out}, list(names)
        present = [name for name in names if name in now]
        changes = {
            "gone": [name for name in names if name not in now],
            "with another prompt, subject or class word": [n for n in present if now[n].text != known[n].text],
            "with other pictures": [n for n in present if now[n].pictures != known[n].pictures],
        }
        found = "; ".join(f"{len(changed)} {what} ({_first(changed)})" for what, changed in changes.items() if changed)
        if found:
            raise DataChangedError(
                f"the data has changed since the run began: of {len(names)} samples {found}; {way_out}"
            )

    def trained_on(self, now: Mapping[str, SampleDigest]) -> int:
        """How many of these samples, whatever their ids, the run was trained on."""
        trained = set(self.train.values())
        return sum(each in trained for each in now.values())


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
