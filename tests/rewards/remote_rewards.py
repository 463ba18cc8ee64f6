"""The two remote rewards, each with a server that answers it, behind one interface for the tests."""

import json
from abc import ABC, abstractmethod
from base64 import b64decode
from io import BytesIO
from typing import Any

import numpy as np
import torch
from loopback import Handler, Loopback, Reply, status
from PIL import Image

from customized_grpo.data import Sample
from customized_grpo.rewards.remote import RemoteReward
from customized_grpo.rewards.remote_settings import HttpSettings, RemoteSettings, VlmJudgeSettings

CPU = torch.device("cpu")
SCORES = [0, 0.25, 0.5, 0.75, 1]
GREY = torch.tensor(SCORES)[:, None, None, None].expand(5, 3, 8, 8)  # five plain images, each as bright as its score


def picture(red: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, (red, 0, 0))


def decoded(png: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(png))))


SAMPLES = [
    Sample(
        f"s{i}", "dog", f'a "dog" in {i}', (picture(10 * i),), (picture(10 * i + 1), picture(1)), class_word="corgi"
    )
    for i in range(5)
]


class Remote(ABC):
    """A remote reward that sends one image per request, and the replies of its server."""

    name: str
    path: str  # what the settings add to the server's address

    @abstractmethod
    def settings(self, server: Loopback | str, **settings: Any) -> RemoteSettings: ...

    @abstractmethod
    def image(self, body: Any) -> np.ndarray:
        """The generated image in a request."""

    @abstractmethod
    def answer(self, handler: Handler, score: float) -> None: ...

    def make(self, server: Loopback | str, **settings: Any) -> Any:
        usual: dict[str, Any] = {"timeout": 10, "retries": 1}
        reward = self.settings(server, **usual | settings).make(CPU)
        assert isinstance(reward, RemoteReward)
        return reward

    def score(self, body: Any) -> float:
        """The right score of the image in a request."""
        return round(float(self.image(body).mean()) / 255 * 4) / 4

    def by_grey(self, handler: Handler, body: Any) -> None:
        """The right reply, so that every score shows whose it is."""
        self.answer(handler, self.score(body))


class Http(Remote):
    name, path = "http", "/score"

    def settings(self, server: Loopback | str, **settings: Any) -> HttpSettings:
        usual: dict[str, Any] = {"url": f"{address(server)}{self.path}", "batch": 1}
        return HttpSettings(**usual | settings)

    def image(self, body: Any) -> np.ndarray:
        (sample,) = body["samples"]
        return decoded(sample["image"])

    def answer(self, handler: Handler, score: float) -> None:
        handler.send({"scores": [score]})


class Judge(Remote):
    name, path = "vlm_judge", "/v1"

    def settings(self, server: Loopback | str, **settings: Any) -> VlmJudgeSettings:
        usual: dict[str, Any] = {"base_url": f"{address(server)}{self.path}", "model": "vlm", "judges": "identity"}
        return VlmJudgeSettings(**usual | settings)

    def image(self, body: Any) -> np.ndarray:
        return decoded_part(parts(body)[-1])

    def answer(self, handler: Handler, score: float) -> None:
        grade(int(score * 4))(handler, None)


def address(server: Loopback | str) -> str:
    return server if isinstance(server, str) else server.url


def parts(body: Any) -> list[dict[str, Any]]:
    """The parts of the one message that a judge is sent."""
    ((message),) = body["messages"]
    assert message["role"] == "user"
    return message["content"]


def decoded_part(part: dict[str, Any]) -> np.ndarray:
    prefix, png = part["image_url"]["url"].split(",")
    assert prefix == "data:image/png;base64"
    return decoded(png)


def completion(content: Any, *, finish: str = "stop", refusal: str | None = None, **further: str) -> Reply:
    """A chat completion with this content and further fields of its message."""
    message = {"role": "assistant", "content": content, "refusal": refusal, **further}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    reply = {"id": "c", "object": "chat.completion", "created": 0, "model": "vlm", "choices": [choice]}
    return status(200, reply, Content_Type="application/json")


def grade(number: Any) -> Reply:
    return completion(json.dumps({"reason": "it looks like that", "grade": number}))


REMOTES = {remote.name: remote for remote in (Http(), Judge())}


def assert_retried(remote: Remote, server: Loopback, message: str, cause: str, **settings: Any) -> None:
    """The server fails three times: two tries lose an image, the third costs nothing because the fourth succeeds."""
    reward = remote.make(server, retries=1, **settings)
    assert reward(GREY[4:], SAMPLES[4:]).isnan().all()
    assert len(server.requests) == 2
    assert reward.last_error.startswith(f"{server.url}{remote.path}: ")
    assert message in reward.last_error
    assert "\n" not in reward.last_error
    assert reward.unscored == {cause: 1}
    assert reward(GREY[4:], SAMPLES[4:]).tolist() == [1]
    assert len(server.requests) == 4
    assert reward.unscored == {cause: 1}
