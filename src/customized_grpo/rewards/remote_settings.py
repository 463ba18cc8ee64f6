"""The settings of rewards behind a server, free of torch and of HTTP clients."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import model_validator

from customized_grpo.errors import UsageError
from customized_grpo.fields import Count, Index, NonNegative
from customized_grpo.rewards.secrets import Url, Variable
from customized_grpo.rewards.settings import Measures, Name, RewardSettings, Seconds

if TYPE_CHECKING:
    import torch

    from customized_grpo.rewards.base import Reward
    from customized_grpo.rewards.remote import Connection


class RemoteSettings(RewardSettings):
    """Rewards behind a server. Keys come from the environment and are never part of the settings."""

    remote = True
    api_key_env: Variable | None = None
    """Environment variable that holds the key, sent as a Bearer token; null sends none."""
    timeout: Seconds = 60.0
    """Seconds that one request may take."""
    retries: Index = 2
    """Further tries of a request that may still succeed."""
    in_flight: Count = 8
    """Requests at a time, over all batches of a process."""

    def connection(self, url: str) -> Connection:
        """How the server is asked. Raises UsageError if the key's variable is not set."""
        from customized_grpo.rewards.remote import Connection, read_key

        return Connection(
            url, read_key(self.api_key_env, self.name), self.timeout, retries=self.retries, in_flight=self.in_flight
        )

    def own_fields(self, *others: str) -> dict[str, Any]:
        """The settings of this reward alone, without those of all rewards or all remote ones, and without `others`."""
        return self.model_dump(exclude={*RemoteSettings.model_fields, *others})


class HttpSettings(RemoteSettings):
    """Any scorer behind the JSON interface of `rewards/http.py`."""

    name: Name = "http"
    url: Url
    """Address that requests are posted to, without user, password or key."""
    batch: Count = 8
    """Images per request."""
    send: Literal["none", "references", "other_views", "all"] = "references"
    """Pictures that are sent in addition to the image."""
    max_side: Count = 1024
    """Pixels of a reference's or view's longer side; larger ones are shrunk, the image itself never is."""
    low: float | None = None
    """Lowest possible score; anything below counts as out of range, not as a score."""
    high: float | None = None
    """Highest possible score; anything above counts as out of range, not as a score."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g})")
        return self

    @property
    def scoring(self) -> str:
        return f"{super().scoring} path={urlsplit(self.url).path}"  # one server may have several scorers

    def make(self, device: torch.device) -> Reward:  # noqa: ARG002 (the server has its own)
        from customized_grpo.rewards.http import HttpReward

        return HttpReward(self.connection(self.url), **self.own_fields("url"))


class VlmJudgeSettings(RemoteSettings):
    """Grades by a vision-language model behind an OpenAI-compatible server."""

    name: Name = "vlm_judge"
    base_url: Url
    """Address of the server up to and including /v1, without user, password or key."""
    model: str
    """The model's name on the server."""
    judges: Literal["identity", "prompt"]
    """Which of the two rubrics the model grades by."""
    max_side: Count = 768
    """Pixels of a picture's longer side; larger pictures are shrunk."""
    structured: Literal["schema", "prompt"] = "schema"
    """Whether a JSON schema forces the form of the answer, or only the prompt asks for it."""
    temperature: NonNegative | None = 0.0
    """Sampling temperature; null leaves it to the server, for models that accept no other."""

    @property
    def measures(self) -> Measures:
        return self.judges

    def make(self, device: torch.device) -> Reward:  # noqa: ARG002 (the server has its own)
        if find_spec("openai") is None:
            raise UsageError('reward "vlm_judge": openai is not installed; pip install "customized-grpo[judge]"')
        from customized_grpo.rewards.vlm_judge import Judge

        return Judge(self.connection(self.base_url), **self.own_fields("base_url"))
