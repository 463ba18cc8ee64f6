"""Pictures for a user: a model, perhaps an adapter, references, prompts and seeds; PNG files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from customized_grpo.critters.weights import BUILT_IN, resolve
from customized_grpo.data import DataError, Sample
from customized_grpo.data.entries import read_text
from customized_grpo.data.images import check_image
from customized_grpo.outputs import check_folder
from customized_grpo.pictures import case
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.rewards.images import to_pictures
from customized_grpo.rollout import generate
from customized_grpo.run_directory import SamplingSettings

# Without an adapter to say otherwise: the built-in model's own settings, and FLUX.1-Kontext's customary ones.
CRITTERS = SamplingSettings(num_steps=10, shift=3.0, guidance=0.0, height=32, width=32, max_sequence_length=16)
KONTEXT = SamplingSettings(
    num_steps=28, shift="checkpoint", guidance=2.5, height=512, width=512, max_sequence_length=512
)


@dataclass(frozen=True)
class Request:
    """Every reference with every prompt and seed. `size` and `steps` of None: what the adapter was trained with."""

    references: Sequence[Path]
    prompts: Sequence[str]
    seeds: Sequence[int]
    model: str
    adapter: Path | None
    size: int | None
    steps: int | None
    device: str

    def __post_init__(self) -> None:
        if not self.references:
            raise ValueError("no reference; name a picture of the subject with --reference")
        if not self.prompts:
            raise ValueError("no prompt; say what to show with --prompt, or name a file with --prompts")
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("a prompt is empty; say what to show with --prompt")

    def settings(self) -> SamplingSettings:
        trained = None if self.adapter is None else SamplingSettings.read(self.adapter)
        chosen = trained or (CRITTERS if self.model == BUILT_IN else KONTEXT)
        size = (chosen.height, chosen.width) if self.size is None else (self.size, self.size)
        return SamplingSettings(
            num_steps=self.steps or chosen.num_steps,
            shift=chosen.shift,
            guidance=chosen.guidance,
            height=size[0],
            width=size[1],
            max_sequence_length=chosen.max_sequence_length,
        )


def read_prompts(file: Path) -> list[str]:
    """One prompt per line, in UTF-8; blank lines are none. Raises ValueError."""
    try:
        text = read_text(file)
    except DataError as error:
        raise ValueError(f"--prompts {file}: {error.problems[0]}; name a text file in UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def write_pictures(request: Request, output: Path, *, compare: bool = False) -> Iterator[Path]:
    """Write one PNG per picture and yield its path; with `compare`, also reference | base | tuned in one row."""
    if compare and request.adapter is None:
        raise ValueError("--compare sets base beside tuned; name the adapter with --adapter")
    check_folder(output)
    if problems := list(_unreadable(request.references)):
        raise ValueError("\n".join(problems))
    settings = request.settings()
    policy = FluxKontextPolicy(
        resolve(request.model, "generator"),
        device=request.device,
        height=settings.height,
        width=settings.width,
        guidance=settings.guidance,
        max_sequence_length=settings.max_sequence_length,
    )
    if request.adapter is not None:
        policy.load_adapter(request.adapter)
    sigmas = policy.sigmas(settings.num_steps, settings.shift)
    output.mkdir(parents=True, exist_ok=True)
    for number, (reference, prompt) in enumerate(product(request.references, request.prompts)):
        sample = Sample(id=str(number), subject=reference.stem, prompt=prompt, references=(reference,))
        condition = policy.encode([sample])
        for seed in request.seeds:
            path = output / f"{number:03d}-{_slug(reference.stem)}-{_slug(prompt)}-{seed}.png"
            picture = to_pictures(generate(policy, condition, sigmas, [seed]))[0]
            picture.save(path)
            yield path
            if compare:
                with policy.base_policy():
                    base = to_pictures(generate(policy, condition, sigmas, [seed]))[0]
                row = [sample.reference_images()[0], base, picture]
                beside = path.with_name(f"{path.stem}-compare.png")
                case(row, prompt, ["reference", "base", "tuned"], side=256).save(beside)
                yield beside


def _unreadable(pictures: Sequence[Path]) -> Iterator[str]:
    for picture in dict.fromkeys(pictures):
        try:
            check_image(picture)
        except ValueError as error:
            yield str(error)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]
