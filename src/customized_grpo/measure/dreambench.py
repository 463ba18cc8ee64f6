"""The DreamBench protocol: 750 cases, the customary columns, the scores of real photographs, published results.

30 subjects x 25 prompts x 4 images, one fixed reference per subject, whole frames; DINO ViT-S/16, CLIP ViT-B/32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from customized_grpo.calibration.intervals import Estimate, estimate
from customized_grpo.calibration.scored_pictures import as_image
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.rewards.scoring import score
from customized_grpo.rewards.settings import RewardSettings
from customized_grpo.runtime.device import usable_device

SOURCE = "dreambench"
IMAGES = 4  # per case
TABLE = "dreambench.md"
COLUMNS = ("DINO", "CLIP-I", "CLIP-T", "HPSv3")
MASKED = "dino region=mask preprocess=benchmark"
_VIEWS = 16  # fitted photographs in memory; a subject of DreamBench has at most six


@dataclass(frozen=True)
class Published:
    """One row of a published table; None: not given there."""

    method: str
    scores: tuple[float | None, float | None, float | None, float | None]
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
ENCODERS = {  # that published rows were measured with
    "dino": "facebook/dino-vits16",
    "clip_i": "openai/clip-vit-base-patch32",
    "clip_t": "openai/clip-vit-base-patch32",
}
CAUTION = (
    "Protocols differ between papers: four of them report a DINO of .707, .760, .814 and .827 for the same UNO. "
    "Compare rows measured here with each other; published rows are for orientation. An identity score above that of "
    "real photographs comes from copying."
)


def mask_metrics(config: RunConfig, samples: Sequence[Sample]) -> tuple[RewardSettings, ...]:
    """Identity inside the mask as one more metric, if any sample has a mask and the metric is not listed already."""
    listed = {str(metric) for metric in config.evaluation.metrics}
    return (parse_reward(MASKED),) if any(sample.mask for sample in samples) and MASKED not in listed else ()


def column_of(metric: RewardSettings) -> str | None:
    """The customary column that a metric fills; None if it is not part of the customary table.

    A metric of another published encoder fills none. What a local folder holds is for its owner to know, so it fills
    the column, and the table names the folder.
    """
    model = _other_model(metric)
    return _column_by_name(metric) if model is None or Path(model).is_dir() else None


def _other_model(metric: RewardSettings) -> str | None:
    """The encoder of a metric, if its name is not that of the encoder that published rows were measured with."""
    model, customary = getattr(metric, "model", None), ENCODERS.get(metric.name)
    same = model is None or customary is None or Path(model).name == Path(customary).name
    return None if same else str(model)


def _column_by_name(metric: RewardSettings) -> str | None:
    name, *options = metric.label.split()
    if name == "dino":
        return "DINO" if options == ["preprocess=benchmark"] else None
    return None if options else {"clip_i": "CLIP-I", "clip_t": "CLIP-T", "hpsv3": "HPSv3"}.get(name)


# --- scores of real photographs --------------------------------------------------------------------------------------


def photograph_pairs(samples: Sequence[Sample]) -> list[tuple[Sample, Path]]:
    """(reference, another photograph of the same subject): every ordered pair of every subject."""
    subjects = {sample.subject: sample for sample in samples}
    pairs = []
    for sample in subjects.values():
        views = [view for view in (*sample.references, *sample.other_views) if isinstance(view, Path)]
        for reference in views:
            compared = replace(sample, id=f"{sample.subject}/{reference.name}", references=(reference,), mask=None)
            pairs += [(compared, view) for view in views if view != reference]
    return pairs


def real_photographs(
    config: RunConfig, metrics: Mapping[str, RewardSettings], samples: Sequence[Sample]
) -> dict[str, Estimate]:
    """Identity scores of one photograph of a subject against another: a generator that scores higher is copying.

    Only metrics that compare whole frames with the reference. Photographs are cropped and scaled to the size of
    generated images. A metric that could not score any pair is left out.
    """
    pairs, device = photograph_pairs(samples), usable_device(config.device)
    rewards = {
        name: metric.make(device)
        for name, metric in metrics.items()
        if (getattr(metric, "against", None), getattr(metric, "region", None)) == ("reference", "frame")
    }
    batch, size = config.groups.rollout_batch, (config.model.width, config.model.height)
    fitted = lru_cache(maxsize=_VIEWS)(lambda view: as_image(view, size))  # a subject's views come up again and again
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards}
    for start in tqdm(range(0, len(pairs), batch), desc="real photographs", unit="batch"):
        part = pairs[start : start + batch]
        images = torch.stack([fitted(view) for _, view in part])
        for name, reward in rewards.items():
            scores[name].append(score(name, reward, images, [sample for sample, _ in part]))
    subjects = [sample.subject for sample, _ in pairs]
    columns = {name: torch.cat(values).double() for name, values in scores.items() if values}
    return {name: estimate(values, subjects) for name, values in columns.items() if not values.isnan().all()}


# --- the table -------------------------------------------------------------------------------------------------------


def customary_table(
    metrics: Mapping[str, RewardSettings], measured: Mapping[str, Mapping[str, Estimate | None]]
) -> str:
    """Markdown: the rows measured here (estimates by metric, by method), then the published rows."""
    names = {column: name for name, metric in metrics.items() if (column := column_of(metric))}
    lines = [_row("method", COLUMNS, "source"), _row("---", ["---"] * len(COLUMNS), "---")]
    for method, estimates in measured.items():
        cells = [estimates.get(names.get(column, "")) for column in COLUMNS]
        lines.append(_row(method, [_cell(None if cell is None else cell.mean) for cell in cells], "measured here"))
    lines += [_row(row.method, [_cell(value) for value in row.scores], row.source) for row in PUBLISHED]
    others = [
        f"{column} is {'measured' if column_of(metric) else 'not filled: measured'} with {other}, "
        f"and customarily with {ENCODERS[metric.name]}."
        for metric in metrics.values()
        if (other := _other_model(metric)) and (column := _column_by_name(metric))
    ]
    return "\n".join([*lines, "", *others, CAUTION])


def _row(method: str, cells: Sequence[str], source: str) -> str:
    return f"| {' | '.join([method, *cells, source])} |"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
