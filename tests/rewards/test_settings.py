"""Rewards by name, in one line and in a configuration."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from customized_grpo.config import ConfigError, load_config
from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.critters.weights import FOLDER
from customized_grpo.rewards.by_name import REWARDS, parse_reward
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.rewards.settings import OwnFunctionSettings, RewardSettings

CPU = torch.device("cpu")
BUILT_IN = [name for name, kind in REWARDS.items() if kind.encoder or name in ("oracle_identity", "joint_success")]


# --- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_reward_of_the_built_in_world_gives_one_number_per_image(name: str):
    samples = draw_samples(3, TEST_CRITTERS, 2)
    reward = parse_reward(name).make(CPU)
    scores = reward(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), samples)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert scores.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize(("name", "part"), [("dino", "dino"), ("copy_paste", "dino"), ("clip_t", "clip")])
def test_the_folder_of_the_built_in_encoder_gives_the_same_scores_as_its_name(name: str, part: str):
    samples = draw_samples(3, TEST_CRITTERS, 3)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    built_in, folder = (parse_reward(f"{name} model={model}").make(CPU) for model in ("critters", FOLDER / part))
    assert torch.equal(built_in(images, samples), folder(images, samples))


def test_against_chooses_what_the_image_is_compared_with():
    samples = draw_samples(3, TEST_CRITTERS, 4)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    reference, view = (parse_reward(f"dino against={against}").make(CPU) for against in ("reference", "other_view"))
    assert (reference(images, samples) - view(images, samples)).abs().max() > 1e-3


def test_settings_load_no_heavy_library():
    code = "import sys, customized_grpo.rewards.by_name; print({'torch', 'transformers', 'openai'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("kind", [*REWARDS.values(), OwnFunctionSettings], ids=lambda kind: kind.__name__)
def test_every_setting_is_described(kind: type[RewardSettings]):
    """In one sentence: docs/configuration.md is made of them."""
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert ". " not in field.description, name


# --- in a line -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["dino", "dino model=some/where against=other_view", "clip_t batch=3"])
def test_a_line_is_read_back_unchanged(line: str):
    assert str(parse_metric(line)) == line


def test_the_label_leaves_out_the_model():
    assert parse_reward("dino model=some/where against=other_view").label == "dino against=other_view"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dno", "no reward is named 'dno'; did you mean 'dino'?"),
        ("dino agianst=reference", "agianst: unknown key; did you mean 'against'?"),
        ("dino against=there", "against: input should be 'reference' or 'other_view', not 'there'"),
        ("", "no reward is named ''"),
        ("dino model='a b", '"dino model=\'a b" has a quotation mark that is not closed'),
    ],
)
def test_a_wrong_line_is_refused_with_the_reason_and_an_example(line: str, message: str):
    with pytest.raises(ConfigError) as error:
        parse_metric(line)
    assert message in str(error.value)
    assert str(error.value).endswith("write for instance 'dino against=other_view'")


# --- in a configuration ----------------------------------------------------------------------------------------------


def rewards(*overrides: str) -> dict[str, RewardSettings]:
    return load_config("critters", overrides).trained()


def test_there_are_always_identity_and_prompt():
    assert {key: (reward.name, reward.role, reward.own_model) for key, reward in rewards().items()} == {
        "identity": ("dino", "identity", "critters"),
        "prompt": ("clip_t", "prompt", "critters"),
    }


def test_any_number_of_rewards_each_with_a_role():
    several = rewards(
        "rewards.view={name: dino, against: other_view, role: identity}",
        "rewards.look={name: clip_t, role: quality, weight: .2}",
    )
    assert [(key, reward.role) for key, reward in several.items()] == [
        ("identity", "identity"),
        ("prompt", "prompt"),
        ("view", "identity"),
        ("look", "quality"),
    ]


def test_photographs_are_not_scored_by_the_built_in_encoder():
    config = load_config("critters", ["model.path=some/model", "data.source=photographs.json"])
    assert {key: reward.own_model for key, reward in config.trained().items()} == {
        "identity": "facebook/dinov2-base",
        "prompt": "openai/clip-vit-base-patch32",
    }


def test_a_metric_uses_the_model_of_the_reward_with_the_same_kind_of_encoder():
    config = load_config("critters", ["rewards.identity.model=some/dino", "rewards.prompt.model=some/clip"])
    assert config.resolve(parse_metric("copy_paste")).own_model == "some/dino"
    assert config.resolve(parse_metric("clip_t")).own_model == "some/clip"
    assert config.resolve(parse_metric("dino model=other/dino")).own_model == "other/dino"


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "dino", "model": "/my models/dino", "against": "other_view"},
        {"name": "clip_t", "model": "it's here"},
        {
            "name": "vlm_judge",
            "base_url": "http://localhost:8000/v1",
            "model": "qwen",
            "judges": "prompt",
            "temperature": None,
        },
    ],
)
def test_settings_are_read_back_from_their_line(settings: dict[str, Any]):
    reward = parse_reward(settings)
    assert parse_reward(str(reward)) == reward


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rewards.look.name=dino", "rewards.look.role: is missing; set it to identity, prompt or quality"),
        ("rewards.look={role: quality, weight: 1}", "rewards.look: a reward needs a name; known: dino, "),
        ("rewards.quality.name=clip_t", "rewards.quality.weight: is missing; a quality reward needs a weight, for"),
        ("rewards.prompt.weight=.2", "rewards.prompt.weight: only for quality rewards"),
        (
            "rewards.prompt.role=identity",
            "rewards.prompt.role: must be prompt under this key, not identity; choose",
        ),
        ("rewards.identity.name=dno", "rewards.identity.name: no reward is named 'dno'; did you mean 'dino'?"),
        ("rewards.identity.agianst=x", "rewards.identity.agianst: unknown key; did you mean 'against'?"),
        ("rewards={'a/b': {name: dino, role: identity}}", "rewards.a/b: the key becomes part of file names"),
        ("evaluation.metrics=[{name: dino, role: identity}]", "dino is not trained on; remove its role and weight"),
        ("rewards=3", "rewards: write keys with values, such as {key: value}, not 3"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(override: str, message: str):
    with pytest.raises(ConfigError) as error:
        load_config("critters", [override])
    assert message in str(error.value)
