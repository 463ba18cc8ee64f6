"""`customized-grpo generate`: every reference with every prompt and seed, as PNG files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from customized_grpo.config import CONFIG
from customized_grpo.data import DataError, Sample
from customized_grpo.data.findings import show
from customized_grpo.data.images import PictureError, check_image, to_pictures
from customized_grpo.data.reading import read_lines
from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN, CRITTERS
from customized_grpo.files.adapter_places import find_adapter, folder_of
from customized_grpo.files.durable import check_folder, make_folder
from customized_grpo.files.notices import print_line
from customized_grpo.files.pictures import draw_card, save_png
from customized_grpo.files.text import flaw_of
from customized_grpo.policies import find_family, load_policy
from customized_grpo.policies.architectures import is_distilled
from customized_grpo.policies.base import Condition, Policy
from customized_grpo.run.base_adapter import check_base_adapter
from customized_grpo.run.sampling_settings import SamplingSettings, model_of
from customized_grpo.sections import Model
from customized_grpo.training.rollout import Watch, generate

BUILT_IN_SAMPLING: tuple[int, float] = (10, 3.0)  # steps and shift that the built-in model was trained for
DISTILLED_STEPS = 4  # that a distilled model is made for


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A model and perhaps an adapter, and how to sample with them.

    If `model`, `dtype`, `size` or `steps` is None, it is taken from the adapter, or the usual one without an adapter.
    `adapter` may be a run's folder, or a file.
    """

    model: str | None
    adapter: Path | None
    device: str
    size: int | None = None
    steps: int | None = None
    dtype: str | None = None

    def found_adapter(self) -> Path | None:
        """The adapter's folder or file. Raises ModelError if it is missing."""
        return None if self.adapter is None else find_adapter(self.adapter)

    def base(self) -> Model:
        """The model without adapter, and the type of its weights: only the one of training is quantised.

        Raises UsageError for an adapter from elsewhere, which has no configuration, if `model` is not given either.
        """
        adapter = self.found_adapter()
        trained = None if adapter is None else model_of(adapter)
        if trained is None:
            if adapter is not None and self.model is None:
                raise UsageError(f"{adapter} has no {CONFIG}, which would name its model; name it with --model")
            trained = Model.model_validate({"path": self.model or CRITTERS})
        chosen: dict[str, Any] = {"path": self.model, "dtype": self.dtype}
        chosen = {key: value for key, value in chosen.items() if value}
        if chosen.get("dtype", trained.dtype) != trained.dtype:
            chosen["quantise"] = None
        return Model.model_validate(trained.model_dump() | chosen)

    def settings(self) -> SamplingSettings:
        """The schedule, guidance and size to sample with."""
        adapter = self.found_adapter()
        trained = None if adapter is None else SamplingSettings.read(folder_of(adapter))
        chosen = trained or _usual_settings(self.base())
        if trained is not None and self._distilled_since:
            chosen = replace(chosen, guidance=None, num_steps=DISTILLED_STEPS)
        size = (chosen.height, chosen.width) if self.size is None else (self.size, self.size)
        return replace(chosen, num_steps=self.steps or chosen.num_steps, height=size[0], width=size[1])

    @property
    def _distilled_since(self) -> bool:
        """Whether `model` is the distilled form of the one that the adapter was trained on."""
        adapter = self.found_adapter()
        trained = None if adapter is None else model_of(adapter)
        if trained is None or self.model is None or self.model in (trained.path, *BUILT_IN):
            return False
        return is_distilled(self.model) and not (trained.path not in BUILT_IN and is_distilled(trained.path))

    def notes(self) -> Iterator[str]:
        """A line for each thing that is not as in training without having been asked for."""
        adapter, base = self.found_adapter(), self.base()
        trained = None if adapter is None else model_of(adapter)
        if self._distilled_since:
            steps = "" if self.steps else f", and {DISTILLED_STEPS} steps; --steps sets another number"
            yield f"{base.path} is distilled: no guidance{steps}"
        if trained is not None and base.quantise != trained.quantise:
            yield f"the model is in {base.dtype}, not in {trained.quantise} as in training"


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(ModelChoice):
    """Every reference with every prompt and seed."""

    references: Sequence[Path]
    prompts: Sequence[str]
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        if not self.references:
            raise UsageError("no reference; name a picture of the subject with --reference")
        if not self.prompts:
            raise UsageError("no prompt; say what to show with --prompt, or name a file with --prompts")
        if not all(prompt.strip() for prompt in self.prompts):
            raise UsageError("a prompt is empty; say what to show with --prompt")
        if flawed := [f"the prompt {show(text)} {flaw}" for text in self.prompts if (flaw := flaw_of(text))]:
            raise UsageError("\n".join(dict.fromkeys(flawed)))


@dataclass(frozen=True)
class Generator:
    """A loaded model, perhaps with an adapter, and the noise grid to sample it on."""

    policy: Policy
    sigmas: Tensor

    @classmethod
    def load(cls, choice: ModelChoice) -> Generator:
        """Raises UsageError or ModelError for a model, adapter or setting that cannot be used."""
        settings, base = choice.settings(), choice.base()
        for line in choice.notes():
            print_line(f"note: {line}")
        adapter = choice.found_adapter()
        if adapter is not None:
            check_base_adapter(base, folder_of(adapter))
        policy = load_policy(base.model_copy(update=settings.of_the_model()), choice.device)
        if adapter is not None:
            policy.load_adapter(adapter)
        return cls(policy, policy.sigmas(settings.num_steps, settings.shift))

    def image(self, condition: Condition, seed: int, watch: Watch | None = None) -> Tensor:
        """The image [1, 3, H, W] of a condition of one entry, with the adapter if there is one."""
        return generate(self.policy, condition, self.sigmas, [seed], watch)

    def untuned_image(self, condition: Condition, seed: int, watch: Watch | None = None) -> Tensor:
        """The same without the adapter, which there must be."""
        with self.policy.base_policy():
            return self.image(condition, seed, watch)


def read_prompts(file: Path) -> list[str]:
    """One prompt per line, in UTF-8; blank lines are skipped. Raises UsageError."""
    try:
        lines = read_lines(file)
    except DataError as error:
        raise UsageError(f"--prompts {file}: {error.problems[0]}; name a text file in UTF-8") from None
    if looks := next((problem for line in lines if (problem := _other_format(line))), None):
        raise UsageError(f"--prompts {file}: {looks}; write one prompt per line, as plain text")
    if flawed := [
        f"--prompts {file}: line {number}: {show(line)} {flaw}"
        for number, line in enumerate(lines, start=1)
        if (flaw := flaw_of(line))
    ]:
        raise UsageError("\n".join(flawed))
    return [line.strip() for line in lines if line.strip()]


def _other_format(line: str) -> str | None:
    """What tells that a line is not a prompt but belongs to a list or to another program's file of prompts."""
    line = line.strip()
    if line.startswith(("{", "[{")) and line.endswith(("}", "},", "}]")) and '":' in line.replace(" ", ""):
        return f"{show(line)} is JSON"
    if switch := re.search(r"\s--[a-z]{1,2} \S+", line):
        return f"{show(switch[0].strip())} is a setting of another program"
    return f"{show(line)} is a comment of another program" if line.startswith("#") else None


def write_pictures(request: GenerationRequest, output: Path, *, compare: bool = False) -> Iterator[Path]:
    """Write one PNG per picture and yield its path; with `compare`, also reference | base | tuned in one row."""
    if compare and request.adapter is None:
        raise UsageError("--compare shows base and tuned side by side; name the adapter with --adapter")
    check_folder(output)
    if problems := list(_unreadable(request.references)):
        raise UsageError("\n".join(problems))
    if existing := [path for path in _files(request, output, compare=compare) if path.exists()]:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise UsageError(f"{existing[0]} exists{more}; name another folder with --output, or remove it")
    generator = Generator.load(request)
    make_folder(output)
    for number, (reference, prompt) in _pairs(request):
        sample = Sample(id=str(number), subject=reference.stem, prompt=prompt, references=(reference,))
        condition = generator.policy.encode([sample])
        for seed in request.seeds:
            path = output / _name(number, reference, prompt, seed)
            picture = to_pictures(generator.image(condition, seed))[0]
            save_png(picture, path)
            yield path
            if compare:
                untuned = to_pictures(generator.untuned_image(condition, seed))[0]
                row = [sample.reference_images()[0], untuned, picture]
                save_png(draw_card(row, prompt, ["reference", "base", "tuned"], side=256), _comparison(path))
                yield _comparison(path)


def _pairs(request: GenerationRequest) -> Iterator[tuple[int, tuple[Path, str]]]:
    yield from enumerate(product(request.references, request.prompts))


def _files(request: GenerationRequest, output: Path, *, compare: bool) -> Iterator[Path]:
    """Every file that will be written."""
    for (number, (reference, prompt)), seed in product(_pairs(request), request.seeds):
        yield (path := output / _name(number, reference, prompt, seed))
        if compare:
            yield _comparison(path)


def _name(number: int, reference: Path, prompt: str, seed: int) -> str:
    return f"{number:03d}-{_slug(reference.stem)}-{_slug(prompt)}-{seed}.png"


def _comparison(path: Path) -> Path:
    return path.with_name(f"{path.stem}-compare.png")


def _usual_settings(model: Model) -> SamplingSettings:
    if model.path in BUILT_IN:
        return SamplingSettings.of_model(model, *BUILT_IN_SAMPLING)
    usual_steps = find_family(model).usual_steps
    return SamplingSettings.of_model(model, DISTILLED_STEPS if is_distilled(model.path) else usual_steps, "checkpoint")


def _unreadable(pictures: Sequence[Path]) -> Iterator[str]:
    for picture in dict.fromkeys(pictures):
        try:
            check_image(picture)
        except PictureError as error:
            yield str(error)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]
