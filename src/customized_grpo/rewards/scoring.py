"""All rewards of a run on the images of an update; remote ones work while later images are still being generated."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.errors import RunError
from customized_grpo.rewards.base import Cause, Reward
from customized_grpo.runtime.distributed import Processes
from customized_grpo.wording import counted


class RewardError(RunError, RuntimeError):
    """A reward failed or broke its contract. The message names the reward and what it returned or raised."""


class Reasons:
    """Warns once per reward why it could not score some images."""

    def __init__(self):
        self._told: set[str] = set()

    def tell(self, name: str, reward: Reward, otherwise: str | None = None) -> None:
        """Warn that `reward` gave NaN, with its latest failure or else `otherwise`; silent if there is neither."""
        reason = getattr(reward, "last_error", None) or otherwise
        if reason is not None and name not in self._told:
            self._told.add(name)
            warnings.warn(f"{name} could not score some images: {reason}", stacklevel=2)


class Scorer:
    """Scores images by every reward: local rewards all images at once, remote ones each batch as soon as it exists."""

    def __init__(self, rewards: Mapping[str, Reward]):
        self.rewards = rewards
        self.remote = {name: reward for name, reward in rewards.items() if getattr(reward, "remote", False)}
        self._pool = ThreadPoolExecutor(thread_name_prefix="reward") if self.remote else None
        self._pending: dict[str, list[Future[Tensor]]] = {}
        self._before = self._counts()  # when the update began
        self._reasons = Reasons()
        self._discarded: dict[str, Counter[str]] = {name: Counter() for name in self.remote}

    def start(self) -> None:
        """An update begins, or is repeated after `discard`."""
        self._before = self._counts()

    def begin(self, images: Tensor, samples: Sequence[Sample]) -> None:
        """Start the remote rewards on a batch [n, 3, H, W] on the CPU. Batches come in the order of the images."""
        if self._pool is not None:
            for name, reward in self.remote.items():
                future = self._pool.submit(score, name, reward, images, samples)
                self._pending.setdefault(name, []).append(future)

    def finish(self, images: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Scores [N] by reward for all images [N, 3, H, W]; waits for the batches that `begin` started."""
        pending = self._pending
        scores = {
            name: score(name, reward, images, samples) for name, reward in self.rewards.items() if name not in pending
        }
        scores |= {name: torch.cat([future.result() for future in futures]) for name, futures in pending.items()}
        self._pending = {}
        return {name: scores[name] for name in self.rewards}

    @contextmanager
    def abort_remote_on_error(self) -> Iterator[None]:
        """If the block raises, stop remote rewards from waiting any longer, so that the program can exit at once."""
        try:
            yield
        except BaseException:
            for reward in self.remote.values():
                getattr(reward, "close", lambda: None)()
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
            raise

    def unscored_by_remote(self, processes: Processes) -> dict[str, Any]:
        """{"lost": images without a score since the start, by remote reward and cause}; {} if there are none."""
        causes = get_args(Cause)
        by_reward = [counts - self._discarded[name] for name, counts in self._counts().items()]
        counts = torch.tensor([[float(unscored.get(cause, 0)) for cause in causes] for unscored in by_reward])
        lost = {}
        for name, row in zip(self.remote, processes.sum(counts).tolist(), strict=True):
            if any(row):
                lost[name] = {cause: int(images) for cause, images in zip(causes, row, strict=True) if images}
        return {"lost": lost} if lost else {}

    def discard(self) -> None:
        """Forget the batches that were started: their update is repeated, and their images are counted then.

        Waits for those that are being scored, which would otherwise be counted later.
        """
        pending, self._pending = [future for futures in self._pending.values() for future in futures], {}
        for future in pending:
            future.cancel()
        wait(pending)
        for name, counts in self._counts().items():
            self._discarded[name] += counts - self._before[name]

    def _counts(self) -> dict[str, Counter[str]]:
        """Images without a score so far, by remote reward and cause."""
        return {name: Counter(getattr(reward, "unscored", {})) for name, reward in self.remote.items()}

    def check(self, scores: Mapping[str, Tensor], limit: float) -> None:
        """Refuse to train on what remains when too many images [..., N] could not be scored.

        An image is left out of training if any reward could not score it. Raises RewardError, with the reward's latest
        failure, if the share of NaN exceeds `limit` in one reward or in all of them together. Below it, warns once per
        reward that says why.
        """
        for name, values in scores.items():
            share = values.isnan().double().mean().item()
            if share > limit:
                reason = getattr(self.rewards[name], "last_error", None) or "check-rewards shows what it can score"
                raise RewardError(
                    f"rewards.{name} could not score {share:.0%} of {values.numel()} images, and max_unscored is "
                    f"{limit:g}: {reason}"
                )
            if share:
                self._reasons.tell(f"rewards.{name}", self.rewards[name])
        lost = torch.stack(list(scores.values())).isnan().any(dim=0).double().mean().item()
        if lost > limit:  # each reward alone may be within the limit
            raise RewardError(
                f"{lost:.0%} of the images lack the score of at least one reward ({', '.join(scores)}), and "
                f"max_unscored is {limit:g}; check-rewards shows what each can score"
            )


def score(name: str, reward: Reward, images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Scores [N] as floating-point numbers on the CPU, NaN for images that could not be scored.

    A reward that runs out of memory gets the images in halves. Raises RewardError if the reward returns anything but
    one finite number or NaN per image.
    """
    scores: Any = None
    out_of_memory = False
    try:
        scores = reward(images, samples)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
        out_of_memory = True
    if out_of_memory:  # not inside `except`, which keeps the failed call's tensors alive
        middle = len(images) // 2
        halves = (slice(None, middle), slice(middle, None))
        return torch.cat([score(name, reward, images[half], samples[half]) for half in halves])
    if not isinstance(scores, Tensor):
        raise RewardError(f"reward {name!r} returned {type(scores).__name__}; return a tensor [{len(images)}]")
    if scores.shape != (len(images),):
        given = counted(len(images), "image")
        raise RewardError(f"reward {name!r} returned shape {tuple(scores.shape)} for {given}; return [N]")
    if not scores.is_floating_point():
        scores = scores.to(torch.float32)
    if scores.isinf().any():
        raise RewardError(f"reward {name!r} returned an infinity; return NaN for an image that could not be scored")
    scores = scores.detach().cpu().clone()  # a reward may write its next scores into the same tensor
    broken = ~images.isfinite().flatten(1).all(dim=1).cpu()
    if broken.any():  # as PNG they would be black
        warnings.warn(
            f"{counted(int(broken.sum()), 'image')} not scored: NaN or infinities in the pixels", stacklevel=2
        )
        scores[broken] = torch.nan
    return scores
