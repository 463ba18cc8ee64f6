"""What single passes of a recipe's model cost, by running it without numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from customized_grpo.config import RunConfig
from customized_grpo.cost.passes import blank_sample
from customized_grpo.cost.simulated import Pass, measure, simulation, size_of, tensors_of
from customized_grpo.critters.weights import resolve
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies import planned_family
from customized_grpo.policies.conditions import EncodedSamples
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.policies.libraries import Kind
from customized_grpo.policies.quantise import bytes_saved, quantise
from customized_grpo.sections import Adapter, Model

# Blocks that are run of the last kind; of the others it is one. Each further block costs what one more does.
# Training takes two: the very last one may need less memory, because nothing reads one of its results.
SAMPLED, TRAINED = 1, 2


@dataclass(frozen=True)
class Measured:
    """Costs of one call each, and sizes.

    sampling, training, decoding  with the batches of rollout and update
    evaluation, showing           sampling and decoding in the size of evaluations
    parameters, weights           of the model's parts, by name: numbers of weights, and bytes
    text_encoders                 which of the parts read prompts
    blocks, largest_block         bytes of the transformer's blocks, which can be divided among processes
    adapter                       weights of the adapter
    latents, condition            bytes of one image's latents, and of one encoded sample
    """

    sampling: Pass
    training: Pass
    decoding: Pass
    evaluation: Pass
    showing: Pass
    parameters: Mapping[str, int]
    weights: Mapping[str, int]
    text_encoders: tuple[str, ...]
    blocks: int
    largest_block: int
    adapter: int
    latents: int
    condition: int


@dataclass(frozen=True)
class Settings:
    """All that decides the cost of single passes.

    evaluation_size  height and width in pixels
    references       of a sample
    """

    model: Model
    adapter: Adapter
    rollout_batch: int
    update_batch: int
    evaluation_size: tuple[int, int]
    references: int

    @classmethod
    def of(cls, config: RunConfig, references: int = 1) -> Settings:
        same = {"offload_text_encoders": False, "shard": False, "compile": False}  # passes cost the same with them
        model, groups = config.model.model_copy(update=same), config.groups
        return cls(
            model, config.adapter, groups.rollout_batch, groups.update_batch, config.evaluation_size, references
        )


@lru_cache(maxsize=16)
def measured(settings: Settings) -> Measured:
    """Run the passes without numbers, in seconds for a model of any size.

    Raises ModelError if the model is not on this machine and not a published one whose architecture is known.
    """
    kind, policy = settings.model.quantise, _sketch(settings.model.model_copy(update={"quantise": None}))
    parts: dict[str, nn.Module] = {name: getattr(policy.pipe, name) for name in policy.parts}
    parameters = {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
    weights, blocks = _bytes(policy, parts, kind)
    counts = {name: len(getattr(policy.module, name)) for name in policy.layers.blocks}
    few = [f"{name}.{number}" for name, count in counts.items() for number in range(min(count, TRAINED + 1))]
    if kind is not None and kind != "nf4":  # bitsandbytes cannot do without numbers: passes as in bfloat16
        quantise(policy.module, kind, few, torch.device("meta"))
    with torch.device("meta"):
        lora = settings.adapter
        policy.add_adapter(lora.rank, lora.alpha, lora.targets, share_qkv=lora.share_qkv)
    adapter = sum(weight.numel() for weight in policy.trainable_parameters().values())
    kept = {name: list(getattr(policy.module, name))[: TRAINED + 1] for name in counts}
    for name, some in kept.items():
        setattr(policy.module, name, nn.ModuleList(some))
    size = (settings.model.height, settings.model.width)
    conditions = {each: _condition(policy, each, settings.references) for each in {size, settings.evaluation_size}}
    policy.device = torch.device("cpu")
    with simulation([policy.module, policy.pipe.vae]) as simulated:
        for weight in policy.trainable_parameters().values():
            weight.grad = torch.zeros_like(weight)  # there from the first micro-batch on
        simulated_conditions = {each: _mapped(condition, simulated) for each, condition in conditions.items()}
        run = _Runs(policy, settings, simulated_conditions, kept)
        run.warm_up()
        costs = _extrapolated(counts, SAMPLED, run.samplings) | _extrapolated(counts, TRAINED, run.trainings)
        costs |= run.decodings()
        latents = size_of([policy.noise(simulated_conditions[size], [0])])
    return Measured(
        **costs,
        parameters=parameters,
        weights=weights,
        text_encoders=policy.encoder.text_encoders,
        blocks=sum(blocks),
        largest_block=max(blocks),
        adapter=adapter,
        latents=latents,
        condition=size_of(conditions[size].entries[0].tensors.values()),
    )


def _bytes(
    policy: DiffusersPolicy, parts: Mapping[str, nn.Module], kind: Kind | None
) -> tuple[dict[str, int], list[int]]:
    """The bytes of the model's parts, by name, and of the transformer's blocks, once they are quantised."""
    blocks = [block for name in policy.layers.blocks for block in getattr(policy.module, name)]
    weights = {name: size_of(tensors_of(part)) for name, part in parts.items()}
    sizes = [size_of(tensors_of(block)) for block in blocks]
    if kind is not None:
        for name, inside in policy.quantised_parts():
            weights[name] -= bytes_saved(parts[name], kind, inside)
        saved = [bytes_saved(nn.ModuleList([block]), kind, ["0"]) for block in blocks]
        sizes = [size - less for size, less in zip(sizes, saved, strict=True)]
    return weights, sizes


def _sketch(model: Model) -> DiffusersPolicy:
    path, family = resolve(model.path, "generator"), planned_family(model)
    if family is not None and not issubclass(family, DiffusersPolicy):
        raise ModelError(f"{model.path}: the costs of {family.__name__} cannot be estimated")
    policy = None if family is None else family.sketch(path, model)
    if policy is None:
        raise ModelError(
            f"{model.path} is neither on this machine nor a published model whose sizes are known; fetch its "
            f"configurations first: hf download {model.path} --include '*.json'"
        )
    return policy


def _extrapolated(
    counts: Mapping[str, int], last: int, run: Callable[[Mapping[str, int]], dict[str, Pass]]
) -> dict[str, Pass]:
    """The costs with all blocks, from those with few: each further block of a kind costs the same.

    counts  of all blocks, by kind, in the order in which they run
    last    how many to run of the last kind
    """
    *_, final = counts
    few = {name: min(count, last if name == final else 1) for name, count in counts.items()}
    costs = base = run(few)
    for name, count in counts.items():
        if count > few[name]:
            more = run({**few, name: few[name] + 1})
            costs = {key: cost + (count - few[name]) * (more[key] - base[key]) for key, cost in costs.items()}
    return costs


def _condition(policy: DiffusersPolicy, size: tuple[int, int], references: int) -> EncodedSamples:
    with policy.sized(*size):
        return policy.blank(blank_sample(references))


def _mapped(condition: EncodedSamples, change: Callable[[Tensor], Tensor]) -> EncodedSamples:
    entries = [
        replace(entry, tensors={name: change(tensor) for name, tensor in entry.tensors.items()})
        for entry in condition.entries
    ]
    return replace(condition, entries=tuple(entries))


class _Runs:
    """The passes of a recipe, with a simulated policy.

    conditions  of one sample, by the pictures' size
    blocks      of the transformer, by the names of its lists
    """

    def __init__(
        self,
        policy: DiffusersPolicy,
        settings: Settings,
        conditions: Mapping[tuple[int, int], EncodedSamples],
        blocks: Mapping[str, list[nn.Module]],
    ):
        self.policy, self.settings, self.conditions, self.blocks = policy, settings, conditions, blocks
        self.own = policy.height, policy.width

    def warm_up(self) -> None:
        """The first pass of a process leaves some tensors behind in Python's reference cycles; later ones do not."""
        self._choose(dict.fromkeys(self.blocks, 1))
        self._call(self._sample, 1, self.own)

    def samplings(self, chosen: Mapping[str, int]) -> dict[str, Pass]:
        """The costs of passes forward through so many of the blocks."""
        self._choose(chosen)
        batch, other = self.settings.rollout_batch, self.settings.evaluation_size
        sampling = self._call(self._sample, batch, self.own)
        return {
            "sampling": sampling,
            "evaluation": sampling if other == self.own else self._call(self._sample, batch, other),
        }

    def trainings(self, chosen: Mapping[str, int]) -> dict[str, Pass]:
        """The cost of a pass forward and backward through so many of the blocks."""
        self._choose(chosen)

        def train(latents: Tensor, condition: EncodedSamples) -> None:
            self.policy.velocity(latents, 0.5, condition).sum().backward()

        return {"training": self._call(train, self.settings.update_batch, self.own)}

    @torch.no_grad()
    def _sample(self, latents: Tensor, condition: EncodedSamples) -> None:
        self.policy.velocity(latents, 0.5, condition)

    def _choose(self, chosen: Mapping[str, int]) -> None:
        for name, count in chosen.items():
            setattr(self.policy.module, name, nn.ModuleList(self.blocks[name][:count]))

    def decodings(self) -> dict[str, Pass]:
        batch = self.settings.rollout_batch
        sizes = {"decoding": self.own, "showing": self.settings.evaluation_size}
        return {name: self._call(self.policy.decode, batch, size) for name, size in sizes.items()}

    def _call(self, call: Callable[[Tensor, EncodedSamples], Any], batch: int, size: tuple[int, int]) -> Pass:
        with self.policy.sized(*size):
            condition = self.conditions[size].repeat(batch)
            latents = self.policy.noise(condition, [0] * batch)
            before = [*self._weights(), latents, *condition.entries[0].tensors.values()]
            return measure(lambda: call(latents, condition), before)

    def _weights(self) -> Iterator[Tensor]:
        for module in (self.policy.module, self.policy.pipe.vae):
            for tensor in tensors_of(module):
                yield tensor
                if tensor.grad is not None:
                    yield tensor.grad
