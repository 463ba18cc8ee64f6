"""A reward behind a small JSON interface, for scorers that cannot run in this environment.

POST to the URL, as `application/json`:

    {"version": 1, "samples": [{"id", "prompt", "class_word", "image", "references", "other_views"}, ...]}

`class_word` may be null; pictures are base64 of PNG files; `references` and `other_views` are lists, empty unless
`send` asks for them. An `id` may occur several times: it identifies the sample, not the image. The reply, with status
200:

    {"scores": [number or null, ...]}

One score per sample, in order; higher is better, null means that the image could not be scored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import httpx2
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures
from customized_grpo.rewards.remote import (
    AskError,
    Connection,
    RemoteReward,
    as_png,
    error_status,
    no_reply,
)
from customized_grpo.wording import counted

VERSION = 1  # of the interface; a server can refuse versions that it does not know
LARGEST = float(torch.finfo(torch.float32).max)


class HttpReward(RemoteReward):
    """Scores [N] from the server; NaN if it gives none or an impossible one. `unscored` counts the causes.

    The arguments after the first are the fields of `HttpSettings`, which explains them. Raises PictureError if a
    reference cannot be read.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        batch: int,
        send: Literal["none", "references", "other_views", "all"],
        max_side: int,
        low: float | None,
        high: float | None,
    ):
        super().__init__(connection)
        self._url = connection.url
        self._batch, self._send, self._max_side = batch, send, max_side
        if connection.key is not None:
            self._http.headers["Authorization"] = f"Bearer {connection.key}"
        self._low = -LARGEST if low is None else low
        self._high = LARGEST if high is None else high

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        described = {sample: self._describe(sample) for sample in samples}  # once for all images of a group
        pictures, size = to_pictures(images), self._batch
        parts = [slice(start, start + size) for start in range(0, len(pictures), size)]
        requests = [partial(self._request, pictures[part], [described[s] for s in samples[part]]) for part in parts]
        scores = torch.full((len(pictures),), torch.nan)
        for part, answer in zip(parts, self._ask_all(requests), strict=True):
            if isinstance(answer, AskError):
                self._count(answer.cause, len(pictures[part]))
            else:
                ids = [sample.id for sample in samples[part]]
                scores[part] = torch.tensor([self._checked(*pair) for pair in zip(answer, ids, strict=True)])
        return scores

    def _describe(self, sample: Sample) -> dict[str, Any]:
        """The JSON of a sample without the image."""
        send, side = self._send, self._max_side
        references = sample.reference_images() if send in ("references", "all") else []
        views = sample.other_view_images() if send in ("other_views", "all") else []
        return {
            "id": sample.id,
            "prompt": sample.prompt,
            "class_word": sample.class_word,
            "references": [as_png(picture, side) for picture in references],
            "other_views": [as_png(picture, side) for picture in views],
        }

    def _request(self, pictures: Sequence[Image.Image], described: Sequence[Mapping[str, Any]]) -> list[Any]:
        """One try: the entries of "scores", one per picture, not yet checked."""
        body = [{**sample, "image": as_png(picture)} for picture, sample in zip(pictures, described, strict=True)]
        try:
            response = self._http.post(self._url, json={"version": VERSION, "samples": body})
        except httpx2.HTTPError as error:
            raise no_reply(error, self._timeout) from error
        if not response.is_success:
            raise error_status(response)
        return _scores(response.content, len(pictures))

    def _checked(self, score: Any, sample: str) -> float:
        """The score as a float. If it is not a possible score: NaN, and the cause is counted."""
        if score is None:
            self._count("null", 1, f"sample {sample!r} was given null")
        elif isinstance(score, bool) or not isinstance(score, int | float):
            self._count("bad_reply", 1, f"sample {sample!r} was given {json.dumps(score)}, which is not a number")
        elif not self._low <= score <= self._high:  # also NaN and infinities, which Python's JSON accepts
            bounds = f"{self._low:g} to {self._high:g}"
            message = f"sample {sample!r} was given a score outside {bounds}: {json.dumps(score)}"
            self._count("out_of_range", 1, message)
        else:
            return float(score)
        return torch.nan


def _scores(body: bytes, images: int) -> list[Any]:
    """The list under "scores" in a reply. Raises AskError if there is none of the right length."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AskError("bad_reply", f"the reply is not JSON: {error}", retry=True) from error
    scores = reply.get("scores") if isinstance(reply, dict) else None
    if not isinstance(scores, list):
        message = f'the reply has no list under "scores": {body.decode(errors="replace")}'
        raise AskError("bad_reply", message, retry=True)
    if len(scores) != images:
        raise AskError("bad_reply", f"{counted(len(scores), 'score')} for {counted(images, 'image')}", retry=True)
    return scores
