"""How an adapter is loaded into its family's plain diffusers pipeline, as a program of a few lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from customized_grpo.fields import BUILT_IN
from customized_grpo.policies import planned_family
from customized_grpo.policies.architectures import is_distilled
from customized_grpo.policies.base import Policy
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.sections import Model
from customized_grpo.sharing.public import public_name

Format = Literal["comfyui", "diffusers", "peft"]


@dataclass(frozen=True)
class Place:
    """Where readers of a card find the weights.

    repository  on the Hub, as OWNER/NAME; None: the folder of the card
    format      of the weights
    file        their name, where it is not the format's usual one
    with_base   whether they hold the run's `model.base_adapter` too
    """

    repository: str | None = None
    format: Format = "diffusers"
    file: str | None = None
    with_base: bool = False

    @property
    def folder(self) -> str:
        """The folder on the reader's machine, if it is downloaded under its own name."""
        return "." if self.repository is None else self.repository.rpartition("/")[2]


HERE = Place()


def program(model: Model, settings: SamplingSettings, place: Place, prompt: str) -> str | None:
    """Python code that makes a picture of reference.png with an adapter; None if diffusers has no pipeline for it.

    prompt  what to show

    Raises ModelError if the model's configuration is damaged.
    """
    family = planned_family(model)
    if family is None or not issubclass(family, DiffusersPolicy) or model.family is not None:
        return None
    name = family.pipeline.__name__
    moved = isinstance(settings.shift, int | float)  # a schedule of its own, not the checkpoint's
    classes = [*(["FlowMatchEulerDiscreteScheduler"] if moved else []), name]
    built_in = model.path in BUILT_IN
    resized_by_constant = name == "QwenImageEditPlusPipeline" and model.reference_size is not None
    base = f'resolve({_quoted(model.path)}, "generator")' if built_in else _quoted(_path(model.path))
    lines = [
        "import torch",
        f"from diffusers import {', '.join(classes)}{'  # needs torchvision' if name.startswith('Qwen') else ''}",
        *(["from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus"] if resized_by_constant else []),
        "from diffusers.utils import load_image",
        *(["from PIL import Image, ImageOps"] if name == "FluxKontextPipeline" else []),
        *(["from peft import PeftModel"] if place.format == "peft" else []),
        *(["", "from customized_grpo.critters.weights import resolve"] if built_in else []),
        "",
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        f"pipe = {name}.from_pretrained({base}, torch_dtype=torch.{model.dtype})",
        *([f"pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift={settings.shift})"] if moved else []),
    ]
    if model.base_adapter is not None and not place.with_base:
        lines += [
            f"pipe.load_lora_weights({_quoted(_path(model.base_adapter))})  # what the adapter was trained on",
            "pipe.fuse_lora()",
            "pipe.unload_lora_weights()",
        ]
    where = _quoted(place.repository or place.folder)
    load = f"pipe.load_lora_weights({where}{f', weight_name={_quoted(place.file)}' if place.file else ''})"
    if place.format == "peft":
        load = f"pipe.transformer = PeftModel.from_pretrained(pipe.transformer, {where})"
    arguments = _arguments(family, model, settings, prompt)
    call = [f"    {key}={value}," for key, value in arguments.items()]
    return "\n".join(
        [
            *lines,
            load,
            "pipe.to(device)",
            'reference = load_image("reference.png")',
            *_as_in_training(name, model, settings),
            "picture = pipe(",
            *call,
            ").images[0]",
            'picture.save("picture.png")',
        ]
    )


def _as_in_training(pipeline: str, model: Model, settings: SamplingSettings) -> list[str]:
    """Lines that give the reference the size that it had in training, where the pipeline would choose another."""
    side = model.reference_size
    if pipeline == "FluxKontextPipeline":
        size = f"({settings.width}, {settings.height})"
        return [f"reference = ImageOps.fit(reference, {size}, Image.Resampling.LANCZOS)  # as in training"]
    if side is None:
        return []
    if pipeline == "QwenImageEditPlusPipeline":
        return [f"pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE = {side} * {side}  # of references, as in training"]
    return [
        f"if reference.width * reference.height > {side} * {side}:  # as in training",
        f"    reference = pipe.image_processor._resize_to_target_area(reference, {side} * {side})",
    ]


def _quoted(text: str) -> str:
    """A text as code, on one line. JSON's texts are Python's."""
    return json.dumps(text, ensure_ascii=False)


def _path(path: str) -> str:
    """A hub id as it is; a folder of the user's machine as one of the reader's."""
    name = public_name(path)
    return path if name == path and not Path(path).exists() else f"path/to/{Path(name).name}"


def _arguments(family: type[Policy], model: Model, settings: SamplingSettings, prompt: str) -> dict[str, str]:
    """The arguments of the pipeline's call, as code."""
    assert issubclass(family, DiffusersPolicy)
    name, height, width = family.pipeline.__name__, settings.height, settings.width
    guidance = family.usual_guidance if settings.guidance is None else settings.guidance
    arguments = {
        "image": "reference",
        "prompt": _quoted(prompt),
        "height": f"{height}",
        "width": f"{width}",
        "num_inference_steps": f"{settings.num_steps}",
        "generator": "torch.Generator().manual_seed(0)",
    }
    if name == "QwenImageEditPlusPipeline":
        return {**arguments, "true_cfg_scale": f"{guidance}", **({} if guidance == 1 else {"negative_prompt": '" "'})}
    arguments["max_sequence_length"] = f"{settings.max_sequence_length}"
    if name == "FluxKontextPipeline":
        exact = {"max_area": f"{height} * {width}", "_auto_resize": "False"}  # or it would choose another size
        return {**arguments, **exact, "guidance_scale": f"{guidance}"}
    return arguments if is_distilled(model.path) else {**arguments, "guidance_scale": f"{guidance}"}
