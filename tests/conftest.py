"""The built-in model, settings small enough for a test, and the parts of a run that many tests need."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may download anything; huggingface_hub reads this when it is imported

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor

from chromium import chromium
from customized_grpo.config import RunConfig, load_config
from customized_grpo.critters import samples as critters
from customized_grpo.critters.build import models
from customized_grpo.critters.weights import resolve
from customized_grpo.data import Sample
from customized_grpo.policies.base import Targets
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.rewards import Reward, build
from customized_grpo.sections import Model
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer
from program import Refusal

torch.set_num_threads(1)
# A shell that starts the tests in the background ignores SIGINT for them, and for every program that they start.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = Path(__file__).with_name("tiny.yaml")
LONGEST = ("test_first_hour.py", "test_tutorial_page.py", "test_compiled.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: one that begins last keeps the other processes of pytest-xdist waiting."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def built_in_rewards() -> list[Reward]:
    """Kept until the end, so that the runs of all tests share their encoders and do not load them again each time."""
    return [build("dino model=critters"), build("clip_t model=critters")]


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    return critters.draw_samples(12, critters.TRAINING_CRITTERS, 0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """The settings of tiny.yaml with overrides; the run goes to tmp_path / "run"."""

    def make(*overrides: str) -> RunConfig:
        return load_config(str(TINY), [f"output={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture
def make_trainer(make_config: Callable[..., RunConfig]) -> Callable[..., Trainer]:
    """The trainer of a run with the settings of tiny.yaml and overrides."""

    def make(*overrides: str, resume: bool = False) -> Trainer:
        return assemble(make_config(*overrides), resume=resume)

    return make


@pytest.fixture
def make_policy() -> Callable[..., FluxKontextPolicy]:
    """The built-in generator, with an adapter if a rank is given."""

    def make(
        path: str | Path = "critters",
        *,
        rank: int | None = None,
        alpha: float = 16.0,
        targets: Targets = None,
        seed: int = 0,
        share_qkv: bool = False,
        height: int = 32,
        width: int = 32,
        max_sequence_length: int = models.TEXT_TOKENS,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "cpu",
        shard: bool = False,
        **further: Any,
    ) -> FluxKontextPolicy:
        size = {"height": height, "width": width, "max_sequence_length": max_sequence_length}
        model = Model(path=str(path), dtype=dtype, **size, **further)
        policy = FluxKontextPolicy.load(resolve(path, "generator"), model, device, shard=shard)
        if rank is not None:
            policy.add_adapter(rank, alpha, targets, seed=seed, share_qkv=share_qkv)
        return policy

    return make


@pytest.fixture(scope="session")
def excite() -> Callable[[FluxKontextPolicy], None]:
    """Sets the weights of a new adapter so that it changes the pictures, as training would."""

    def set_weights(policy: FluxKontextPolicy) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in policy.trainable_parameters().items():
                if "lora_B" in name:
                    weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))

    return set_weights


@pytest.fixture(scope="session")
def adapter_of() -> Callable[[FluxKontextPolicy], Tensor]:
    """A copy of all weights of an adapter, flattened."""
    return lambda policy: torch.cat([w.detach().flatten().clone() for w in policy.trainable_parameters().values()])


@pytest.fixture(scope="session")
def guided_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with what FLUX.1-Kontext-dev has and the built-in generator does not: embedded guidance, a schedule
    that depends on the picture's size, a VAE with shift and scale. Random weights, in diffusers' format."""
    torch.manual_seed(0)
    pipe = models.pipeline()
    config = dict(pipe.transformer.config) | {"guidance_embeds": True}
    pipe.register_modules(
        transformer=FluxTransformer2DModel.from_config(config),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
    )
    pipe.vae.register_to_config(shift_factor=0.1159, scaling_factor=0.3611)
    folder = tmp_path_factory.mktemp("guided")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Starts the program in tmp_path with input that it must refuse, and returns the message."""
    return Refusal(tmp_path, monkeypatch, capsys)
