"""The sections of a configuration. Each field's docstring is its description in docs/configuration.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import gcd
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import model_validator

from customized_grpo.fields import (
    BUILT_IN,
    CRITTERS,
    Count,
    Decay,
    GroupSize,
    Index,
    NoiseLevel,
    NonNegative,
    PathText,
    Pixels,
    Positive,
    Rank,
    Section,
    Share,
    Shift,
    Steps,
    Tokens,
)
from customized_grpo.files import plugins
from customized_grpo.rewards.by_name import AnyReward

BuiltInRule = Literal["sars", "linear", "raw_sum", "min", "max", "harmonic", "geometric", "gdpo", "joint", "gated"]
RuleName = Annotated[
    BuiltInRule | Annotated[str, plugins.registered(plugins.RULES)],
    plugins.single(plugins.RULES, get_args(BuiltInRule)),
]
BuiltInFamily = Literal["uno"]
FamilyName = Annotated[
    BuiltInFamily | Annotated[str, plugins.registered(plugins.FAMILIES)],
    plugins.single(plugins.FAMILIES, get_args(BuiltInFamily)),
]

# Defaults of the section `model` for any model other than the built-in one.
OF_OTHER_MODELS: Mapping[str, Any] = {
    **{"dtype": "bfloat16", "height": 512, "width": 512},
    **{"guidance": None, "max_sequence_length": 512},
}


class Model(Section):
    """The generator that is trained."""

    path: PathText = CRITTERS
    """A built-in generator (`critters`, `critters-dye`), or a folder or hub id of a model in diffusers' format."""
    family: FamilyName | None = None
    """`uno`: FLUX.1-dev with UNO's adapter. `null`: what the checkpoint says. Other text names a family of an
    installed package: docs/api.md."""
    base_adapter: PathText | None = None
    """Adapter that is fused into the frozen weights, so that training begins from it: a file, its folder, or a run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen weights. The adapter is always float32."""
    quantise: Literal["int8", "fp8", "nf4"] | None = None
    """Precision in which the frozen blocks are kept: half the memory of bfloat16, and with `nf4` a quarter."""
    height: Pixels = 32
    """Height of generated pictures, in pixels."""
    width: Pixels = 32
    """Width of generated pictures, in pixels."""
    reference_size: Pixels | None = None
    """Size at which references enter, in pixels; what it means for each family: docs/models.md. `null`: as usual."""
    guidance: NonNegative | None = 2.5
    """Scale of the guidance, embedded or classifier-free: docs/models.md. `null` means the family's usual one."""
    max_sequence_length: Tokens = 16
    """Length to which T5 (FLUX.1) or Qwen3 (FLUX.2) pads or cuts prompts, in tokens. Qwen-Image-Edit has its own."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    compile: bool = False
    """Compile the transformer's blocks with `torch.compile` at their first pass; it takes a compiler, and a minute."""
    offload_text_encoders: bool = False
    """Keep the text encoders on the CPU except while they encode prompts."""
    condition_cache: PathText | None = None
    """Folder in which encoded prompts and references are kept for later runs. `null` keeps none on disk."""
    shard: bool = False
    """Divide the frozen weights among the processes (FSDP2), for a model that is too large for one GPU."""

    @model_validator(mode="after")
    def _quantised_from_half(self) -> Self:
        if self.quantise and self.dtype != "bfloat16":
            raise ValueError(f"quantise={self.quantise} needs dtype=bfloat16, not {self.dtype}")
        if self.quantise and self.shard:
            raise ValueError(f"quantise={self.quantise} cannot be sharded; set shard=false, or quantise=null")
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_for_other_models(cls, values: Any) -> Any:
        built_in = not isinstance(values, Mapping) or values.get("path", CRITTERS) in BUILT_IN
        return values if built_in else {**OF_OTHER_MODELS, **values}


class Ema(Section):
    """A moving average of the adapter's weights, saved and evaluated beside the adapter."""

    decay: Decay | None = None
    """Share of the average that stays whenever it takes in the adapter, for instance 0.9. `null` means no average."""
    every: Count = 8
    """Number of optimiser steps after which the average takes in the adapter."""


class Adapter(Section):
    """The LoRA adapter, the only part that learns."""

    rank: Rank = 16
    """Rank of the LoRA matrices."""
    alpha: Positive = 16.0
    """LoRA scale: the adapter's output is multiplied by `alpha / rank`."""
    targets: Literal["attention", "attention_and_output", "all"] | tuple[str, ...] | None = None
    """Layers that get an adapter: a named set, or a list of names. `null` means `all`: feed-forward layers, too."""
    share_qkv: bool = False
    """Let the query, key and value layers share the matrix A, as a LoRA on one fused layer does: fewer parameters."""
    ema: Ema = Ema()


class Data(Section):
    """Where prompts and reference pictures come from; see docs/data.md."""

    source: PathText = CRITTERS
    """A built-in world (`critters`, `critters-dye`), the name of a published layout, or a path."""
    root: PathText | None = None
    """Folder of a named layout, or the folder that a list's paths are relative to. `null` means the list's own."""
    class_word: str | None = None
    """Word for what the pictures show, such as `dog`. Photographs need it, and so do lists without class words."""
    train_samples: Count | None = None
    """Number of training samples to use. `null` means all of them; a built-in world needs a number."""
    held_out_samples: Count = 128
    """Number of held-out cases in each evaluation during training, at most."""
    held_out_share: Share = 0.1
    """Share of the subjects that is kept out of training. `critters` ignores it and draws new subjects."""


class Sampling(Section):
    """The denoising schedule."""

    num_steps: Steps = 10
    """Number of denoising steps, T."""
    shift: Shift | Literal["checkpoint"] = 3.0
    """Timestep shift of the noise levels. `checkpoint` means the pipeline's own schedule."""
    finish_steps: Count | None = None
    """Number of second-order steps in which training finishes an image after the window, and at most reaches it.
    `null` means the schedule's own first-order steps."""


class Noise(Section):
    """The noise that makes a denoising step stochastic."""

    dynamics: Literal["dance", "flow", "cps"] = "flow"
    """Formula of a stochastic step: DanceGRPO, Flow-GRPO or Flow-CPS."""
    level: NoiseLevel = 0.8
    """Amount of noise: eta of `dance`, a of `flow` and of `cps` (there at most 1)."""
    steps: Literal["trained", "all"] = "trained"
    """Where the noise is: only at the trained steps, or at every step but the last, as published."""


class Window(Section):
    """The denoising steps that are trained. All other steps are deterministic, unless `noise.steps` says otherwise."""

    strategy: Literal["all", "random", "scattered", "sliding", "fixed"] = "random"
    """All steps, a window at a random place, steps scattered at random, a window that moves on, or one that stays."""
    size: Count | None = 2
    """Number of trained steps. Must be `null` with `all`."""
    per: Literal["image", "update"] = "image"
    """Whether each image draws its own `scattered` steps, or all images of an update share them."""
    first: Index = 0
    """First step that a window may contain."""
    last: Index | None = None
    """Last step that a window may contain. `null` means T - 2; step T - 1 is never trained."""
    start: Index | None = None
    """First step of the `fixed` window; only for that strategy."""
    every: Count = 1
    """Number of updates between two moves of the `sliding` window."""
    stride: Count = 1
    """Number of steps by which the `sliding` window moves."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strategy == "all" and self.size is not None:
            raise ValueError(f'strategy "all" has no window, and size is {self.size}; set window.size=null')
        if self.strategy != "all" and self.size is None:
            raise ValueError(f'strategy "{self.strategy}" needs a size; set for instance window.size=2')
        if self.per == "update" and self.strategy != "scattered":
            raise ValueError(
                f'per is only for the strategy "scattered": with "{self.strategy}" all images of an update train the '
                "same steps; set window.per=image"
            )
        for name, value in (("every", self.every), ("stride", self.stride)):
            if value != 1 and self.strategy != "sliding":
                raise ValueError(
                    f'{name} is only for the strategy "sliding", not "{self.strategy}"; set window.{name}=1'
                )
        if self.start is not None and self.strategy != "fixed":
            raise ValueError(f'start is only for the strategy "fixed", not "{self.strategy}"; set window.start=null')
        if self.start is None and self.strategy == "fixed":
            raise ValueError('strategy "fixed" needs a start; set for instance window.start=0')
        return self


def window_problems(window: Window, num_steps: int) -> Iterator[str]:
    """Contradictions between the window and the number of denoising steps."""
    final = num_steps - 2
    last = final if window.last is None else window.last
    size = 1 if window.size is None else window.size
    first, latest = window.first, last - size + 1  # range of a window's first step
    if last > final:
        yield f"window.last: with num_steps={num_steps} it must be at most {final}, not {last}"
    elif first > last:
        yield f"window.first: must be at most {last}, the last step, not {first}"
    elif first > latest:
        yield f"window.size: must be at most {last - first + 1} within steps {first} to {last}, not {size}"
    elif window.start is not None and not first <= window.start <= latest:
        steps = f"{size} steps within {first} to {last}"
        yield f"window.start: must be {first} to {latest} for {steps}, not {window.start}"
    elif window.strategy == "sliding":
        places = latest - first + 1
        stop_at = range(first, latest + 1, gcd(window.stride, places))  # all places at which the window ever is
        never = set(range(first, last + 1)) - {place + step for place in stop_at for step in range(size)}
        if never:
            yield (
                f"window.stride: a stride of {window.stride} over {places} places never trains "
                f"{'step' if len(never) == 1 else 'steps'} {', '.join(map(str, sorted(never)))}; use 1, or another "
                f"number that has no divisor in common with {places}"
            )


class Shaping(Section):
    """How the advantages of the rewards become one advantage."""

    rule: RuleName = "sars"
    """Shaping rule; `linear` is naive GRPO. The files of `algorithm/rules/` have the formulas. Other text
    names a rule of an installed package: docs/api.md."""
    gamma: NonNegative = 0.4
    """Size of the synergy bonus of `sars`; other rules ignore it."""
    recentre: bool = False
    """Subtract the group's mean from the bonus of `sars`. The published form does not."""
    scale: Positive = 1.0
    """Factor on the rule's advantage, applied before the bonus, to compare rules at equal spread."""
    clip: Positive = 5.0
    """Bound on the absolute value of the final advantage."""
    joint_share: Share = 0.5
    """Share of the calibrated joint reward in the rule `joint`; the weighted advantages have the rest."""
    threshold: Share = 0.5
    """Identity that is enough for the rule `gated`: 0 is that of another subject, 1 of another view of the subject."""
    calibration: PathText | None = None
    """File with what rewards give to bad and good pictures. `null`: measured if needed, as is what the file lacks."""
    normalise: Literal["group", "pooled"] = "group"
    """What advantages are divided by: the group's spread, or at least `kappa` times the mean spread of all groups."""
    kappa: Positive = 0.3
    """Share of the mean spread that `pooled` divides by at least."""


class Weighting(Section):
    """The prompt's weight at each denoising step; identity gets the rest, 1 - weight."""

    kind: Literal["tdw", "constant"] = "tdw"
    """`tdw`: a weight that falls along the denoising steps (all settings but `prompt`). `constant`: one weight."""
    prompt: Share = 0.5
    """The prompt's weight with `constant`."""
    progress: Literal["step", "sigma", "position"] = "step"
    """How `tdw` measures progress, 0 to 1: by the step's number, t / T, or by its noise level (equal at shift 3);
    `position` copies the authors' release, where an image's `scattered` steps take their weights in the order in which
    they were drawn: by their numbers, a constant weight of .60 with jitter."""
    high: Share = 0.7
    """The prompt's weight in the first phase of `tdw`."""
    low: Share = 0.3
    """The prompt's weight towards the end of the second phase of `tdw`."""
    final: Share = 0.5
    """The prompt's weight in the last phase of `tdw`."""
    start: Share = 0.24
    """Progress at which the second phase begins, in which the weight falls from `high` to `low`."""
    centre: Share = 0.40
    """Progress at which the weight is halfway between `high` and `low`."""
    end: Share = 0.88
    """Progress at which the last phase begins."""
    rate: Positive = 20.0
    """Steepness of the fall, the slope of the sigmoid over progress."""
    balance: Literal["off", "dual", "proportional"] = "off"
    """How the weights follow training: not at all, towards what falls, or towards what has gained less so far."""


class Objective(Section):
    """The loss, and how many optimiser steps a rollout is used for."""

    kind: Literal["grpo", "nft"] = "grpo"
    """`grpo`: policy gradient on noisy steps. `nft`: DiffusionNFT on noised pictures, which come from any solver."""
    clip_range: Positive = 1e-4
    """Clip range of the probability ratio. Small, because log-probabilities are means over dimensions."""
    trust: Literal["clip", "dppo", "guard"] = "clip"
    """How the policy is kept near the one that sampled: PPO's clip, Flow-DPPO's mask, or GRPO-Guard's ratio."""
    max_divergence: Positive = 1e-5
    """Divergence from the policy that sampled, above which `dppo` drops an entry that would move further away."""
    beta: Positive = 1.0
    """Strength of `nft`'s contrast: a smaller one lets the policy go further from the one that sampled."""
    old_decay: Decay = 0.1
    """Share of `nft`'s sampling policy that stays after each rollout; the adapter is the rest. 0 is on policy."""
    kl: NonNegative = 0.0
    """Coefficient of the KL divergence to the base model. Above 0 each trained step costs one more forward pass."""
    step_scale: Literal["none", "equal"] = "none"
    """`equal` scales ratio and KL, or `nft`'s loss, so that all steps pull equally hard; `none` is as published."""
    minibatches: Count = 1
    """Number of optimiser steps in one pass over a rollout; each takes an equal part of every group's images."""
    updates_per_rollout: Count = 1
    """Number of passes over one rollout. Clipping acts from the second optimiser step on."""


class Optimizer(Section):
    """AdamW and its learning rate."""

    lr: Positive = 1e-3
    """Learning rate after warm-up."""
    weight_decay: NonNegative = 1e-4
    """Weight decay of AdamW."""
    warmup: Index = 3
    """Number of updates over which the learning rate rises linearly to `lr`."""
    max_grad_norm: Positive = 1.0
    """Gradient norm to which larger gradients are clipped."""


class Groups(Section):
    """How many images an update generates, and how many a forward pass takes."""

    prompts: Count = 8
    """Number of groups per update, in all processes together; each group is one prompt and its references."""
    size: GroupSize = 8
    """Number of images per group."""
    batch: Literal["auto"] | None = None
    """`auto`: `train` chooses `rollout_batch` and `update_batch`, equal, by the device. `null`: as they are set."""
    rollout_batch: Count = 64
    """Number of images per forward pass while generating."""
    update_batch: Count = 64
    """Number of images at a step per forward and backward pass of the update. Best equal to `rollout_batch`."""


class Evaluation(Section):
    """Evaluations on the held-out cases during training."""

    every: Index = 20
    """Number of updates between evaluations. 0 means never."""
    num_steps: Steps | None = None
    """Number of denoising steps of evaluations and of users of the adapter. `null` means `sampling.num_steps`."""
    height: Pixels | None = None
    """Height of the pictures of evaluations and of users of the adapter. `null` means `model.height`."""
    width: Pixels | None = None
    """Width of the pictures of evaluations and of users of the adapter. `null` means `model.width`."""
    metrics: tuple[AnyReward, ...] = ()
    """Rewards that are measured but not trained on: names, lines such as `dino region=centre`, or mappings."""
    grid: Index = 8
    """Number of cases in the picture of each evaluation."""
