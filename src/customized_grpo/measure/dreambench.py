"""The DreamBench protocol: 750 cases, the customary columns, what real photographs score, published figures beside it.

30 subjects x 25 prompts x 4 images, one fixed reference per subject, whole frames; DINO ViT-S/16, CLIP ViT-B/32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.measure.intervals import Estimate, estimate
from customized_grpo.measure.scored_pictures import as_image
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.rewards.scoring import score
from customized_grpo.rewards.settings import RewardSettings

SOURCE = "dreambench"
IMAGES = 4  # per case
TABLE = "dreambench.md"
COLUMNS = ("DINO", "CLIP-I", "CLIP-T", "HPSv3")
MASKED = "dino region=mask preprocess=benchmark"


@dataclass(frozen=True)
class Published:
    """One row of somebody's table; None: not given there."""

    method: str
    figures: tuple[float | None, float | None, float | None, float | None]
    source: str


_UNO = "arXiv 2504.02160"
_CUSTOMIZED = "arXiv 2510.18263, read off its figure"
_DISCO = "arXiv 2604.00849"
PUBLISHED = (
    Published("real photographs", (0.774, 0.885, None, None), _UNO),
    Published("UNO", (0.760, 0.835, 0.304, None), _UNO),
    Published("OmniGen", (0.693, 0.801, 0.315, None), _UNO),
    Published("OminiControl", (0.684, 0.799, 0.312, None), _UNO),
    Published("FLUX IP-Adapter", (0.582, 0.820, 0.288, None), _UNO),
    Published("DreamBooth", (0.668, 0.803, 0.305, None), _UNO),
    Published("BLIP-Diffusion", (0.670, 0.805, 0.302, None), _UNO),
    Published("UNO", (0.760, None, None, 7.87), _CUSTOMIZED),
    Published("naive GRPO 1:1", (0.861, None, None, 4.12), _CUSTOMIZED),
    Published("naive GRPO 1:1.5", (0.801, None, None, 7.56), _CUSTOMIZED),
    Published("Customized-GRPO", (0.812, None, None, 8.32), _CUSTOMIZED),
    Published("FLUX.1-Kontext", (0.839, 0.910, 0.321, None), _DISCO),
    Published("UNO", (0.827, 0.899, 0.311, None), _DISCO),
)
CAUTION = (
    "Protocols differ between papers: the same UNO has a DINO of .707, .760, .814 and .827 in four of them. Compare "
    "rows measured here with each other; published ones are for orientation. Identity above that of real "
    "photographs is bought by copying."
)


def with_masks(config: RunConfig, samples: Sequence[Sample]) -> tuple[RewardSettings, ...]:
    """Further metrics: identity inside the mask, where there are masks."""
    known = {str(metric) for metric in config.evaluation.metrics}
    return (parse_reward(MASKED),) if any(sample.mask for sample in samples) and MASKED not in known else ()


def column_of(metric: RewardSettings) -> str | None:
    """The customary column that a metric fills; None for what is no part of the customary table."""
    chosen = metric.label.split()
    if chosen[0] == "dino":
        return "DINO" if chosen[1:] == ["preprocess=benchmark"] else None
    return {"clip_i": "CLIP-I", "clip_t": "CLIP-T", "hpsv3": "HPSv3"}.get(chosen[0]) if len(chosen) == 1 else None


# --- what real photographs score -------------------------------------------------------------------------------------


def photographs(samples: Sequence[Sample]) -> list[tuple[Sample, Path]]:
    """(reference, another photograph of the same subject), every ordered pair of every subject."""
    subjects = {sample.subject: sample for sample in samples}
    pairs = []
    for sample in subjects.values():
        views = [view for view in (*sample.references, *sample.other_views) if isinstance(view, Path)]
        for reference in views:
            alone = replace(sample, id=f"{sample.subject}/{reference.name}", references=(reference,), mask=None)
            pairs += [(alone, view) for view in views if view != reference]
    return pairs


def real_photographs(
    config: RunConfig, metrics: Mapping[str, RewardSettings], samples: Sequence[Sample]
) -> dict[str, Estimate]:
    """What identity metrics say of one photograph of a subject against another: a generator above it copies.

    Whole frames against the reference only; the pictures are cut and scaled as generated ones are.
    """
    pairs, device = photographs(samples), torch.device(config.device)
    asked = {
        name: metric
        for name, metric in metrics.items()
        if (getattr(metric, "against", None), getattr(metric, "region", None)) == ("reference", "frame")
    }
    rewards = {name: metric.make(device) for name, metric in asked.items()}
    batch, size = config.groups.rollout_batch, (config.model.width, config.model.height)
    found = {name: list[Tensor]() for name in rewards}
    for start in tqdm(range(0, len(pairs), batch), desc="real photographs", unit="batch"):
        part = pairs[start : start + batch]
        images = torch.stack([as_image(view, size) for _, view in part])
        for name, reward in rewards.items():
            found[name].append(score(name, reward, images, [sample for sample, _ in part]))
    subjects = [sample.subject for sample, _ in pairs]
    return {name: estimate(torch.cat(values).double(), subjects) for name, values in found.items()}


# --- the table -------------------------------------------------------------------------------------------------------


def customary_table(
    metrics: Mapping[str, RewardSettings],
    measured: Mapping[str, Mapping[str, Any]],
    real: Mapping[str, Estimate],
) -> str:
    """Markdown: rows measured here (figures by metric, by method), real photographs, published rows."""
    names = {column: name for name, metric in metrics.items() if (column := column_of(metric))}
    here = {
        **{method: {name: figures[name]["mean"] for name in figures} for method, figures in measured.items()},
        "real photographs": {name: figure.mean for name, figure in real.items()},
    }
    lines = [_row("method", COLUMNS, "source"), _row("---", ["---"] * len(COLUMNS), "---")]
    for method, figures in here.items():
        lines.append(
            _row(method, [_figure(figures.get(names.get(column, ""))) for column in COLUMNS], "measured here")
        )
    lines += [_row(row.method, [_figure(value) for value in row.figures], row.source) for row in PUBLISHED]
    return "\n".join([*lines, "", CAUTION])


def _row(method: str, cells: Sequence[str], source: str) -> str:
    return f"| {' | '.join([method, *cells, source])} |"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
