"""All rewards of a run on the images of an update: remote ones work while later images are still being generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.errors import RunError
from customized_grpo.rewards import Reward
from customized_grpo.runtime.distributed import Processes

# Why an image has no score; `rewards/remote.py` says what each means.
CAUSES = ("no_answer", "refused", "bad_reply", "null", "out_of_range")


class RewardError(RunError, RuntimeError):
    """A reward that does not keep to its contract; the message says which and what it gave."""


class Scorer:
    """Scores images by every reward: local ones all images at once, remote ones each batch as soon as it is there."""

    def __init__(self, rewards: Mapping[str, Reward]):
        self.rewards = rewards
        self.remote = {name: reward for name, reward in rewards.items() if getattr(reward, "remote", False)}
        self._pool = ThreadPoolExecutor(thread_name_prefix="reward") if self.remote else None
        self._begun: dict[str, list[Future[Tensor]]] = {}

    def begin(self, images: Tensor, samples: Sequence[Sample]) -> None:
        """Hand a batch [n, 3, H, W], on the CPU, to the remote rewards; batches come in the order of the images."""
        if self._pool is not None:
            for name, reward in self.remote.items():
                work = self._pool.submit(score, name, reward, images, samples)
                self._begun.setdefault(name, []).append(work)

    def finish(self, images: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Scores [N] by reward for all the images [N, 3, H, W]; waits for what was begun."""
        begun, self._begun = self._begun, {}
        scores = {
            name: score(name, reward, images, samples) for name, reward in self.rewards.items() if name not in begun
        }
        scores |= {name: torch.cat([work.result() for work in works]) for name, works in begun.items()}
        return {name: scores[name] for name in self.rewards}

    @contextmanager
    def abort_remote_on_error(self) -> Iterator[None]:
        """Whatever ends the block early also ends what remote rewards wait for: the program can leave at once."""
        try:
            yield
        except BaseException:
            for reward in self.remote.values():
                getattr(reward, "close", lambda: None)()
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
            raise

    def unscored_by_remote(self, processes: Processes) -> dict[str, Any]:
        """{"lost": images that remote rewards could not score since the start, by reward and cause}; {} for none."""
        counted = [getattr(reward, "unscored", {}) for reward in self.remote.values()]
        here = torch.tensor([[float(causes.get(cause, 0)) for cause in CAUSES] for causes in counted])
        found = {}
        for name, row in zip(self.remote, processes.sum(here).tolist(), strict=True):
            if any(row):
                found[name] = {cause: int(images) for cause, images in zip(CAUSES, row, strict=True) if images}
        return {"lost": found} if found else {}

    def discard(self) -> None:
        """What was begun is not wanted any more: the update that it belongs to is done again."""
        self._begun = {}

    def check(self, scores: Mapping[str, Tensor], limit: float) -> None:
        """Refuse to go on where a reward scores too little: what is left would be trained on as if it were all.

        Raises RewardError, with the reward's last words, where more than `limit` of the images of [..., N] are NaN in
        one reward, or in one or another: an image that any reward could not score is not trained on.
        """
        for name, values in scores.items():
            share = values.isnan().double().mean().item()
            if share > limit:
                why = getattr(self.rewards[name], "last_error", None) or "check-rewards shows what it can score"
                raise RewardError(
                    f"rewards.{name} could not score {share:.0%} of {values.numel()} images, and max_unscored is "
                    f"{limit:g}: {why}"
                )
        lost = torch.stack(list(scores.values())).isnan().any(dim=0).double().mean().item()
        if lost > limit:  # each reward alone may be within the limit
            raise RewardError(
                f"{lost:.0%} of the images lack the score of one reward or another ({', '.join(scores)}), and "
                f"max_unscored is {limit:g}; check-rewards shows what each can score"
            )


def score(name: str, reward: Reward, images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Scores [N] in float32, NaN where an image could not be scored.

    Where memory runs out it gets the images in halves. Raises RewardError where the reward returns anything but one
    finite number or NaN per image.
    """
    try:
        found = reward(images, samples)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
        found = None
    if found is None:  # outside of `except`, which keeps the failed call's tensors alive
        middle = len(images) // 2
        halves = (slice(None, middle), slice(middle, None))
        return torch.cat([score(name, reward, images[half], samples[half]) for half in halves])
    if not isinstance(found, Tensor):
        raise RewardError(f"reward {name!r} returned {type(found).__name__}; return a tensor [{len(images)}]")
    if found.shape != (len(images),):
        raise RewardError(f"reward {name!r} returned shape {tuple(found.shape)} for {len(images)} images; return [N]")
    if not found.is_floating_point():
        found = found.to(torch.float32)
    if found.isinf().any():
        raise RewardError(f"reward {name!r} returned an infinity; return NaN for an image that could not be scored")
    return found.detach().cpu()
