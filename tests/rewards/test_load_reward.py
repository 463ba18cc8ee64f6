import subprocess
import sys

import pytest
import torch

from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.critters.weights import FOLDER
from customized_grpo.rewards import REWARDS, load_reward

CPU = torch.device("cpu")


def test_an_unknown_name_is_refused_with_the_known_ones():
    known = "dino, clip_t, copy_paste, oracle_identity, oracle_prompt, joint_success"
    with pytest.raises(ValueError, match=f"^no reward is named 'clip-t'; known: {known}$"):
        load_reward("clip-t", "critters", "reference", CPU)


@pytest.mark.parametrize("name", REWARDS)
def test_every_name_gives_one_number_an_image(name: str):
    samples = draw_samples(3, TEST_CRITTERS, 2)
    reward = load_reward(name, "critters", "reference", CPU)
    scores = reward(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), samples)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert scores.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize(("name", "part"), [("dino", "dino"), ("copy_paste", "dino"), ("clip_t", "clip")])
def test_a_folder_serves_as_well_as_the_built_in_name(name: str, part: str):
    samples = draw_samples(3, TEST_CRITTERS, 3)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    built_in, folder = (load_reward(name, model, "reference", CPU) for model in ("critters", FOLDER / part))
    assert torch.equal(built_in(images, samples), folder(images, samples))


def test_identity_is_compared_with_what_was_asked_for():
    samples = draw_samples(3, TEST_CRITTERS, 4)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    reference, view = (load_reward("dino", "critters", against, CPU) for against in ("reference", "other_view"))
    assert (reference(images, samples) - view(images, samples)).abs().max() > 1e-3


def test_knowing_the_names_loads_no_heavy_library():
    code = "import sys, customized_grpo.rewards; print({'torch', 'transformers', 'diffusers'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
