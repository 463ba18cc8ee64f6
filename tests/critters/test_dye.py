"""The world of dyes: what is drawn, what the oracle reads, samples, tokens and a short build."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from customized_grpo.config import load_config
from customized_grpo.critters import metrics, oracle, world
from customized_grpo.critters.build import models
from customized_grpo.critters.build import pictures as pics
from customized_grpo.critters.build.stages import dino_loss, fit
from customized_grpo.critters.samples import (
    DEVELOPMENT_CRITTERS,
    TEST_CRITTERS,
    case_of,
    draw_samples,
    seen_situations,
    unseen_situations,
)
from customized_grpo.critters.weights import FOLDERS
from customized_grpo.critters.world import DYED, Situation
from customized_grpo.data.sources import NAMES
from customized_grpo.fields import BUILT_IN

Case = tuple[int, Situation]
THRESHOLD = 0.05
PROMPTS = [situation.prompt for situation in DYED.situations]


def random_cases(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(4_000_000, 5_000_000)), DYED.situations[rng.integers(160)]) for _ in range(count)]


def judge(picture: np.ndarray, case: Case) -> tuple[bool, bool]:
    return oracle.judge(picture, *case, THRESHOLD)


def in_dye(situation: Situation, dye: str) -> Situation:
    return replace(situation, dye=dye)


def another_dye(situation: Situation) -> str:
    return {"no": "red", "red": "yellow", "yellow": "blue", "blue": "red"}[situation.dye or ""]


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_dye_is_half_of_every_cells_colour_and_nothing_else_changes():
    plain, red = (world.draw(5, DYED.situation("snow", "left", dye)).astype(int) for dye in ("no", "red"))
    scene = world.background("snow")
    own = (plain != scene).any(axis=-1)
    assert own.sum() > 100
    np.testing.assert_array_equal(plain[~own], red[~own])
    np.testing.assert_array_equal(red[own], (plain[own] + [220, 30, 40] + 1) // 2)
    assert ((red == [238, 143, 148]).all(axis=-1)).sum() == 2 * 4  # two eyes, (255 + 220 + 1) // 2 and so on


def test_colours_are_far_from_every_scene_after_any_dye():
    scenes = np.array([c for s in world.SCENES.values() for c in (s.sky, s.ground, s.accent)], float)
    for critter in range(200):
        for dye in world.DYES:
            figure = world.figure(critter, DYED.situation("snow", "left", dye))
            colours = np.unique(figure[figure[..., 3] > 0][:, :3], axis=0).astype(float)
            white = world.dyed(np.full(4, 255, np.uint8), dye)[:3]
            body = colours[(colours != white).any(axis=1)]
            assert np.linalg.norm(body[:, None] - scenes, axis=-1).min() > 54  # 55 before rounding


def test_its_critters_are_not_those_of_the_other_world():
    assert all((world.sprite(n) != world.sprite(n, dyeable=True)).any() for n in range(50))


def test_there_are_160_situations_with_different_prompts_and_pictures():
    assert len(set(DYED.situations)) == len(set(PROMPTS)) == 160
    assert not {*PROMPTS} & {situation.prompt for situation in world.SITUATIONS}
    for number in (0, 7, 42):
        assert len({world.draw(number, situation).tobytes() for situation in DYED.situations}) == 160


@pytest.mark.parametrize(
    ("situation", "prompt"),
    [
        (DYED.situation("beach", "left", "red"), "a critter on the beach, at the left, tinted red"),
        (DYED.situation("night", "centre", "no"), "a critter at night, in the centre, not tinted"),
        (DYED.reference("fabric"), "a critter on pink fabric, in the centre, not tinted"),
    ],
)
def test_prompts_are_exact(situation: Situation, prompt: str):
    assert situation.prompt == prompt


# --- the oracle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", world.SCENES)
@pytest.mark.parametrize("dye", world.DYES)
def test_every_situation_is_read_and_every_critter_known(scene: str, dye: str):
    for place in world.PLACES:
        for number in range(0, 1000, 111):
            wanted = DYED.situation(scene, place, dye)
            picture = world.draw(number, wanted)
            assert oracle.read(picture).shows(wanted)
            assert oracle.known_by(picture, number, DYED) == (0, dye)


def test_a_thousand_random_true_pictures_are_all_right():
    assert all(judge(world.draw(*case), case) == (True, True) for case in random_cases(0, 1000))


def test_a_little_noise_changes_no_verdict():
    rng = np.random.default_rng(1)
    for case in random_cases(1, 100):
        noisy = world.draw(*case) + rng.normal(0, 12, (32, 32, 3))
        assert judge(noisy.clip(0, 255).round().astype(np.uint8), case) == (True, True)


def another_of_its_dyes(case: Case) -> tuple[np.ndarray, tuple[bool, bool]]:
    return world.draw(case[0], in_dye(case[1], another_dye(case[1]))), (True, False)


def wrong_place(case: Case) -> tuple[np.ndarray, tuple[bool, bool]]:
    place = "left" if case[1].place != "left" else "right"
    return world.draw(case[0], replace(case[1], place=place)), (True, False)


def another_critter(case: Case) -> tuple[np.ndarray, tuple[bool, bool]]:
    return world.draw(case[0] + 1, case[1]), (False, True)


def another_critter_in_another_dye(case: Case) -> tuple[np.ndarray, tuple[bool, bool]]:
    return world.draw(case[0] + 1, in_dye(case[1], another_dye(case[1]))), (False, False)


def copied_reference(case: Case) -> tuple[np.ndarray, tuple[bool, bool]]:
    scene = "night" if case[1].scene != "night" else "snow"
    return world.draw(case[0], DYED.reference(scene)), (True, False)


def empty_scene(case: Case) -> tuple[np.ndarray, tuple[bool, bool]]:
    return world.background(case[1].scene), (False, False)


def only_its_eyes_dyed(case: Case) -> tuple[np.ndarray, tuple[bool, bool]]:
    """The body says what the dye is, where it is this critter's."""
    plain = world.draw(case[0], in_dye(case[1], "no"))
    dyed = world.draw(case[0], case[1])
    eyes = (plain == 255).all(axis=-1)
    plain[eyes] = dyed[eyes]
    return plain, (True, case[1].dye == "no")


@pytest.mark.parametrize(
    "failure",
    [
        another_of_its_dyes,
        wrong_place,
        another_critter,
        another_critter_in_another_dye,
        copied_reference,
        empty_scene,
        only_its_eyes_dyed,
    ],
)
def test_failures_have_known_answers(failure: Callable[[Case], tuple[np.ndarray, tuple[bool, bool]]]):
    for case in random_cases(2, 100):
        picture, verdict = failure(case)
        assert judge(picture, case) == verdict


def test_other_critters_are_far_away_and_nearer_after_a_dye():
    cases = random_cases(6, 400)
    errors = np.array([oracle.known_by(world.draw(number, s), number + 1, DYED)[0] for number, s in cases])
    dyed = np.array([wanted.dye != "no" for _, wanted in cases])
    assert errors[~dyed].min() > THRESHOLD
    assert (errors[dyed] <= THRESHOLD).mean() <= 0.02
    assert errors[~dyed].mean() > 0.3 > errors[dyed].mean() > 0.15


# --- samples and metrics ---------------------------------------------------------------------------------------------


def test_samples_have_dyes_and_no_hats():
    samples = draw_samples(200, DEVELOPMENT_CRITTERS, 0, source="critters-dye")
    assert {sample.extra["dye"] for sample in samples} == {*world.DYES}
    assert not any("hat" in sample.extra for sample in samples)
    assert {situation.prompt for situation in seen_situations(DYED)} >= {sample.prompt for sample in samples}
    views = set()
    for sample in samples:
        number = sample.extra["critter"]
        (reference,), (view,) = (map(np.asarray, s) for s in (sample.reference_images(), sample.other_view_images()))
        assert oracle.known_by(reference, number, DYED) == (0, "no")
        error, dye = oracle.known_by(view, number, DYED)
        assert error == 0
        views.add(dye)
        assert oracle.read(reference).scene != oracle.read(view).scene
    assert views == {*world.DYES}


def test_rl_never_sees_a_fifth_of_the_situations():
    seen, unseen = seen_situations(DYED), unseen_situations(DYED)
    assert (len(seen), len(unseen)) == (128, 32)
    assert {*seen, *unseen} == {*DYED.situations}


def test_metrics_judge_each_sample_in_its_own_world(monkeypatch: pytest.MonkeyPatch):
    thresholds = {"critters": 0.0919, "critters-dye": THRESHOLD}
    monkeypatch.setattr(metrics, "identity_threshold", thresholds.__getitem__)
    samples = [*draw_samples(8, TEST_CRITTERS, 5), *draw_samples(8, TEST_CRITTERS, 5, source="critters-dye")]
    cases = [case for sample in samples if (case := case_of(sample))]
    assert len(cases) == 16
    pictures = [world.draw(*case) for case in cases]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    assert metrics.joint_success(images, samples).tolist() == [1] * 16
    swapped = [
        replace(sample, extra=other.extra) for sample, other in zip(samples, [*samples[8:], *samples[:8]], strict=True)
    ]
    assert metrics.joint_success(images, swapped).tolist() == [0] * 16


@pytest.mark.parametrize("fields", [{"dye": None}, {"dye": "green"}, {"hat": "red"}, {"dye": ["red"]}])
def test_fields_that_describe_no_dyed_critter(fields: dict[str, object]):
    (sample,) = draw_samples(1, DEVELOPMENT_CRITTERS, 6, source="critters-dye")
    assert case_of(sample) is not None
    assert case_of(replace(sample, extra={**sample.extra, **fields})) is None


# --- settings and models ---------------------------------------------------------------------------------------------


def test_every_name_of_a_world_is_known_everywhere():
    assert {*BUILT_IN} == {*world.WORLDS} == {*FOLDERS}
    assert {*NAMES} >= {*BUILT_IN}


def test_its_own_models_are_the_usual_ones():
    config = load_config("critters", ["data.source=critters-dye", "model.path=critters-dye"])
    assert config.device == load_config("critters").device
    assert {reward.own_model for reward in config.trained().values()} == {"critters-dye"}
    assert config.resolve(config.evaluation.metrics[0]).own_model is None


def test_every_word_of_every_prompt_is_one_token():
    clip, t5 = models.clip_tokenizer(DYED), models.t5_tokenizer(DYED)
    for prompt in PROMPTS:
        parts = prompt.replace(",", " ,").split()
        assert clip.tokenize(prompt) == [f"{part}</w>" for part in parts]
        assert t5.tokenize(prompt) == [part if part == "," else f"▁{part}" for part in parts]
        assert len(t5(prompt).input_ids) <= models.TEXT_TOKENS
        assert len(clip(prompt).input_ids) <= models.CLIP_TOKENS


def test_targets_of_the_base_are_dyed_as_the_prompt_says():
    kinds = ["faithful", "copied", "drifted", "wrong"] * 10
    data = pics.quadruples(np.random.default_rng(1), kinds, DYED)
    by_prompt = {situation.prompt: situation for situation in DYED.situations}
    for target, prompt, kind in zip(data.targets, data.prompts, kinds, strict=True):
        picture = ((target + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        assert oracle.read(picture).shows(by_prompt[prompt]) == (kind in ("faithful", "drifted"))


def test_the_identity_encoder_is_trained_to_see_dyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A dyed critter is pushed and pulled into a range of its own: with one that cannot be met, the loss is larger."""
    from customized_grpo.critters.build import stages

    vae = models.pipeline(DYED).vae.requires_grad_(False)
    losses = []
    for between in ((-2.0, 2.0), (2.0, 2.0)):
        monkeypatch.setattr(stages, "DYED_BETWEEN", between)
        torch.manual_seed(0)
        dino = models.dino()
        loss = dino_loss(dino, vae, batch=4, of=DYED)
        losses.append(fit(f"dino-{between[0]}", [dino], loss, steps=1, lr=1e-3, seed=0, directory=tmp_path)["loss"])
    assert losses[1] > losses[0] + 5
