"""FLUX.1-dev with UNO, against numbers that UNO's own public code computed: see uno/README.md."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import tiny_models
from customized_grpo.policies.conditions import EncodedSamples, Entry
from customized_grpo.policies.uno import UnoPolicy, to_long_side
from customized_grpo.sections import Model

THEIRS = Path(__file__).with_name("uno")
ADAPTER = THEIRS / "dit_lora.safetensors"
GRIDS = {"one": ((3, 5),), "three": ((3, 5), (5, 2), (2, 2))}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their transformer in a checkpoint of FLUX.1-dev. Only the transformer is used."""
    transformer = FluxTransformer2DModel.from_pretrained(THEIRS / "transformer")
    return tiny_models.saved(tiny_models.flux_dev(transformer), tmp_path_factory.mktemp("uno"))


@pytest.fixture(scope="module")
def cases() -> dict[str, Tensor]:
    return load_file(THEIRS / "cases.safetensors")


def policy_of(checkpoint: Path, adapter: Path | None = ADAPTER, **further: Any) -> UnoPolicy:
    """With pictures of 4 x 3 tokens, as in the cases: the VAE of this checkpoint makes tokens of 4 pixels."""
    settings = {"height": 16, "width": 12, "max_sequence_length": 16, "dtype": "float32"}
    path = str(checkpoint)
    model = Model(path=path, family="uno", base_adapter=adapter and str(adapter), **settings, **further)
    return UnoPolicy.load(path, model, "cpu")


def condition_of(cases: dict[str, Tensor], name: str) -> EncodedSamples:
    entries = tuple(
        Entry(
            {
                "text": cases["text"][n],
                "pooled": cases["pooled"][n],
                "reference": cases[f"{name}.reference_tokens"][n],
            },
            GRIDS[name],
        )
        for n in range(2)
    )
    return EncodedSamples(entries, 16, 12)


def velocity(policy: UnoPolicy, cases: dict[str, Tensor], name: str, sigma: float = 0.7) -> Tensor:
    with torch.no_grad():
        return policy.velocity(cases[f"{name}.image_tokens"], sigma, condition_of(cases, name))


@pytest.mark.parametrize("name", ["one", "three"])
def test_velocities_are_theirs(name: str, checkpoint: Path, cases: dict[str, Tensor]):
    ours = velocity(policy_of(checkpoint), cases, name)
    torch.testing.assert_close(ours, cases[f"{name}.velocity_uno"], atol=1e-5, rtol=0)
    base = velocity(policy_of(checkpoint, adapter=None), cases, name)
    torch.testing.assert_close(base, cases[f"{name}.velocity_base"], atol=1e-5, rtol=0)
    assert (ours - base).abs().max() > 0.01


def test_guidance_and_time_are_theirs(checkpoint: Path, cases: dict[str, Tensor]):
    ours = velocity(policy_of(checkpoint, guidance=4.0), cases, "one", sigma=1.0)
    torch.testing.assert_close(ours, cases["one.velocity_uno_at_sigma_1_guidance_4"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["one", "three"])
def test_positions_and_packing_are_theirs(name: str, checkpoint: Path, cases: dict[str, Tensor]):
    policy = policy_of(checkpoint)
    expected = torch.cat([cases[f"{name}.image_ids"], cases[f"{name}.reference_ids"]])
    assert torch.equal(policy.positions((4, 3), GRIDS[name]), expected)
    tokens = policy.pipe._pack_latents(cases["latents"], *cases["latents"].shape)
    assert torch.equal(tokens, cases[f"{name}.image_tokens"])


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((1000, 600), 512, (512, 304)),  # 512 x 307.2
        ((600, 1000), 512, (304, 512)),
        ((500, 500), 320, (320, 320)),
        ((200, 100), 512, (512, 256)),  # enlarged
        ((1000, 10), 320, (320, 16)),  # too flat for one token: stretched to it
    ],
)
def test_references_keep_their_aspect(size: tuple[int, int], side: int, expected: tuple[int, int]):
    assert to_long_side(Image.new("RGB", size), side, 16).size == expected


def test_a_reference_is_cropped_at_the_centre():
    picture = Image.new("RGB", (512, 300))
    picture.paste((255, 0, 0), (0, 6, 512, 294))  # the 288 rows in the middle
    assert to_long_side(picture, 512, 16).getcolors() == [(512 * 288, (255, 0, 0))]


def test_the_schedule_counts_patches_as_their_demo_does(checkpoint: Path):
    """16 tokens for 512 x 512 pixels at a scale of 8: mu = .5 + (16 - 256) (1.15 - .5) / (4096 - 256) = .459."""
    policy = policy_of(checkpoint)
    policy.height = policy.width = 64 * policy.scale
    assert policy.dynamic_shift(25) == pytest.approx(0.459375)
