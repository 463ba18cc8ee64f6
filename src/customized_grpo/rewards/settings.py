"""What each reward can be told: one class per reward, free of torch; each makes its reward and imports it then.

A new reward is one file beside this one, one class here and one line in `REWARDS`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, GetCoreSchemaHandler, TypeAdapter, model_validator
from pydantic_core import CoreSchema, core_schema

from customized_grpo.critters.weights import resolve
from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN, Count, Index, NonNegative, Positive, Section

if TYPE_CHECKING:
    import torch

    from customized_grpo.data import Sample
    from customized_grpo.rewards import Reward

Role = Literal["identity", "prompt", "quality"]
Measures = Literal["identity", "prompt", "both", "copying", "quality"]
Encoder = Literal["dino", "clip"]
OTHER_VIEW, MASK = "other view of the subject", "mask of the subject"  # what a sample may lack
INSTEAD = {OTHER_VIEW: "against=reference", MASK: "region=frame"}  # of a reward of identity that does without it


def _plain_url(url: str) -> str:
    """The URL as it was. It stands in config.yaml, in labels and messages, so it may not hold a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write a URL that begins with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("no user or password in it; put a key into a variable and name that in api_key_env")
    if parts.fragment or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError("no key in it; put the key into a variable and name that in api_key_env")
    return url


def _variable(name: str) -> str:
    """A key that was typed in the place of a variable's name is refused, and not repeated."""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError("names a variable in capitals, such as REWARD_KEY, which holds the key; it is not the key")
    return name


def _without_secrets(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options stand in config.yaml, so none of them may be a key."""
    for name, value in options.items():
        if _SECRET.search(name) and isinstance(value, str) and not name.endswith("_env"):
            raise ValueError(f"{name} would stand in config.yaml; give the class {name}_env, the name of a variable")
    return options


# "api_key", "access-token", "sig", but not "max_tokens" or "monkey".
_SECRET = re.compile(r"(^|[-_])(api_?)?(key|token|secret|password|passwd|pwd|credentials?|sig|signature|auth)$", re.I)
Url = Annotated[str, AfterValidator(_plain_url)]
Variable = Annotated[str, AfterValidator(_variable)]


class RewardSettings(Section):
    """What all rewards have in common."""

    encoder: ClassVar[Encoder | None] = None  # kind of the built-in encoder that can stand in for `model`
    usual_model: ClassVar[str | None] = None  # hub id of the checkpoint that is meant where none is named
    remote: ClassVar[bool] = False  # scores elsewhere: starts while later images are still being generated

    name: str  # a key of REWARDS, or one's own: "package.module:function" or "path/to/file.py:function"
    role: Role | None = None  # null: the key that it stands under in `rewards`, where that is a role
    weight: NonNegative | None = None  # of a "quality" reward, constant, beside the shaped advantage

    @property
    def measures(self) -> Measures:
        """What it looks at; rewards of one's own look at what their role says."""
        return self.role or "quality"

    @property
    def own_model(self) -> str | None:
        """The model that was named, if the reward has one and it was."""
        return getattr(self, "model", None)

    def with_model(self, model: str | None) -> RewardSettings:
        """The same with a model in the place of none; itself where there is nothing to fill in."""
        takes = model is not None and "model" in type(self).model_fields and self.own_model is None
        return self.model_copy(update={"model": model}) if takes else self

    def as_metric(self) -> RewardSettings:
        """The same, only to look at."""
        return self.model_copy(update={"role": None, "weight": None})

    @property
    def label(self) -> str:
        """The line of `str`, without where the models lie."""
        return " ".join(part for part in str(self).split() if not part.startswith(("model=", "base=")))

    def lacking(self, sample: Sample) -> str | None:  # noqa: ARG002 (most need prompt and reference alone)
        """What a sample would need beside prompt and reference for this reward to score it; None: nothing."""
        return None

    def make(self, device: torch.device) -> Reward:
        """The reward, ready to score. Raises ValueError or OSError where its model cannot be loaded."""
        raise NotImplementedError(f"{self.name} says nothing about how it is made")

    def __str__(self) -> str:
        """One line that `parse_metric` reads back: the name and what differs from the defaults."""
        changed = self.model_dump(exclude_defaults=True, exclude={"name", "role", "weight"})
        texts = {key: "" if value is None else shlex.quote(str(value)) for key, value in changed.items()}
        return " ".join([self.name, *(f"{key}={text}" for key, text in texts.items())])


class EncoderSettings(RewardSettings):
    model: str | None = None  # "critters", a folder or a hub id; null: the built-in one for critters, else the usual
    batch: Count = 64  # images per forward pass
    device: str | None = None  # "cuda:1" and the like; null: the run's

    def files(self) -> str:
        """The folder or hub id of the encoder."""
        if self.encoder is None:
            return str(self.model or self.usual_model)
        return str(resolve(self.model or BUILT_IN, self.encoder))

    def place(self, device: torch.device) -> torch.device:
        """Where the encoder lies in a run on `device`."""
        from customized_grpo.runtime.device import usable_device

        return device if self.device is None else usable_device(self.device)


class IdentitySettings(EncoderSettings):
    against: Literal["reference", "other_view"] = "reference"  # what the image is compared with
    region: Literal["frame", "centre", "mask"] = "frame"  # the whole picture, its middle, or the subject's mask
    over: Literal["mean", "min", "best"] = "mean"  # of several references or views

    @model_validator(mode="after")
    def _masks_are_of_references(self) -> Self:
        if self.region == "mask" and self.against == "other_view":
            raise ValueError("region=mask needs against=reference: a mask shows the subject in the first reference")
        return self

    @property
    def measures(self) -> Measures:
        return "identity"

    def lacking(self, sample: Sample) -> str | None:
        if self.region == "mask":
            return MASK if sample.mask is None else None
        return OTHER_VIEW if self.against == "other_view" and not sample.other_views else None

    def comparison(self) -> dict[str, Any]:
        """What `Identity` is told."""
        return {"against": self.against, "region": self.region, "over": self.over, "batch": self.batch}


class DinoSettings(IdentitySettings):
    encoder = "dino"
    usual_model = "facebook/dinov2-base"
    name: str = "dino"
    preprocess: Literal["checkpoint", "benchmark"] = "checkpoint"  # or as DreamBooth's DINO score is measured

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.dino import DinoIdentity

        place = self.place(device)
        return DinoIdentity(self.files(), device=place, preprocess=self.preprocess, **self.comparison())


class ClipISettings(IdentitySettings):
    encoder = "clip"
    usual_model = "openai/clip-vit-base-patch32"
    name: str = "clip_i"

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.clip import ClipIdentity

        return ClipIdentity(self.files(), device=self.place(device), **self.comparison())


class CopyPasteSettings(EncoderSettings):
    encoder = "dino"
    usual_model = "facebook/dinov2-base"
    name: str = "copy_paste"

    @property
    def measures(self) -> Measures:
        return "copying"

    def lacking(self, sample: Sample) -> str | None:
        return None if sample.other_views else OTHER_VIEW

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.dino import CopyPaste

        return CopyPaste(self.files(), device=self.place(device), batch=self.batch)


class ClipTSettings(EncoderSettings):
    encoder = "clip"
    usual_model = "openai/clip-vit-base-patch32"
    name: str = "clip_t"

    @property
    def measures(self) -> Measures:
        return "prompt"

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.clip import ClipPrompt

        return ClipPrompt(self.files(), device=self.place(device), batch=self.batch)


class PickScoreSettings(EncoderSettings):
    usual_model = "yuvalkirstain/PickScore_v1"
    name: str = "pickscore"
    processor: str | None = None  # tokenizer and image processor; null: the model's own, else those of CLIP-H

    @property
    def measures(self) -> Measures:
        return "prompt"

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.pickscore import PickScore

        return PickScore(self.files(), device=self.place(device), batch=self.batch, processor=self.processor)


class HPSv3Settings(EncoderSettings):
    usual_model = "MizzenAI/HPSv3"
    name: str = "hpsv3"
    base: str = "Qwen/Qwen2-VL-7B-Instruct"  # whose config, tokenizer and image processor it uses, not its weights
    batch: Count = 8
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of all but its head

    @property
    def measures(self) -> Measures:
        return "prompt"

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.hpsv3 import HPSv3

        place = self.place(device)
        return HPSv3(self.files(), base=self.base, device=place, batch=self.batch, dtype=self.dtype)


class RemoteSettings(RewardSettings):
    """Behind a server. Keys come from the environment and are never part of the settings."""

    remote = True
    api_key_env: Variable | None = None  # variable that holds the key, sent as a Bearer token; null: none is sent
    timeout: Positive = 60.0  # seconds that one request may take
    retries: Index = 2  # further tries of a request that may yet succeed
    in_flight: Count = 8  # requests at a time, of all batches of a process together


class HttpSettings(RemoteSettings):
    """Any scorer behind the JSON interface of `rewards/http.py`."""

    name: str = "http"
    url: Url
    batch: Count = 8  # images per request
    send: Literal["none", "references", "other_views", "all"] = "references"  # pictures beside the image itself
    max_side: Count = 1024  # pixels; larger references and views are shrunk, the image never is
    low: float | None = None  # scores outside low..high cannot be true: unscored, and counted as such
    high: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must lie below high ({self.high:g})")
        return self

    def make(self, device: torch.device) -> Reward:  # noqa: ARG002 (the server has its own)
        from customized_grpo.rewards.http import HttpReward

        return HttpReward(**self.model_dump(exclude={"name", "role", "weight"}))


class VlmJudgeSettings(RemoteSettings):
    """Grades by a vision-language model behind an OpenAI-compatible server."""

    name: str = "vlm_judge"
    base_url: Url  # for instance http://localhost:8000/v1
    model: str  # as the server calls it
    judges: Literal["identity", "prompt"]  # which of the two rubrics
    max_side: Count = 768  # pixels; larger pictures are shrunk
    structured: Literal["schema", "prompt"] = "schema"  # the answer's form is forced, or only asked for
    temperature: NonNegative | None = 0.0  # null: the server's own, for models that take no other

    @property
    def measures(self) -> Measures:
        return self.judges

    def make(self, device: torch.device) -> Reward:  # noqa: ARG002 (the server has its own)
        if find_spec("openai") is None:
            raise UsageError('reward "vlm_judge": openai is not installed; pip install "customized-grpo[judge]"')
        from customized_grpo.rewards.vlm_judge import Judge

        return Judge(**self.model_dump(exclude={"name", "role", "weight"}))


class OwnFunctionSettings(RewardSettings):
    """A function of the user's, `reward(images, samples) -> Tensor[N]`, or a class that makes one."""

    options: Annotated[Mapping[str, Any], AfterValidator(_without_secrets)] = {}  # given to the class by keyword
    timeout: Positive = 600.0  # seconds that one call may take

    def make(self, device: torch.device) -> Reward:
        from customized_grpo.rewards.own import load_function

        return load_function(self.name, self.options, device, self.timeout)


class OracleSettings(RewardSettings):
    """What the built-in world knows of itself; to measure with, never to train on."""

    name: str

    @property
    def measures(self) -> Measures:
        of: dict[str, Measures] = {"oracle_identity": "identity", "oracle_prompt": "prompt", "joint_success": "both"}
        return of[self.name]

    def make(self, device: torch.device) -> Reward:  # noqa: ARG002 (it reads pixels)
        from customized_grpo.critters import metrics

        return getattr(metrics, self.name)


REWARDS: dict[str, type[RewardSettings]] = {
    "dino": DinoSettings,
    "clip_i": ClipISettings,
    "clip_t": ClipTSettings,
    "pickscore": PickScoreSettings,
    "hpsv3": HPSv3Settings,
    "copy_paste": CopyPasteSettings,
    "oracle_identity": OracleSettings,
    "oracle_prompt": OracleSettings,
    "joint_success": OracleSettings,
    "http": HttpSettings,
    "vlm_judge": VlmJudgeSettings,
}


# --- by name ---------------------------------------------------------------------------------------------------------


_OWN = "own"  # the choice for names with a colon


def _choice(value: Any) -> str | None:
    """Which class a mapping, or one that is made already, belongs to."""
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    if not isinstance(name, str):
        return None
    return _OWN if ":" in name else name


class _ByName:
    """Settings are validated by the class that their name chooses."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {
            name: handler.generate_schema(kind) for name, kind in [*REWARDS.items(), (_OWN, OwnFunctionSettings)]
        }
        union = core_schema.tagged_union_schema(dict(choices), discriminator=_choice)
        return core_schema.no_info_before_validator_function(_from_text, union)


def _from_text(value: Any) -> Any:
    """ "dino against=other_view" -> {"name": "dino", "against": "other_view"}; anything else as it is."""
    if not isinstance(value, str):
        return value
    name, *settings = shlex.split(value) or [""]  # ValueError for a quote that is not closed
    pairs = [setting.partition("=") for setting in settings]
    return {"name": name} | {key: text or None for key, _, text in pairs}


AnyReward = Annotated[RewardSettings, _ByName]
_ANY: TypeAdapter[RewardSettings] = TypeAdapter(AnyReward)


def parse_reward(value: Any) -> RewardSettings:
    """From a mapping or one line such as "dino against=other_view". Raises pydantic's ValidationError."""
    return _ANY.validate_python(value)
