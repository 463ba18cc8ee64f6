"""A part of a list that speaks for the whole: spread over subjects, prompts and references."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence

from customized_grpo.data.sample import Sample


def subset(samples: Sequence[Sample], count: int | None) -> list[Sample]:
    """`count` samples, or all of them in the order of the list if there are no more (None: all).

    A smaller count gives the first samples of a larger one. Every command and every seed chooses the same ones.
    """
    return list(samples) if count is None or count >= len(samples) else fair_order(samples)[:count]


def fair_order(samples: Sequence[Sample]) -> list[Sample]:
    """All samples in an order whose beginning, wherever it is cut, shows as many subjects and prompts as it can.

    Subjects take turns. At its turn a subject gives the prompt that it has given least often, then the one that all
    have given least often, with the reference that has been shown least often. Ties are decided by a hash, so that the
    choice does not fall in step with a list that repeats itself. Prompts that differ in the class word alone count as
    one.
    """
    by_subject: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: _rank(sample.id)):
        by_subject[sample.subject].append(sample)
    given = Counter[str]()
    waiting = [_Subject(by_subject[name], given) for name in sorted(by_subject, key=_rank)]
    order = []
    while waiting:
        order += [subject.next() for subject in waiting]
        waiting = [subject for subject in waiting if subject]
    return order


class _Subject:
    """The samples of one subject that have not been given yet."""

    def __init__(self, samples: Iterable[Sample], given_by_all: Counter[str]):
        self.given_by_all, self.given, self.shown = given_by_all, Counter[str](), Counter[str]()
        parts: defaultdict[str, defaultdict[str, deque[Sample]]] = defaultdict(lambda: defaultdict(deque))
        for sample in samples:
            parts[_template(sample)][str(sample.references[0])].append(sample)
        self.parts = {
            template: (references, _Queue(references, lambda reference: (self.shown[reference],)))
            for template, references in parts.items()
        }
        self.templates = _Queue(parts, lambda template: (self.given[template], self.given_by_all[template]))

    def __bool__(self) -> bool:
        return bool(self.templates.heap)

    def next(self) -> Sample:
        rank, template = self.templates.pop()
        references, queue = self.parts[template]
        rank_of_reference, reference = queue.pop()
        sample = references[reference].popleft()
        for counter, key in ((self.given_by_all, template), (self.given, template), (self.shown, reference)):
            counter[key] += 1
        if references[reference]:
            queue.push(rank_of_reference, reference)
        if queue.heap:
            self.templates.push(rank, template)
        return sample


class _Queue:
    """Keys by their counts, the lowest first, then by rank. Counts may rise while a key waits, and never fall."""

    def __init__(self, keys: Iterable[str], count: Callable[[str], tuple[int, ...]]):
        self.count = count
        self.heap = [(count(key), rank, key) for rank, key in enumerate(keys)]
        heapq.heapify(self.heap)

    def push(self, rank: int, key: str) -> None:
        heapq.heappush(self.heap, (self.count(key), rank, key))

    def pop(self) -> tuple[int, str]:
        """(rank, key) of the lowest count now. An entry whose count has risen since is put back with the new one."""
        while True:
            count, rank, key = heapq.heappop(self.heap)
            if count == self.count(key):
                return rank, key
            self.push(rank, key)


def _template(sample: Sample) -> str:
    """The prompt without the class word: "a dog in the snow" and "a cat in the snow" ask for the same."""
    word = sample.class_word
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "{}", sample.prompt) if word else sample.prompt


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
