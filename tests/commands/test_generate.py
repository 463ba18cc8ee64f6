import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from torch import Tensor

import tiny_models
from customized_grpo.commands import generate
from customized_grpo.commands.generate import (
    GenerationRequest,
    Generator,
    ModelChoice,
    read_prompts,
    write_pictures,
)
from customized_grpo.config import CONFIG, RunConfig, dump_config, load_config
from customized_grpo.critters.weights import resolve
from customized_grpo.data import Sample
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies import load_policy
from customized_grpo.policies.base import Policy
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.run.sampling_settings import SAMPLING, SamplingSettings
from customized_grpo.training.trainer import Trainer

PROMPT = "a critter on the beach, at the left, wearing a red hat"


@pytest.fixture
def request_for(tmp_path: Path, samples: list[Sample]) -> GenerationRequest:
    """A request for one picture of the built-in model."""
    reference = tmp_path / "Mein Krötchen.png"
    samples[0].reference_images()[0].save(reference)
    return GenerationRequest(
        references=[reference],
        prompts=[PROMPT],
        seeds=[3],
        model="critters",
        adapter=None,
        size=None,
        steps=4,
        device="cpu",
    )


@pytest.fixture
def adapter(make_trainer: Callable[..., Trainer], excite: Callable[[Policy], None]) -> Path:
    """As `train` leaves it; alpha is half the rank."""
    trainer = make_trainer("adapter.rank=4", "adapter.alpha=2", "sampling.shift=checkpoint", "updates=0")
    excite(trainer.policy)
    trainer.train()
    return trainer.directory.path / "adapter"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def plain_diffusers(request: GenerationRequest, adapter: Path | None) -> np.ndarray:
    """The same picture by diffusers alone; every argument that a 32-pixel Kontext needs."""
    pipe = FluxKontextPipeline.from_pretrained(resolve("critters", "generator"))
    if adapter is not None:
        pipe.load_lora_weights(str(adapter))
    result = pipe(
        image=Image.open(request.references[0]),
        prompt=PROMPT,
        height=32,
        width=32,
        max_area=32 * 32,
        _auto_resize=False,
        num_inference_steps=4,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(3),
        return_dict=False,
    )
    return np.asarray(result[0][0])


def test_a_trained_adapter_gives_the_same_picture_here_and_in_plain_diffusers(
    request_for: GenerationRequest, adapter: Path, tmp_path: Path
):
    (tuned,) = write_pictures(replace(request_for, adapter=adapter, steps=None), tmp_path / "tuned")
    (base,) = write_pictures(request_for, tmp_path / "base")
    assert np.array_equal(pixels(tuned), plain_diffusers(request_for, adapter))
    # Without an adapter our noise levels are computed in float64, the pipeline's in float32.
    assert np.abs(pixels(base).astype(int) - plain_diffusers(request_for, None)).max() <= 1
    assert np.abs(pixels(base).astype(int) - pixels(tuned)).max() > 10


def test_every_reference_with_every_prompt_and_seed(
    request_for: GenerationRequest, samples: list[Sample], tmp_path: Path
):
    second = tmp_path / "second.png"
    samples[1].reference_images()[0].save(second)
    request = replace(
        request_for, references=[*request_for.references, second], prompts=[PROMPT, "鳥"], seeds=[0, 5], steps=1
    )
    written = list(write_pictures(request, tmp_path / "out" / "deep"))
    assert [path.name for path in written] == [
        f"{number:03d}-{reference}-{prompt}-{seed}.png"
        for number, (reference, prompt) in enumerate(
            [
                ("mein-kr-tchen", "a-critter-on-the-beach-at-the-left-weari"),
                ("mein-kr-tchen", ""),
                ("second", "a-critter-on-the-beach-at-the-left-weari"),
                ("second", ""),
            ]
        )
        for seed in (0, 5)
    ]
    assert len({pixels(path).tobytes() for path in written}) == 8
    assert all(Image.open(path).size == (32, 32) for path in written)


def test_a_picture_does_not_depend_on_the_other_seeds(request_for: GenerationRequest, tmp_path: Path):
    (alone,) = write_pictures(request_for, tmp_path / "alone")
    *_, last = write_pictures(replace(request_for, seeds=[1, 2, 3]), tmp_path / "among")
    assert np.array_equal(pixels(alone), pixels(last))


def test_compare_shows_reference_base_and_tuned(request_for: GenerationRequest, adapter: Path, tmp_path: Path):
    request = replace(request_for, adapter=adapter, steps=None)
    tuned, row = write_pictures(request, tmp_path / "out", compare=True)
    assert row.name == tuned.name.replace(".png", "-compare.png")
    # Three squares of 256 with gaps of 6, enlarged eightfold without smoothing, under an 18 pixel title.
    page = pixels(row)
    shown = [page[18 : 18 + 256, x : x + 256][4::8, 4::8] for x in (0, 262, 524)]
    assert np.array_equal(shown[0], np.asarray(Image.open(request.references[0])))
    assert np.array_equal(shown[2], pixels(tuned))
    (base,) = write_pictures(replace(request, adapter=_without_weights(adapter, tmp_path)), tmp_path / "base")
    assert np.array_equal(shown[1], pixels(base))
    assert not np.array_equal(shown[1], shown[2])


def _without_weights(adapter: Path, tmp_path: Path) -> Path:
    """The adapter's settings with weights of zero: the base on the adapter's schedule."""
    from safetensors.torch import load_file, save_file

    folder, name = tmp_path / "empty", "pytorch_lora_weights.safetensors"
    folder.mkdir()
    (folder / "sampling.json").write_bytes((adapter / "sampling.json").read_bytes())
    save_file({key: torch.zeros_like(w) for key, w in load_file(adapter / name).items()}, folder / name)
    return folder


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_the_adapters_unless_given(request_for: GenerationRequest, adapter: Path):
    trained = SamplingSettings(4, "checkpoint", 2.5, 32, 32, 16)
    asked = replace(request_for, adapter=adapter, steps=None)
    assert asked.settings() == trained
    assert replace(asked, steps=7, size=64).settings() == replace(trained, num_steps=7, height=64, width=64)


def test_settings_without_adapter_are_the_models(request_for: GenerationRequest, guided_checkpoint: Path):
    critters = replace(request_for, steps=None).settings()
    assert replace(critters, guidance=2.5) == SamplingSettings.of(
        load_config("critters")
    )  # the built-in model has no guidance
    kontext = replace(request_for, steps=None, model=str(guided_checkpoint)).settings()
    assert kontext == SamplingSettings(28, "checkpoint", None, 512, 512, 512)  # the family's own guidance


def test_size_and_steps_reach_the_picture(request_for: GenerationRequest, tmp_path: Path):
    (four,) = write_pictures(request_for, tmp_path / "four")
    (two,) = write_pictures(replace(request_for, steps=2), tmp_path / "two")
    (large,) = write_pictures(replace(request_for, size=48), tmp_path / "large")
    assert not np.array_equal(pixels(four), pixels(two))
    assert pixels(large).shape == (48, 48, 3)


def test_an_adapter_brings_its_model(request_for: GenerationRequest, adapter: Path, tmp_path: Path):
    """And the type of its weights: a user need not know that FLUX does not fit into memory in float32."""
    config = adapter / "config.yaml"
    shutil.copytree(resolve("critters", "generator"), tmp_path / "mine")
    text = config.read_text().replace("path: critters", f"path: {tmp_path / 'mine'}")
    config.write_text(text.replace("dtype: float32", "dtype: bfloat16"))
    asked = replace(request_for, adapter=adapter, model=None, steps=None)
    assert (asked.base().path, asked.base().dtype) == (str(tmp_path / "mine"), "bfloat16")
    otherwise = replace(asked, model="critters", dtype="float32").base()
    assert (otherwise.path, otherwise.dtype) == ("critters", "float32")
    (half,) = write_pictures(asked, tmp_path / "half")
    (full,) = write_pictures(replace(asked, dtype="float32"), tmp_path / "full")
    assert 0 < np.abs(pixels(half).astype(int) - pixels(full)).mean() < 5


def test_text_encoders_stay_on_the_cpu_as_in_training(
    request_for: GenerationRequest, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = adapter / "config.yaml"
    config.write_text(config.read_text().replace("offload_text_encoders: false", "offload_text_encoders: true"))
    policies: list[FluxKontextPolicy] = []
    sigmas = FluxKontextPolicy.sigmas

    def seen(policy: FluxKontextPolicy, *schedule: Any) -> Tensor:
        policies.append(policy)
        return sigmas(policy, *schedule)

    monkeypatch.setattr(FluxKontextPolicy, "sigmas", seen)
    list(write_pictures(replace(request_for, adapter=adapter, model=None), tmp_path / "out"))
    assert [policy.encoder.offload for policy in policies] == [True]


def test_an_adapter_from_elsewhere_needs_its_model_named(request_for: GenerationRequest, adapter: Path):
    (adapter / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"has no config\.yaml, which would name its model; name it with --model"):
        replace(request_for, adapter=adapter, model=None).base()
    assert replace(request_for, adapter=adapter, model="some/FLUX").base().dtype == "bfloat16"


def test_a_run_can_be_named_instead_of_its_adapter(request_for: GenerationRequest, adapter: Path, tmp_path: Path):
    (of_the_run,) = write_pictures(replace(request_for, adapter=adapter.parent), tmp_path / "run")
    (of_the_adapter,) = write_pictures(replace(request_for, adapter=adapter), tmp_path / "adapter")
    assert np.array_equal(pixels(of_the_run), pixels(of_the_adapter))


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "complaint"), [("references", "--reference"), ("prompts", "--prompt")])
def test_references_and_prompts_are_required(field: str, complaint: str, request_for: GenerationRequest):
    with pytest.raises(ValueError, match=complaint):
        replace(request_for, **{field: []})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"references": [Path("/no/such.png")]}, "/no/such.png: no such file or directory; check the path"),
        ({"adapter": Path("/no/such")}, "no adapter in /no/such"),
        ({"model": "/no/such"}, "no model in /no/such"),
        ({"size": 30}, "30x30 pixels; this model needs multiples of 4"),
        ({"device": "gpu"}, "no device is named 'gpu'"),
    ],
)
def test_missing_and_unusable_input_is_named(
    change: dict[str, object], complaint: str, request_for: GenerationRequest, tmp_path: Path
):
    with pytest.raises(ValueError, match=complaint):
        list(write_pictures(replace(request_for, **change), tmp_path / "out"))


def test_prompts_are_lines_that_end_at_line_feeds_only(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("one\u2028prompt\r\n\n  another \n", encoding="utf-8", newline="")
    assert read_prompts(tmp_path / "prompts.txt") == ["one\u2028prompt", "another"]
    (tmp_path / "prompts.txt").write_bytes("\ufeffa dog\ron\r\n\r\na\x0cb\x85c\u2028d\n\x0c\n".encode())
    assert read_prompts(tmp_path / "prompts.txt") == ["a dog", "on", "a\x0cb\x85c\u2028d"]


def test_no_picture_is_overwritten(request_for: GenerationRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (picture,) = write_pictures(request_for, tmp_path / "out")
    before = picture.read_bytes()
    monkeypatch.setattr(generate, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=rf"{picture} exists; name another folder with --output"):
        list(write_pictures(replace(request_for, seeds=[2, 3], steps=1), tmp_path / "out"))
    assert picture.read_bytes() == before


def test_a_missing_adapter_is_named_before_the_model_is_loaded(
    request_for: GenerationRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(generate, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="no adapter in"):
        list(write_pictures(replace(request_for, adapter=tmp_path, model="critters"), tmp_path / "out"))


@pytest.mark.parametrize("named", ["mine", "mine/my_dog.safetensors"])
def test_an_adapter_may_have_a_name_of_its_own(
    named: str, request_for: GenerationRequest, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (usual,) = write_pictures(replace(request_for, adapter=adapter, steps=None), tmp_path / "usual")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapter, "mine")
    Path("mine", ADAPTER_FILE).rename("mine/my_dog.safetensors")
    (own,) = write_pictures(replace(request_for, adapter=Path(named), steps=None), tmp_path / "own")
    assert np.array_equal(pixels(own), pixels(usual))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("", r"holds 2 safetensors files \(a\.safetensors, b\.safetensors\); name the file of the adapter"),
        (
            "c.pt",
            r"c\.pt is a pickle, which is never read: it could run any program; save the adapter as \.safetensors",
        ),
        ("d.txt", r"no adapter in .*d\.txt: .*; save the adapter as \.safetensors"),
    ],
)
def test_a_file_that_is_no_adapter_or_not_the_only_one_is_named(
    named: str, message: str, request_for: GenerationRequest, tmp_path: Path
):
    for name in ("a.safetensors", "b.safetensors", "c.pt", "d.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=message):
        replace(request_for, adapter=tmp_path / named).found_adapter()


def test_compare_needs_an_adapter(request_for: GenerationRequest, tmp_path: Path):
    with pytest.raises(ValueError, match="name the adapter with --adapter"):
        list(write_pictures(request_for, tmp_path / "out", compare=True))


@pytest.fixture
def of_klein(tmp_path: Path, make_config: Callable[..., RunConfig]) -> Callable[..., Path]:
    """An adapter of the undistilled FLUX.2-klein in `tmp_path / "base"`, with the settings of its run."""

    def make(*overrides: str) -> Path:
        path = tiny_models.saved(tiny_models.klein(), tmp_path / "base")
        sizes = ("model.height=64", "model.width=64", "model.max_sequence_length=32")
        config = make_config(f"model.path={path}", "model.guidance=4", "evaluation.num_steps=25", *sizes, *overrides)
        policy = load_policy(config.model, "cpu")
        policy.add_adapter(2, 2.0)
        policy.save_adapter(tmp_path / "tuned")
        (tmp_path / "tuned" / CONFIG).write_text(dump_config(config))
        (tmp_path / "tuned" / SAMPLING).write_text(json.dumps(asdict(SamplingSettings.of(config))))
        return tmp_path / "tuned"

    return make


def test_an_adapter_of_the_base_is_used_on_the_distilled_model_as_that_is(
    of_klein: Callable[..., Path], tmp_path: Path
):
    adapter = of_klein("model.dtype=float32")
    distilled = tiny_models.saved(tiny_models.klein(distilled=True), tmp_path / "distilled")
    choice = ModelChoice(model=str(distilled), adapter=adapter, device="cpu")
    assert (choice.settings().guidance, choice.settings().num_steps) == (None, 4)
    assert list(choice.notes()) == [f"{distilled} is distilled: no guidance, and 4 steps; --steps sets another number"]
    assert replace(choice, steps=7).settings().num_steps == 7
    policy: Any = Generator.load(choice).policy
    assert policy.guidance == 1
    for model in (None, str(tmp_path / "base")):
        own = replace(choice, model=model)
        assert (own.settings().guidance, own.settings().num_steps, list(own.notes())) == (4, 25, [])
    assert replace(choice, adapter=None).settings().num_steps == 4


def test_another_precision_than_in_training_is_not_quantised(of_klein: Callable[..., Path]):
    adapter = of_klein("model.dtype=bfloat16", "model.quantise=int8")
    choice = ModelChoice(model=None, adapter=adapter, device="cpu", dtype="float32")
    assert (choice.base().dtype, choice.base().quantise) == ("float32", None)
    assert list(choice.notes()) == ["the model is in float32, not in int8 as in training"]
    same = replace(choice, dtype="bfloat16")
    assert (same.base().quantise, list(same.notes())) == ("int8", [])
