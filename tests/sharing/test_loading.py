"""The program in a card runs as it is, and makes the picture that this package makes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image

import tiny_models
from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures
from customized_grpo.policies import load_policy
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.sections import Model
from customized_grpo.sharing.loading import HERE, Place, program
from customized_grpo.training.rollout import generate

PROMPT = 'it\'s a "dog" ```\non a beach'  # quotes, a fence and the end of a line
SIDE, STEPS = 64, 3
EDIT: dict[str, Any] = {"reference_size": 96}


@pytest.mark.parametrize(
    ("checkpoint", "settings", "shift"),
    [
        ("guided", {}, "checkpoint"),
        ("guided", {"guidance": 4.0}, 3.0),
        ("klein", {}, "checkpoint"),
        ("klein", {"reference_size": 80}, "checkpoint"),
        ("klein", {"guidance": 1.0}, 2.0),
        ("distilled", {}, "checkpoint"),
        ("qwen", EDIT, "checkpoint"),
        ("qwen", {**EDIT, "guidance": 1.0}, 3.0),
    ],
)
def test_the_program_runs(
    checkpoint: str,
    settings: dict[str, Any],
    shift: Any,
    guided_checkpoint: Path,
    excite: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 1024 * 1024)  # put back after the program
    made = {
        "klein": tiny_models.klein,
        "distilled": lambda: tiny_models.klein(distilled=True),
        "qwen": tiny_models.qwen_edit,
    }
    path = tmp_path / checkpoint
    if checkpoint == "guided":
        path.symlink_to(guided_checkpoint)
    else:
        tiny_models.saved(made[checkpoint](), path)
    size: dict[str, Any] = {"height": SIDE, "width": SIDE, "max_sequence_length": 64, "dtype": "float32"}
    model = Model(path=str(path), **(size | settings))
    policy: Any = load_policy(model, "cpu")
    assert isinstance(policy, DiffusersPolicy)
    policy.add_adapter(4, 6.0)
    excite(policy)  # pyright: ignore[reportArgumentType]
    policy.save_adapter(tmp_path / "adapter")
    coarse = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    reference = Image.fromarray(coarse).resize((2 * SIDE, 3 * SIDE // 2), Image.Resampling.BICUBIC)
    reference.save(tmp_path / "adapter" / "reference.png")
    condition = policy.encode([Sample("s", "s", PROMPT, (reference,))])
    expected = to_pictures(generate(policy, condition, policy.sigmas(STEPS, shift), [0]))[0]
    with policy.base_policy():
        untuned = to_pictures(generate(policy, condition, policy.sigmas(STEPS, shift), [0]))[0]

    code = program(model, SamplingSettings.of_model(model, STEPS, shift), HERE, PROMPT)
    assert code is not None
    assert str(tmp_path) not in code
    (tmp_path / "adapter" / "path").mkdir()
    (tmp_path / "adapter" / "path" / "to").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "adapter")
    if checkpoint == "qwen":  # its processor needs torchvision, which is not a dependency here
        load = QwenImageEditPlusPipeline.from_pretrained
        ours = policy.pipe.processor

        def with_processor(*arguments: Any, **options: Any) -> Any:
            pipe: Any = load(*arguments, **options, processor=None)
            pipe.processor = ours
            return pipe

        monkeypatch.setattr(QwenImageEditPlusPipeline, "from_pretrained", with_processor)
    exec(compile(code, "card", "exec"), {})
    with Image.open("picture.png") as written:
        picture = np.asarray(written).astype(int)
    assert np.abs(picture - np.asarray(expected)).max() <= 1
    assert np.abs(picture - np.asarray(untuned)).max() > 1


def test_peft_has_its_own_loader(guided_checkpoint: Path):
    model = Model(path=str(guided_checkpoint), height=32, width=32)
    settings = SamplingSettings.of_model(model, STEPS, "checkpoint")
    code = program(model, settings, Place("ann/rex", "peft"), "a dog") or ""
    assert "\nfrom peft import PeftModel\n" in code
    assert 'pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "ann/rex")' in code
    assert "load_lora_weights" not in code


@pytest.mark.parametrize(
    ("name", "classes", "guidance"),
    [
        ("black-forest-labs/FLUX.1-Kontext-dev", "FluxKontextPipeline", "guidance_scale=2.5"),
        ("black-forest-labs/FLUX.2-klein-base-4B", "Flux2KleinPipeline", "guidance_scale=4.0"),
        ("black-forest-labs/FLUX.2-klein-4B", "Flux2KleinPipeline", None),
        ("Qwen/Qwen-Image-Edit-2511", "QwenImageEditPlusPipeline", "true_cfg_scale=4.0"),
    ],
)
def test_published_models_need_not_be_here(name: str, classes: str, guidance: str | None):
    model = Model(path=name)
    code = program(model, SamplingSettings.of_model(model, 28, "checkpoint"), Place("ann/rex"), "a dog") or ""
    assert f'{classes}.from_pretrained("{name}", torch_dtype=torch.bfloat16)' in code
    assert "height=512" in code
    assert re.findall(r"\w+_scale=[\d.]+", code) == ([] if guidance is None else [guidance])


def test_a_base_adapter_is_fused_first(guided_checkpoint: Path):
    model = Model(path=str(guided_checkpoint), base_adapter="/home/ann/first.safetensors")
    code = program(model, SamplingSettings.of_model(model, 3, "checkpoint"), HERE, "a dog") or ""
    first, fuse = 'pipe.load_lora_weights("path/to/first.safetensors")', "pipe.fuse_lora()"
    assert code.index(first) < code.index(fuse) < code.index('pipe.load_lora_weights(".")')


def test_uno_has_no_pipeline():
    model = Model(path="black-forest-labs/FLUX.1-dev", family="uno")
    assert program(model, SamplingSettings.of_model(model, 25, "checkpoint"), HERE, "a dog") is None
