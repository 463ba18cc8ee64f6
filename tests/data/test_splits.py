import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from customized_grpo.data import Sample, load_list, split_by_subject


def test_dreambench_split(dreambench: Path):
    train, held_out = split_by_subject(load_list(dreambench / "reference_list_750.json"), 0.2, seed=0)
    assert (len(train), len(held_out)) == (24 * 25, 6 * 25)
    assert not {sample.subject for sample in train} & {sample.subject for sample in held_out}


def grid(subjects: int, prompts: int) -> list[Sample]:
    picture = (Path("a.png"),)
    return [
        Sample(f"{subject}-{prompt}", f"subject {subject}", f"prompt {prompt}", picture)
        for subject in range(subjects)
        for prompt in range(prompts)
    ]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("subjects", [2, 3, 10, 31])
def test_split_divides_subjects(share: float, subjects: int):
    samples = grid(subjects, 3)
    train, held_out = split_by_subject(samples, share, seed=0)
    held = {sample.subject for sample in held_out}
    assert len(held) == min(max(1, int(share * subjects + 0.5)), subjects - 1)
    assert [sample for sample in samples if sample.subject in held] == held_out  # whole subjects, order kept
    assert [sample for sample in samples if sample.subject not in held] == train


def test_split_does_not_depend_on_order_or_on_how_many_prompts():
    samples = grid(10, 3)
    held = {sample.subject for sample in split_by_subject(samples, 0.3, seed=1)[1]}
    for other in (samples[::-1], samples[::2] + samples[1::2], grid(10, 1)):
        assert {sample.subject for sample in split_by_subject(other, 0.3, seed=1)[1]} == held


def test_split_is_the_same_in_every_process_and_differs_by_seed():
    chosen = [{sample.subject for sample in split_by_subject(grid(10, 1), 0.2, seed)[1]} for seed in range(200)]
    assert chosen[0] == {"subject 0", "subject 3"}  # as first computed: old runs stay comparable
    # each of 10 subjects is held out in a fifth of the seeds: 40 +- 5.7 of 200
    counts = Counter(subject for held in chosen for subject in held)
    assert len(counts) == 10
    assert all(17 < count < 63 for count in counts.values())


def test_a_larger_share_holds_out_a_superset():
    held = [{s.id for s in split_by_subject(grid(10, 2), share / 10, seed=3)[1]} for share in range(10)]
    assert all(small < large for small, large in pairwise(held))


def test_one_subject_is_divided_by_prompt_with_a_warning():
    samples = [*grid(1, 10), Sample("again", "subject 0", "prompt 4", (Path("b.png"),))]
    with pytest.warns(
        UserWarning, match=r"all 11 samples are of one subject \(subject 0\), so they are held out by prompt"
    ):
        train, held_out = split_by_subject(samples, 0.2, seed=0)
    held = {sample.prompt for sample in held_out}
    assert len(held) == 2
    assert not held & {sample.prompt for sample in train}
    assert len(train) + len(held_out) == 11


def test_one_prompt_is_divided_by_sample_with_a_warning():
    samples = [Sample(name, "dog", "a dog", (Path("a.png"),)) for name in "abc"]
    with pytest.warns(UserWarning, match="held out by id"):
        train, held_out = split_by_subject(samples, 0.1, seed=0)
    assert (len(train), len(held_out)) == (2, 1)


def test_nothing_to_split():
    with warnings.catch_warnings(action="error"):
        assert split_by_subject(grid(1, 5), 0, seed=0) == (grid(1, 5), [])
        assert split_by_subject(grid(1, 1), 0.5, seed=0) == (grid(1, 1), [])
        assert split_by_subject([], 0.5, seed=0) == ([], [])


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_impossible_shares(share: float):
    with pytest.raises(ValueError, match=r"held_out_share = .* must be in \[0, 1\)"):
        split_by_subject(grid(2, 2), share, seed=0)


def test_ids_must_differ_to_split():
    with pytest.raises(ValueError, match="share an id"):
        split_by_subject(grid(2, 2) * 2, 0.5, seed=0)
