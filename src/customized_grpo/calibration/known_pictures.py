"""Pictures of a data set with known quality: copies, other subjects, right and wrong prompts. None is generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from customized_grpo.critters import samples as critters
from customized_grpo.critters import world
from customized_grpo.data import Sample
from customized_grpo.data.images import Source
from customized_grpo.data.subsets import subset
from customized_grpo.fields import BUILT_IN
from customized_grpo.run.own_samples import read_data
from customized_grpo.sections import Data

ROWS = ("copy", "other_view", "other_subject", "right_prompt", "wrong_prompt")


@dataclass(frozen=True)
class Shown:
    """A picture, and the sample for which it is scored as if it had been generated."""

    picture: Source
    sample: Sample


ShownCases = list[Shown | None]  # one entry per case; None if the data has no such picture


def load_cases(data: Data, count: int) -> Cases:
    """At most `count` cases: the development critters that `train` uses, or samples spread over the list.

    Raises DataError if the list cannot be used.
    """
    return cases_of(data, [] if data.source in BUILT_IN else read_data(data, 0)[0], count)


def cases_of(data: Data, samples: Sequence[Sample], count: int) -> Cases:
    """At most `count` cases of data whose samples have been read: critters are drawn, whatever the samples are."""
    if data.source in BUILT_IN:
        return Cases(critters.draw_samples(count, critters.DEVELOPMENT_CRITTERS, 0, source=data.source))
    return Cases(subset(samples, count))


@dataclass(frozen=True)
class Cases:
    """N samples and the pictures that are scored for them."""

    samples: Sequence[Sample]

    @cached_property
    def subjects(self) -> list[str]:
        return [sample.subject for sample in self.samples]

    @cached_property
    def truth_known(self) -> bool:
        """Whether these are critters: a faithful picture can be drawn, so `right_prompt` has the right subject too."""
        return all(critters.case_of(sample) is not None for sample in self.samples)

    @cached_property
    def pictured(self) -> bool:
        """Whether the data has real pictures that follow their sample's prompt."""
        return any(sample.prompt_picture is not None for sample in self.samples)

    @property
    def prompt_known(self) -> bool:
        """Whether `right_prompt` shows pictures that follow the samples' own prompts."""
        return self.truth_known or self.pictured

    @cached_property
    def third_view(self) -> Tensor:
        """[N]: whether `against=other_view` compares the picture of `other_view` with views other than itself."""
        return torch.tensor([len(sample.other_views) > 1 for sample in self.samples])

    @cached_property
    def rows(self) -> dict[str, ShownCases]:
        """The pictures by row, in the order of `ROWS`."""
        cases = list(zip(self.samples, another(self.subjects), strict=True))
        rows: dict[str, ShownCases] = {
            "copy": [Shown(sample.references[0], sample) for sample in self.samples],
            "other_view": [_last_view(sample) for sample in self.samples],
            "other_subject": [None if j is None else Shown(self.samples[j].references[0], s) for s, j in cases],
        }
        if self.truth_known:
            return rows | self._drawn()
        return rows | (self._real() if self.pictured else self._named())

    def _drawn(self) -> dict[str, ShownCases]:
        """The right picture, drawn, with its own prompt and with the prompt of another situation."""
        right, wrong = ShownCases(), ShownCases()
        cases = [case for sample in self.samples if (case := critters.case_of(sample))]
        for sample, case, j in zip(self.samples, cases, another([s.prompt for s in self.samples]), strict=True):
            picture = world.picture(*case)
            right.append(Shown(picture, sample))
            if j is None:
                wrong.append(None)
                continue
            # The oracle reads the situation from `extra`, the encoders from the prompt.
            extra = {**self.samples[j].extra, "critter": sample.extra["critter"]}
            mismatched = replace(sample, id=f"{sample.id}-wrong", prompt=self.samples[j].prompt, extra=extra)
            wrong.append(Shown(picture, mismatched))
        return {"right_prompt": right, "wrong_prompt": wrong}

    def _real(self) -> dict[str, ShownCases]:
        """The picture that follows the prompt, with its own prompt and with the prompt of another sample."""
        right, wrong = ShownCases(), ShownCases()
        for sample, prompt in zip(self.samples, wrong_prompts(self.samples), strict=True):
            picture = sample.prompt_picture
            right.append(None if picture is None else Shown(picture, sample))
            wrong.append(None if picture is None or prompt is None else Shown(picture, with_prompt(sample, prompt)))
        return {"right_prompt": right, "wrong_prompt": wrong}

    def _named(self) -> dict[str, ShownCases]:
        """The reference with its own class word as the prompt, and with another one."""
        rows: dict[str, ShownCases] = {"right_prompt": [], "wrong_prompt": []}
        words = self._class_words()
        for sample, word, j in zip(self.samples, words, another(words), strict=True):
            for row, name in (("right_prompt", word), ("wrong_prompt", "" if j is None else words[j])):
                named = replace(sample, id=f"{sample.id}-{row}", prompt=f"a photo of a {name}")
                rows[row].append(Shown(sample.references[0], named) if name else None)
        return rows

    def _class_words(self) -> list[str]:
        return [(sample.class_word or "").strip().casefold() for sample in self.samples]

    def shown(self, row: str) -> int:
        """How many cases have a picture in this row."""
        return sum(each is not None for each in self.rows[row])

    def legend(self) -> dict[str, str]:
        """What each row shows, in words."""
        right = "the right picture, drawn: right subject and right prompt (faithful)"
        wrong = "the same picture, with the prompt of another sample"
        if self.pictured:
            right = "the picture that the prompt was written for"
        elif not self.truth_known:
            right = 'the reference, with its class word as the prompt ("a photo of a dog")'
            wrong = "the reference, with the class word of another sample"
        return {
            "copy": "the reference itself",
            "other_view": "another picture of the subject",
            "other_subject": "the reference of another subject",
            "right_prompt": right,
            "wrong_prompt": wrong,
        }

    def gaps(self) -> Iterator[str]:
        """What cannot be checked because the data does not have it."""
        count = len(self.samples)
        if without := count - self.shown("other_view"):
            yield (
                f"{without} of {count} samples have no other view: whether copying pays is not checked for them; list "
                "more pictures of the subject under other_views"
            )
        if not self.shown("other_subject"):
            yield f"all samples show one subject ({self.subjects[0]}): whether rewards recognise it is not checked"
        if self.prompt_known:
            if not self.shown("wrong_prompt"):
                yield "all samples have one prompt: whether rewards tell it from a wrong one is not checked"
            return
        words = self._class_words()
        if without := words.count(""):
            yield (
                f"{without} of {count} samples have no class_word: right and wrong prompts are not checked for them; "
                'add it to the list, for instance "class_word": "dog"'
            )
        if len({*words} - {""}) == 1:
            yield f"all class words are {max(words)!r}: there is no wrong prompt to check with"


def _last_view(sample: Sample) -> Shown | None:
    """The last other view; if there are several, it is compared with the others and not with itself."""
    *others, last = sample.other_views or (None,)
    return None if last is None else Shown(last, replace(sample, other_views=tuple(others)) if others else sample)


def wrong_prompts(samples: Sequence[Sample]) -> list[str | None]:
    """For each sample the prompt of another one; None if all have the same."""
    return [None if j is None else samples[j].prompt for j in another([sample.prompt for sample in samples])]


def with_prompt(sample: Sample, prompt: str) -> Sample:
    """The sample with a prompt that its picture does not follow."""
    return replace(sample, id=f"{sample.id}-wrong", prompt=prompt)


def another(keys: Sequence[str]) -> list[int | None]:
    """For each position the position of a different key, taking turns over all the others.

    An empty key gets None and is never chosen.
    """
    first = {key: keys.index(key) for key in dict.fromkeys(keys) if key}
    names = list(first)
    positions = {name: position for position, name in enumerate(names)}
    others = len(names) - 1
    return [
        first[names[(positions[key] + 1 + index % others) % len(names)]] if key and others > 0 else None
        for index, key in enumerate(keys)
    ]
