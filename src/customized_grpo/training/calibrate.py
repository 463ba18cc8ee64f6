"""What the rewards of a run give to bad and to good pictures: kept from before, given as a file, or measured now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from customized_grpo.calibration.file import (
    CalibrationError,
    RewardCalibration,
    as_calibrations,
    calibrated_rewards,
)
from customized_grpo.calibration.known_pictures import Cases, cases_of, with_prompt, wrong_prompts
from customized_grpo.calibration.levels import Levels, base_levels, describe, known_levels, measured_rewards
from customized_grpo.calibration.scored_pictures import Candidate, judge
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.data.subsets import subset
from customized_grpo.files.notices import print_line
from customized_grpo.policies.base import Policy
from customized_grpo.rewards import Reward
from customized_grpo.rewards.scoring import score
from customized_grpo.runtime.distributed import Processes
from customized_grpo.training.evaluation import generate_cases

CASES = 64  # samples whose known pictures are scored, at most
PROMPTS = 8  # samples of which the base makes a group, at most
ROWS = {"identity": ("other_view", "other_subject"), "prompt": ("right_prompt", "wrong_prompt")}


def measure_missing(
    config: RunConfig,
    known: Mapping[str, RewardCalibration],
    samples: Sequence[Sample],
    rewards: Mapping[str, Reward],
    policy: Policy,
    processes: Processes,
) -> dict[str, RewardCalibration]:
    """The calibrations of all identity and prompt rewards: those that are known, and the others measured now.

    samples   of the run: their pictures are scored, and the base draws their prompts
    policy    with an adapter that changes nothing yet

    The first process measures. Raises CalibrationError, in every process, for a reward that cannot tell good from bad.
    """
    settings = {key: each for key, each in calibrated_rewards(config).items() if key not in known}
    if not settings:
        return dict(known)
    levels: dict[str, Levels] = {}
    if processes.main:
        cases = cases_of(config.data, samples, CASES)
        candidates = [Candidate.of(f"rewards.{key}", rewards[key], each, key) for key, each in settings.items()]
        levels = _of_known_pictures(config, cases, candidates)
    incomplete = [key for key in settings if not (key in levels and levels[key].complete)] if processes.main else []
    if processes.any(bool(incomplete)) and (processes.main or config.model.shard):  # sharded: every pass needs all
        shown = subset(samples, PROMPTS)
        images = _base_groups(config, policy, shown, bar=processes.main)
        for key in incomplete:
            found = _of_base(f"rewards.{key}", rewards[key], str(settings[key].role), images, shown)
            levels[key] = levels[key].or_else(found)
    levels = processes.from_main(levels)
    if processes.main:
        for key, each in levels.items():
            print_line(describe(key, each))
    if unknown := [key for key, each in levels.items() if not each.complete]:
        raise CalibrationError("\n".join(map(_unscored, unknown, [rewards[key] for key in unknown])))
    measured = {key: each.model_dump() for key, each in measured_rewards(levels, settings).items()}
    return {**known, **as_calibrations(measured, "calibration")}


def _of_known_pictures(config: RunConfig, cases: Cases, candidates: Sequence[Candidate]) -> dict[str, Levels]:
    size, batch = (config.model.width, config.model.height), config.groups.rollout_batch
    levels = {str(candidate.key): Levels() for candidate in candidates}
    for quality, rows in ROWS.items():
        chosen = [candidate for candidate in candidates if candidate.quality == quality]
        if not chosen or (quality == "prompt" and not cases.prompt_known):
            continue
        with_copy = any(candidate.against == "other_view" for candidate in chosen)  # see known_levels
        for judged in judge(cases, chosen, size, batch, (*rows, "copy") if with_copy else rows):
            levels[str(judged.candidate.key)] = known_levels(judged)
    return levels


def _base_groups(config: RunConfig, policy: Policy, samples: Sequence[Sample], *, bar: bool) -> Tensor:
    """Images of the base [P, G, 3, H, W] in [0, 1], drawn as for a user, each from noise of its own."""
    size, batch = config.groups.size, config.groups.rollout_batch
    sigmas = policy.sigmas(config.sampling.num_steps, config.sampling.shift)
    cases = [(sample, index) for sample in samples for index in range(size)]
    starts = tqdm(range(0, len(cases), batch), desc="the base's groups", disable=not bar, leave=False)
    images = [generate_cases(policy, sigmas, cases[start : start + batch]) for start in starts]
    return torch.cat(images).unflatten(0, (len(samples), size))


def _of_base(name: str, reward: Reward, quality: str, images: Tensor, samples: Sequence[Sample]) -> Levels:
    """The levels of a reward on the base's groups [P, G, 3, H, W]."""
    pairs, size = list(zip(samples, wrong_prompts(samples), strict=True)), images.shape[1]
    wrong = [with_prompt(sample, prompt) for sample, prompt in pairs if prompt is not None]

    def scores(of: Sequence[Sample]) -> Tensor:
        each = [sample for sample in of for _ in range(size)]
        return score(name, reward, images.flatten(0, 1), each).unflatten(0, images.shape[:2])

    own = scores(samples)
    has_wrong = quality == "prompt" and len(wrong) == len(samples)  # all or none
    mismatched = scores(wrong) if has_wrong else torch.full_like(own, torch.nan)
    return base_levels(quality, own, mismatched, [sample.subject for sample in samples])


def _unscored(key: str, reward: Reward) -> str:
    reason = getattr(reward, "last_error", None) or "check-rewards shows what it can score"
    return f"rewards.{key} could score no picture that it could be calibrated with: {reason}"
