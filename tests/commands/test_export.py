"""`customized-grpo export` as a user starts it; that other programs read the files, tests/policies/ shows."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny_models
from customized_grpo.commands.generate import Generator, ModelChoice
from customized_grpo.commands.push import PushRequest, stage
from customized_grpo.config import CONFIG, RunConfig, dump_config
from customized_grpo.data import Sample
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.policies.adapter_file import PEFT_CONFIG
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.run.sampling_settings import SAMPLING
from customized_grpo.sharing.card import CARD
from customized_grpo.training.trainer import Trainer
from program import Answer, Refusal, start

LAYER = "single_transformer_blocks.0.attn.to_q"
Save = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: start(("export", *arguments), monkeypatch, capsys)


@pytest.fixture
def save(make_policy: Callable[..., FluxKontextPolicy], excite: Callable[..., None], tmp_path: Path) -> Save:
    """Writes an adapter of the built-in model, and beside it the configuration of a run if there is one."""

    def write(name: str, config: RunConfig | None = None, **settings: object) -> Path:
        policy = make_policy(**{"rank": 4, "alpha": 6.0, **settings})
        excite(policy)
        policy.save_adapter(tmp_path / name)
        if config is not None:
            (tmp_path / name / CONFIG).write_text(dump_config(config))
        return tmp_path / name

    return write


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_run_is_exported_in_each_format(
    run: Callable[..., Answer], make_trainer: Callable[..., Trainer], tmp_path: Path
):
    make_trainer("updates=1", "evaluation.every=0").train()
    for name, files in {
        "comfyui": {"run-comfyui.safetensors"},
        "diffusers": {ADAPTER_FILE, CARD, CONFIG, SAMPLING},
        "peft": {PEFT_CONFIG, "adapter_model.safetensors", CARD, CONFIG, SAMPLING},
    }.items():
        answer = run("run", "--format", name)
        assert answer.code == 0, answer.error
        written = tmp_path / answer.out.removeprefix("exported: ").rstrip("\n")
        assert written.parent == tmp_path / "exported"
        assert {file.name for file in (written.iterdir() if written.is_dir() else [written])} == files
    (tmp_path / "usual").touch()
    weights = [*tmp_path.rglob("*.safetensors")]
    assert len(weights) >= 5  # exported, the run's adapter, and its checkpoint with the optimiser
    for file in weights:  # others may read them as they may read any file: safetensors makes them private
        assert file.stat().st_mode == (tmp_path / "usual").stat().st_mode, file


def test_comfyui_finds_the_scale_in_the_weights(run: Callable[..., Answer], save: Save, tmp_path: Path):
    """Alpha 6 and rank 4: every number of B grows by a half, and nothing else says so."""
    adapter = save("adapter")
    assert run(adapter, "--format", "comfyui", "--output", "loras/mine.safetensors").code == 0
    before, after = load_file(adapter / ADAPTER_FILE), load_file(tmp_path / "loras" / "mine.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert name.startswith("transformer.")
        torch.testing.assert_close(tensor, before[name] * (1.5 if "lora_B" in name else 1), atol=0, rtol=1e-6)
    with safe_open(tmp_path / "loras" / "mine.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_equal_adapters_are_equal_files(run: Callable[..., Answer], save: Save, tmp_path: Path):
    adapter = save("adapter")
    for name in ("comfyui", "diffusers", "peft"):
        outputs = [tmp_path / f"{name}-{number}.safetensors" for number in range(3)]
        for output in outputs:
            assert run(adapter, "--format", name, "--output", output).code == 0
        contents = [
            {file.name: file.read_bytes() for file in (output.iterdir() if output.is_dir() else [output])}
            for output in outputs
        ]
        assert all(list(each.values()) == list(contents[0].values()) for each in contents)


def as_kohya(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {"lora_A": "lora_down", "lora_B": "lora_up"}
    parts = {name: name.removeprefix("transformer.").rsplit(".", 2) for name in tensors}
    return {f"lora_unet_{s.replace('.', '_')}.{names[p]}.{e}": tensors[n] for n, (s, p, e) in parts.items()}


def test_no_weights_are_needed(run: Callable[..., Answer], save: Save, tmp_path: Path):
    """Names of other programs need the model's configuration alone."""
    adapter = save("adapter", alpha=4.0)
    save_file(as_kohya(load_file(adapter / ADAPTER_FILE)), tmp_path / "kohya.safetensors")
    checkpoint = tiny_models.saved(tiny_models.models.pipeline(), tmp_path / "model")
    for weights in checkpoint.rglob("*.safetensors"):
        weights.unlink()
    answer = run("kohya.safetensors", "--format", "diffusers", "--model", checkpoint)
    assert answer.code == 0, answer.error
    exported = load_file(tmp_path / "exported" / "kohya-diffusers" / ADAPTER_FILE)
    expected = load_file(adapter / ADAPTER_FILE)
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def test_published_models_need_not_be_here(run: Callable[..., Answer], tmp_path: Path):
    """A laptop without FLUX.1-Kontext-dev knows how diffusers divides its fused layer."""
    stem = "lora_unet_double_blocks_18_img_attn_qkv"
    pair = {f"{stem}.lora_down.weight": torch.ones(1, 3072), f"{stem}.lora_up.weight": torch.ones(9216, 1)}
    save_file(pair, tmp_path / "kohya.safetensors")
    model = ("--model", "black-forest-labs/FLUX.1-Kontext-dev")
    answer = run("kohya.safetensors", "--format", "comfyui", "--output", "out.safetensors", *model)
    assert answer.code == 0, answer.error
    layers = {name.rsplit(".", 2)[0] for name in load_file(tmp_path / "out.safetensors")}
    assert layers == {f"transformer.transformer_blocks.18.attn.to_{part}" for part in "qkv"}


# --- with the base adapter -------------------------------------------------------------------------------------------


@pytest.fixture
def on_base(save: Save, make_config: Callable[..., RunConfig]) -> Path:
    base = save("base", rank=2, alpha=3.0)
    return save("on-base", make_config(f"model.base_adapter={base}"))


def test_without_its_base_a_run_says_what_it_needs(run: Callable[..., Answer], on_base: Path, tmp_path: Path):
    answer = run(on_base, "--format", "comfyui", "--output", "alone.safetensors")
    (note,) = answer.error.splitlines()
    assert note.startswith(f"note: the adapter works on a model with {tmp_path / 'base'} fused into it; --with-base ")
    answer = run(on_base, "--format", "comfyui", "--with-base", "--output", "both.safetensors")
    assert (answer.code, answer.error) == (0, "")
    for options, says in (
        ((), "**It needs another adapter.** "),
        (("--with-base",), "It holds the weights of `base` too"),
    ):
        assert run(on_base, "--format", "diffusers", "--output", f"folder{len(options)}", *options).code == 0
        card = (tmp_path / f"folder{len(options)}" / CARD).read_text()
        assert says in card
        assert ("pipe.fuse_lora()" in card) == (not options)
    alone, both = (load_file(tmp_path / name) for name in ("alone.safetensors", "both.safetensors"))
    assert alone.keys() == both.keys()
    name = f"transformer.{LAYER}.lora_A.weight"
    assert (alone[name].shape[0], both[name].shape[0]) == (4, 6)


def test_generate_draws_the_same_from_what_was_exported(
    run: Callable[..., Answer], on_base: Path, samples: list[Sample], tmp_path: Path
):
    """The base adapter is in the weights or in the model, and never in both."""
    for name, options in {"alone": (), "both": ("--with-base",)}.items():
        assert run(on_base, "--format", "diffusers", "--output", name, *options).code == 0
    assert run(on_base, "--format", "peft", "--output", "peft", "--with-base").code == 0
    (tmp_path / "staged").mkdir()
    stage(PushRequest(on_base, "ann/rex", with_base=True), tmp_path / "staged")

    def drawn(adapter: Path) -> Tensor:
        generator = Generator.load(ModelChoice(model=None, adapter=adapter, device="cpu", steps=3))
        return generator.image(generator.policy.encode([samples[0]]), 1)

    expected = drawn(on_base)
    for name in ("alone", "both", "peft", "staged"):
        torch.testing.assert_close(drawn(tmp_path / name), expected, atol=2e-3, rtol=0)


def test_a_base_that_is_not_there(refused: Refusal, on_base: Path, save: Save, make_config: Callable[..., RunConfig]):
    (on_base.parent / "base" / ADAPTER_FILE).unlink()
    message = refused.line("export", on_base, "--format", "peft", "--with-base")
    assert message.startswith(f"--with-base: the run's model.base_adapter {on_base.parent / 'base'} is not here; ")
    without = save("without", make_config())
    for adapter in (without, save("unknown")):
        assert refused.line("export", adapter, "--format", "peft", "--with-base") == (
            f"--with-base: {adapter} was trained without model.base_adapter; leave the option out"
        )


def test_magnitudes_cannot_be_added(refused: Refusal, on_base: Path):
    base = on_base.parent / "base" / ADAPTER_FILE
    tensors = {f"{LAYER}.lora_A.weight": torch.ones(2, 64), f"{LAYER}.lora_B.weight": torch.ones(64, 2)}
    save_file({**tensors, f"{LAYER}.lora_magnitude_vector": torch.ones(64)}, base)
    message = refused.line("export", on_base, "--format", "diffusers", "--with-base")
    assert message.startswith(f"--with-base: transformer.{LAYER}.lora_magnitude_vector in {base.parent} is more than ")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--format", "peft"], "no adapter in nothing: pytorch_lora_weights.safetensors is missing"),
        (
            ["adapter", "--format", "comfyui", "--output", "."],
            "--output .: ComfyUI needs a file that ends in .safetens",
        ),
        (
            ["adapter", "--format", "peft", "--output", "adapter"],
            "adapter exists; name another with --output, or remove",
        ),
        (
            ["adapter", "--format", "peft", "--output", f"adapter/{ADAPTER_FILE}/x"],
            "--output adapter/pytorch_lora_wei",
        ),
        (
            ["bare.safetensors", "--format", "peft"],
            "bare.safetensors has another program's names of layers; name the ",
        ),
        (
            ["bare.safetensors", "--format", "peft", "--model", "nothing"],
            "nothing is neither a folder here nor a hub id",
        ),
        (
            ["bare.safetensors", "--format", "peft", "--model", "no/one"],
            "the configuration of no/one is not on this mac",
        ),
        (
            ["text.safetensors", "--format", "peft", "--model", "critters"],
            "the adapter in text.safetensors does not fit",
        ),
        (["adapter", "--format", "kohya"], "Invalid value for '--format': "),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, refused: Refusal, save: Save, tmp_path: Path):
    pair = {"lora_A.weight": torch.ones(2, 64), "lora_B.weight": torch.ones(64, 2)}
    save_file({f"{LAYER}.{part}": tensor for part, tensor in pair.items()}, tmp_path / "bare.safetensors")
    save_file({f"text_encoder.x.{part}": tensor for part, tensor in pair.items()}, tmp_path / "text.safetensors")
    save("adapter")
    assert refused.line("export", *arguments).startswith(message)


def test_layers_that_comfyui_does_not_read_are_refused(refused: Refusal, tmp_path: Path):
    checkpoint = tiny_models.saved(tiny_models.klein(), tmp_path / "klein")
    stem = "diffusion_model.single_stream_modulation.lin"
    save_file(
        {f"{stem}.lora_A.weight": torch.ones(2, 32), f"{stem}.lora_B.weight": torch.ones(96, 2)},
        tmp_path / "lora.safetensors",
    )
    message = refused.line("export", "lora.safetensors", "--format", "comfyui", "--model", checkpoint)
    assert message == (
        "--format comfyui: ComfyUI does not read single_stream_modulation.linear; export it for diffusers or peft"
    )


def test_a_text_encoder_in_a_file_of_diffusers_is_refused(refused: Refusal, save: Save):
    """Its own metadata names the layers, and yet none is left out."""
    file = save("adapter") / ADAPTER_FILE
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        head = opened.metadata()
    pair = {f"text_encoder.x.{part}": tensors[f"transformer.{LAYER}.{part}"].clone() for part in ("lora_A.weight",)}
    pair["text_encoder.x.lora_B.weight"] = tensors[f"transformer.{LAYER}.lora_B.weight"].clone()
    save_file({**tensors, **pair}, file, head)
    message = refused.line("export", "adapter", "--format", "diffusers")
    assert "text_encoder.x is a text encoder's, and only the transformer is adapted here" in message


@pytest.mark.parametrize("name", ["comfyui", "diffusers", "peft"])
def test_a_full_disk_leaves_nothing_that_looks_complete(
    name: str, run: Callable[..., Answer], save: Save, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    save("adapter")

    def full(_: Path, __: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        answer = run("adapter", "--format", name, "--output", "out.safetensors")
    assert answer.code == 1
    assert answer.error == "error: could not write out.safetensors: No space left on device\n"
    assert not (tmp_path / "out.safetensors").exists()
    assert run("adapter", "--format", name, "--output", "out.safetensors").code == 0  # what is left does not matter
    assert not list(tmp_path.glob("*.saving"))
