"""The settings of each local reward: one class per reward, free of torch, which imports its reward only to make it.

Settings of rewards behind a server are in `remote_settings`; `by_name` lists all of them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from customized_grpo.critters.weights import resolve
from customized_grpo.fields import CRITTERS, OF_USER, Count, NonNegative, Number, PathText, Section
from customized_grpo.inputs import LARGEST
from customized_grpo.rewards.secrets import WithoutKeys

if TYPE_CHECKING:
    import torch

    from customized_grpo.data import Sample
    from customized_grpo.rewards.base import Reward

Role = Literal["identity", "prompt", "quality"]
Measures = Literal["identity", "prompt", "both", "copying", "quality"]
Encoder = Literal["dino", "clip"]

OTHER_VIEW, MASK = "other view of the subject", "mask of the subject"  # optional parts of a sample
SPEED = ("batch", "device", "timeout", "retries", "in_flight", "api_key_env")  # settings that change no score
INSTEAD = {OTHER_VIEW: "against=reference", MASK: "region=frame"}  # identity settings that do without the part

_NAME = (
    'A name from the table in docs/rewards.md, or your own "package.module:function" or "path/to/file.py:function".'
)
Name = Annotated[str, Field(description=_NAME)]  # here, because a docstring would not reach the subclasses
Seconds = Annotated[float, Number, Field(gt=0, le=LARGEST)]  # sockets and queues refuse very long times


class RewardSettings(Section):
    """What all rewards have in common."""

    encoder: ClassVar[Encoder | None] = None  # kind of the built-in encoder that can serve as `model`
    usual_model: ClassVar[str | None] = None  # hub id of the checkpoint to use if none is named
    remote: ClassVar[bool] = False  # scores elsewhere: starts while later images are still being generated

    name: Name
    role: Role | None = None
    """What the reward is for; null means its key in `rewards`, if that is a role."""
    weight: NonNegative | None = None
    """Constant weight of a "quality" reward, whose advantage is added to the shaped one."""

    @property
    def measures(self) -> Measures:
        """What the reward looks at; the user's own rewards look at what their role says."""
        return self.role or "quality"

    @property
    def own_model(self) -> str | None:
        """The model that the settings name, if any."""
        return getattr(self, "model", None)

    def with_model(self, model: str | None) -> RewardSettings:
        """A copy that uses `model`; unchanged if the reward takes no model or names one already."""
        takes = model is not None and "model" in type(self).model_fields and self.own_model is None
        return self.model_copy(update={"model": model}) if takes else self

    def as_metric(self) -> RewardSettings:
        """A copy without role and weight, to measure with."""
        return self.model_copy(update={"role": None, "weight": None})

    @property
    def label(self) -> str:
        """The line of `measurement` without the paths of models."""
        return self._line("model", "base", *SPEED)

    @property
    def measurement(self) -> str:
        """The line of `str` without what changes no score: batches, device, patience with a server."""
        return self._line(*SPEED)

    @property
    def scoring(self) -> str:
        """The line of `measurement` without the server's address: it may move between a run and its evaluation."""
        return self._line("url", "base_url", *SPEED)

    def lacking(self, sample: Sample) -> str | None:  # noqa: ARG002 (most need only prompt and reference)
        """The optional part, `OTHER_VIEW` or `MASK`, that this reward needs and the sample does not have."""
        return None

    def check(self) -> Iterator[str]:
        """Notes on what cannot be checked here: a model to download, a device elsewhere. Loads no weights.

        Raises UsageError, ModelError or OwnCodeError for what is certainly wrong.
        """
        return iter(())

    def make(self, device: torch.device) -> Reward:
        """The reward, ready to score. Raises UsageError, ModelError or OwnCodeError if it cannot be made."""
        raise NotImplementedError

    def __str__(self) -> str:
        """One line that `parse_metric` reads back: the name and the settings that differ from the defaults."""
        return self._line()

    def _line(self, *without: str) -> str:
        changed = self.model_dump(exclude_defaults=True, exclude={"name", "role", "weight", *without})
        texts = {key: "" if value is None else shlex.quote(_as_text(value)) for key, value in changed.items()}
        return " ".join([shlex.quote(self.name), *(f"{key}={text}" for key, text in texts.items())])


def _as_text(value: object) -> str:
    """A setting as a line holds it: mappings and lists as JSON, which `from_line` reads."""
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


class EncoderSettings(RewardSettings):
    """Rewards that run a model on the run's device or another."""

    model: PathText | None = None
    """Folder or hub id of the model, or "critters"; null means the built-in one for critters, else the usual one."""
    batch: Count = 64
    """Images per forward pass."""
    device: str | None = None
    """Device of the model, such as "cuda:1"; null means the run's."""

    def files(self) -> str:
        """The folder or hub id of the model. Raises UsageError for a folder that does not exist."""
        if self.encoder is None:
            return str(self.model or self.usual_model)
        return str(resolve(self.model or CRITTERS, self.encoder))

    def needed(self) -> Mapping[str, str]:
        """Folders and hub ids of models, each with a file that it must have."""
        return {self.files(): "config.json"}

    def check(self) -> Iterator[str]:
        from customized_grpo.files.pretrained import find_offline
        from customized_grpo.runtime.device import problem_here

        for model, file in self.needed().items():
            if find_offline(model, file) is None:
                yield f"{model} is not in the hub's cache on this machine and could not be checked"
        if self.device is not None and (problem := problem_here(self.device)):
            yield problem

    def place(self, device: torch.device) -> torch.device:
        """The model's device in a run on `device`. Raises UsageError if it does not exist."""
        from customized_grpo.runtime.device import usable_device

        return device if self.device is None else usable_device(self.device)


class IdentitySettings(EncoderSettings):
    """Rewards that compare the image with pictures of its subject."""

    against: Literal["reference", "other_view"] = "reference"
    """Pictures that the image is compared with: the references, or other pictures of the subject."""
    region: Literal["frame", "centre", "mask", "mask_or_frame"] = "frame"
    """Part that is compared: the whole picture, its middle, the subject as the first reference's mask shows it, or the
    subject where there is a mask and the whole first reference elsewhere."""
    over: Literal["mean", "min", "best"] = "mean"
    """How the cosines with several pictures become one score."""

    @model_validator(mode="after")
    def _masks_are_of_references(self) -> Self:
        if self.region.startswith("mask") and self.against == "other_view":
            raise ValueError(
                f"region={self.region} needs against=reference: a mask shows the subject in the first reference"
            )
        return self

    @property
    def measures(self) -> Measures:
        return "identity"

    def lacking(self, sample: Sample) -> str | None:
        if self.region == "mask":
            return MASK if sample.mask is None else None
        return OTHER_VIEW if self.against == "other_view" and not sample.other_views else None

    def comparison(self) -> dict[str, Any]:
        """The arguments of `Identity`."""
        return {"against": self.against, "region": self.region, "over": self.over, "batch": self.batch}


class DinoSettings(IdentitySettings):
    """Cosine of DINO's class tokens."""

    encoder = "dino"
    usual_model = "facebook/dinov2-base"
    name: Name = "dino"
    preprocess: Literal["checkpoint", "benchmark"] = "checkpoint"
    """How pictures are prepared: as the checkpoint says, or as DreamBooth's DINO score is measured."""

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.dino import DinoIdentity

        place = self.place(device)
        return DinoIdentity(self.files(), device=place, preprocess=self.preprocess, **self.comparison())


class ClipISettings(IdentitySettings):
    """Cosine of CLIP's image embeddings."""

    encoder = "clip"
    usual_model = "openai/clip-vit-base-patch32"
    name: Name = "clip_i"

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.clip import ClipIdentity

        return ClipIdentity(self.files(), device=self.place(device), **self.comparison())


class CopyPasteSettings(EncoderSettings):
    """How much closer the image is to the reference than to another view of the subject."""

    encoder = "dino"
    usual_model = "facebook/dinov2-base"
    name: Name = "copy_paste"

    @property
    def measures(self) -> Measures:
        return "copying"

    def lacking(self, sample: Sample) -> str | None:
        return None if sample.other_views else OTHER_VIEW

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.dino import CopyPaste

        return CopyPaste(self.files(), device=self.place(device), batch=self.batch)


class ClipTSettings(EncoderSettings):
    """Cosine of CLIP's embeddings of image and prompt."""

    encoder = "clip"
    usual_model = "openai/clip-vit-base-patch32"
    name: Name = "clip_t"

    @property
    def measures(self) -> Measures:
        return "prompt"

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.clip import ClipPrompt

        return ClipPrompt(self.files(), device=self.place(device), batch=self.batch)


class PickScoreSettings(EncoderSettings):
    """Human preference by a tuned CLIP-H."""

    usual_model = "yuvalkirstain/PickScore_v1"
    name: Name = "pickscore"
    processor: PathText | None = None
    """Folder or hub id of tokenizer and image processor; null means the model's own, or CLIP-H's if it has none."""

    @property
    def measures(self) -> Measures:
        return "prompt"

    def needed(self) -> Mapping[str, str]:
        own = {} if self.processor is None else {self.processor: "preprocessor_config.json"}
        return {**super().needed(), **own}

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.pickscore import PickScore

        return PickScore(self.files(), device=self.place(device), batch=self.batch, processor=self.processor)


class HPSv3Settings(EncoderSettings):
    """Human preference by Qwen2-VL-7B with a small head."""

    usual_model = "MizzenAI/HPSv3"
    name: Name = "hpsv3"
    base: PathText = "Qwen/Qwen2-VL-7B-Instruct"
    """Folder or hub id whose config, tokenizer and image processor are used; its weights are not."""
    batch: Count = 8
    """Images per forward pass, each of them about 800 tokens."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of all weights except the head, which is always float32."""

    @property
    def measures(self) -> Measures:
        return "prompt"

    def needed(self) -> Mapping[str, str]:
        return {self.files(): "HPSv3.safetensors", self.base: "config.json"}

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.hpsv3 import HPSv3

        place = self.place(device)
        return HPSv3(self.files(), base=self.base, device=place, batch=self.batch, dtype=self.dtype)


class OwnFunctionSettings(RewardSettings):
    """The user's own `reward(images, samples) -> Tensor[N]`, or a class whose instances are called that way."""

    name: Annotated[Name, OF_USER]
    options: Annotated[Mapping[str, Any], WithoutKeys] = {}
    """Keyword arguments of the class."""
    timeout: Seconds = 600.0
    """Seconds that one call may take."""

    def check(self) -> Iterator[str]:
        from customized_grpo.rewards.own import find_function

        find_function(self.name)
        return iter(())

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.own import load_function

        return load_function(self.name, self.options, device, self.timeout)


class OracleSettings(RewardSettings):
    """What the built-in world knows about itself; for measuring, never for training."""

    name: Name

    @property
    def measures(self) -> Measures:
        of: dict[str, Measures] = {"oracle_identity": "identity", "oracle_prompt": "prompt", "joint_success": "both"}
        return of[self.name]

    def make(self, device: torch.device) -> Reward:  # noqa: ARG002 (it reads pixels)
        from customized_grpo.critters import metrics

        return getattr(metrics, self.name)
