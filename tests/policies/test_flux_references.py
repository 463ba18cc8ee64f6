"""Several references per sample: positions, mixed batches, and training on them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.policies.conditions import EncodedSamples
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.training import samples as of_training
from customized_grpo.training.rollout import Sampler
from customized_grpo.training.trainer import Trainer

MakePolicy = Callable[..., FluxKontextPolicy]


def with_second(sample: Sample) -> Sample:
    """The sample with the critter's other view as a second reference."""
    return replace(sample, id=f"{sample.id}-two", references=(*sample.references, *sample.other_views))


@pytest.fixture
def mixed(samples: list[Sample]) -> list[Sample]:
    """Samples with one, two, one, three and two references."""
    one, two, three, four, five = samples[:5]
    many = with_second(four)
    many = replace(many, id="three", references=(*many.references, *five.references))
    return [one, with_second(two), three, many, with_second(five)]


def velocity_of(policy: FluxKontextPolicy, latents: Tensor, condition: EncodedSamples) -> Tensor:
    with torch.no_grad():
        return policy.velocity(latents, 0.6, condition)


def test_references_are_images_one_two_three_each_with_its_own_rows_and_columns(
    mixed: list[Sample], make_policy: MakePolicy
):
    policy = make_policy()
    sizes = [entry.references for entry in policy.encode(mixed).entries]
    tokens = policy.grid[0] * policy.grid[1]
    ids = [policy.positions(policy.grid, references)[tokens:] for references in sizes]
    assert [len(each) // tokens for each in ids] == [1, 2, 1, 3, 2]
    three = ids[3].reshape(3, tokens, 3)
    assert [three[n, :, 0].unique().tolist() for n in range(3)] == [[1], [2], [3]]
    side = int(tokens**0.5)
    places = [[row, column] for row in range(side) for column in range(side)]
    assert all(three[n, :, 1:].tolist() == places for n in range(3))
    assert torch.equal(three[0], ids[0])


def test_the_tokens_of_a_reference_do_not_depend_on_the_others(mixed: list[Sample], make_policy: MakePolicy):
    policy = make_policy()
    sample = mixed[3]
    (entry,) = policy.encode([sample]).entries
    alone = [replace(sample, id=f"alone-{n}", references=(r,)) for n, r in enumerate(sample.references)]
    assert torch.equal(
        entry.tensors["reference"], torch.cat([e.tensors["reference"] for e in policy.encode(alone).entries])
    )


def test_each_sample_of_a_mixed_batch_gets_what_it_gets_alone(
    mixed: list[Sample], make_policy: MakePolicy, guided_checkpoint: str
):
    for policy in (make_policy(), make_policy(guided_checkpoint)):
        condition = policy.encode(mixed)
        latents = policy.noise(condition, [1, 2, 3, 4, 5])
        sigmas = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1])
        with torch.no_grad():
            together = policy.velocity(latents, sigmas, condition)
            assert together.shape == latents.shape
            for row, sample in enumerate(mixed):
                alone = policy.velocity(latents[row : row + 1], sigmas[row], policy.encode([sample]))
                torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=0)


def test_there_is_one_forward_pass_per_number_of_references(
    mixed: list[Sample], make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
):
    policy, seen = make_policy(), []
    forward = policy.module.forward

    def counting(*args, hidden_states: Tensor, **kwargs):
        seen.append(tuple(hidden_states.shape[:2]))
        return forward(*args, hidden_states=hidden_states, **kwargs)

    monkeypatch.setattr(policy.module, "forward", counting)
    condition = policy.encode(mixed)
    latents = policy.noise(condition, range(5))
    tokens = latents.shape[1]
    velocity_of(policy, latents, condition)
    assert seen == [(2, 2 * tokens), (2, 3 * tokens), (1, 4 * tokens)]
    seen.clear()
    velocity_of(policy, latents[::2][:2], condition[torch.tensor([0, 2])])
    assert seen == [(2, 2 * tokens)]


def test_the_second_reference_and_the_order_of_references_matter(samples: list[Sample], make_policy: MakePolicy):
    policy, two = make_policy(), with_second(samples[0])
    swapped = replace(two, id="swapped", references=two.references[::-1])
    other = replace(two, id="other", references=(two.references[0], samples[1].references[0]))
    latents = policy.noise(policy.encode([two]), [1])
    first, *others = [velocity_of(policy, latents, policy.encode([s])) for s in (two, samples[0], swapped, other)]
    for velocity in others:
        assert (velocity - first).abs().max() > 0.01


def test_a_condition_is_indexed_like_a_tensor_and_repeats_without_copies(mixed: list[Sample], make_policy: MakePolicy):
    condition = make_policy().encode(mixed)
    assert len(condition) == 5
    groups = condition.repeat(3)
    assert [id(e) for e in groups.entries] == [id(e) for e in condition.entries for _ in range(3)]

    def rows(part: slice | Tensor) -> list[int]:
        return [condition.entries.index(entry) for entry in condition[part].entries]

    mask = torch.tensor([True, False, False, True, True])
    assert rows(slice(1, 4)) == [1, 2, 3]
    assert rows(torch.tensor([4, 0, 0, -2])) == [4, 0, 0, 3]
    assert rows(mask) == [0, 3, 4]
    assert (condition[mask].height, condition[mask].width) == (condition.height, condition.width)
    with pytest.raises(IndexError):
        condition[torch.tensor([5])]


# --- rollout and update ----------------------------------------------------------------------------------------------


def test_each_group_of_a_mixed_rollout_gets_what_it_gets_alone(mixed: list[Sample], make_policy: MakePolicy):
    policy = make_policy()
    sampler = Sampler(policy.sigmas(4, 3.0), "flow", 0.8, batch=4)  # batches of 4 images cross the borders of groups

    def images(samples: list[Sample], first: int = 0) -> Tensor:
        seed = lambda group, member: 100 * (first + group) + (-1 if member is None else member) + 1  # noqa: E731
        return sampler.rollout(policy, policy.encode(samples), 3, (1, 2), seed).images

    together = images(mixed).split(3)
    for number, sample in enumerate(mixed):
        torch.testing.assert_close(together[number], images([sample], number), atol=5e-5, rtol=0)


def test_a_mixed_batch_trains(
    make_trainer: Callable[..., Trainer],
    adapter_of: Callable[[FluxKontextPolicy], Tensor],
    monkeypatch: pytest.MonkeyPatch,
):
    load = of_training.load_samples

    def half_with_two(config: RunConfig) -> tuple[list[Sample], list[Sample]]:
        parts = load(config)
        return tuple([with_second(s) if n % 2 else s for n, s in enumerate(part)] for part in parts)  # pyright: ignore[reportReturnType]

    monkeypatch.setattr(of_training, "load_samples", half_with_two)
    trainer = make_trainer(
        *("groups.prompts=4", "groups.rollout_batch=5", "groups.update_batch=7", "objective.kl=.1"),
        "evaluation.every=1",
    )
    assert {len(sample.references) for sample in trainer.plan.batch(0)} == {1, 2}
    before = adapter_of(trainer.policy)  # pyright: ignore[reportArgumentType]
    row = trainer.step()  # would raise if the ratio were not 1
    assert trainer.ratio_checks == 1
    assert row["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert (row["clip_fraction"], row["gradient_norm"] > 0) == (0, True)
    after = adapter_of(trainer.policy)  # pyright: ignore[reportArgumentType]
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)


def test_the_gradient_of_a_mixed_batch_is_the_sum_of_its_samples(
    mixed: list[Sample], make_policy: MakePolicy, excite: Callable[[FluxKontextPolicy], None]
):
    policy = make_policy(rank=2)
    excite(policy)
    condition = policy.encode(mixed)
    latents = policy.noise(condition, range(5))
    weights = list(policy.trainable_parameters().values())

    def gradient(rows: slice) -> Tensor:
        loss = policy.velocity(latents[rows], 0.6, condition[rows]).square().mean(dim=(1, 2)).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    alone = torch.stack([gradient(slice(row, row + 1)) for row in range(5)]).sum(0)
    assert (gradient(slice(None)) - alone).norm() < 1e-4 * alone.norm()
