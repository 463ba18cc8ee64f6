"""The DreamBench protocol on the built-in model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.calibration.scored_pictures import as_image
from customized_grpo.config import load_config
from customized_grpo.data import Sample
from customized_grpo.measure.dreambench import (
    CAUTION,
    PUBLISHED,
    column_of,
    customary_table,
    mask_metrics,
    photograph_pairs,
    real_photographs,
)
from customized_grpo.measure.evaluate import write_evaluation
from customized_grpo.measure.request import make_request
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.training.assemble import assemble

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


@pytest.fixture
def cats(tmp_path: Path) -> list[Sample]:
    """Two subjects with three and two photographs, two prompts each."""
    generator = np.random.default_rng(0)
    samples = []
    for subject, count in (("cat", 3), ("cup", 2)):
        files = [tmp_path / f"{subject}{number}.png" for number in range(count)]
        for file in files:
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)
        for prompt in ("on a beach", "in the snow"):
            samples.append(Sample(f"{subject}/{prompt}", subject, prompt, (files[0],), tuple(files[1:])))
    return samples


def test_every_photograph_is_compared_with_every_other_of_its_subject(cats: list[Sample]):
    pairs = [(sample.references[0], view) for sample, view in photograph_pairs(cats)]
    named = [(Path(str(reference)).stem, view.stem) for reference, view in pairs]
    assert sorted(named) == sorted(
        [*((f"cat{a}", f"cat{b}") for a in range(3) for b in range(3) if a != b), ("cup0", "cup1"), ("cup1", "cup0")]
    )


def test_real_photographs_are_scored_by_metrics_that_compare_with_the_reference(cats: list[Sample]):
    """Worked out pair by pair; metrics that need another view, a region or a prompt are left out."""
    lines = ("dino", "dino against=other_view", "dino region=centre", "clip_t", "copy_paste")
    config = load_config(TINY)
    metrics = {line: config.resolve(parse_reward(line)) for line in lines}
    found = real_photographs(config, metrics, cats)
    assert list(found) == ["dino"]
    features = metrics["dino"].make(torch.device("cpu"))
    by_hand = [features(as_image(view, (32, 32))[None], [sample]).item() for sample, view in photograph_pairs(cats)]
    assert found["dino"].mean == pytest.approx(float(np.mean(by_hand)), abs=1e-6)


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("dino model=facebook/dino-vits16 preprocess=benchmark", "DINO"),
        ("dino model=facebook/dinov2-base", None),
        ("dino preprocess=benchmark against=other_view", None),
        ("clip_i model=openai/clip-vit-base-patch32", "CLIP-I"),
        ("clip_i model=openai/clip-vit-large-patch14", None),
        ("clip_t model=/models/clip-vit-base-patch32", "CLIP-T"),
        ("dino model=facebook/dinov2-base preprocess=benchmark", None),
        ("clip_i region=centre", None),
        ("clip_t", "CLIP-T"),
        ("hpsv3", "HPSv3"),
        ("hpsv3 model=a base=b", "HPSv3"),
        ("copy_paste", None),
    ],
)
def test_only_the_customary_metric_fills_a_customary_column(line: str, column: str | None):
    assert column_of(parse_reward(line)) == column


def test_subjects_with_a_single_photograph_have_no_pairs(cats: list[Sample]):
    config, alone = load_config(TINY), [replace(sample, other_views=()) for sample in cats]
    assert real_photographs(config, {"dino": config.resolve(parse_reward("dino"))}, alone) == {}


def test_the_table_lists_what_was_measured_here_before_what_was_published():
    metrics = {"dino preprocess=benchmark": parse_reward("dino preprocess=benchmark"), "hpsv3": parse_reward("hpsv3")}
    measured = {
        "tuned": {"dino preprocess=benchmark": Estimate(0.8, 0.7, 0.9), "hpsv3": None},
        "real photographs": {"dino preprocess=benchmark": Estimate(0.7741, 0.7, 0.8)},
    }
    lines = customary_table(metrics, measured).splitlines()
    assert lines[2] == "| tuned | 0.800 | - | - | - | measured here |"
    assert lines[3] == "| real photographs | 0.774 | - | - | - | measured here |"
    assert len(lines) == 4 + len(PUBLISHED) + 2
    assert "| Customized-GRPO | 0.812 | - | - | 8.32 | arXiv 2510.18263, read off its figure |" in lines
    assert lines[-1] == CAUTION


def test_a_customary_metric_of_another_encoder_is_told_and_fills_no_column():
    metrics = {"clip_i": parse_reward("clip_i model=openai/clip-vit-large-patch14")}
    lines = customary_table(metrics, {"tuned": {"clip_i": Estimate(0.8, 0.7, 0.9)}}).splitlines()
    assert lines[2] == "| tuned | - | - | - | - | measured here |"
    told = (
        "CLIP-I is not filled: measured with openai/clip-vit-large-patch14, and customarily with openai/clip-vit-base"
    )
    assert lines[-2].startswith(told)


def test_an_encoder_in_a_folder_fills_its_column_and_the_table_names_the_folder(tmp_path: Path):
    metrics = {"clip_i": parse_reward(f"clip_i model={tmp_path}")}
    lines = customary_table(metrics, {"tuned": {"clip_i": Estimate(0.8, 0.7, 0.9)}}).splitlines()
    assert lines[2] == "| tuned | - | 0.800 | - | - | measured here |"
    assert lines[-2] == f"CLIP-I is measured with {tmp_path}, and customarily with openai/clip-vit-base-patch32."


def test_masks_add_identity_inside_the_mask(cats: list[Sample]):
    config = load_config("dreambench")
    assert mask_metrics(config, cats) == ()
    masked = Sample("a", "a", "b", (Image.new("RGB", (4, 4)),), mask=Image.new("L", (4, 4)))
    (metric,) = mask_metrics(config, [*cats, masked])
    assert str(metric) == "dino region=mask preprocess=benchmark"


def test_base_and_tuned_in_one_table(small_dreambench: Path, tmp_path: Path, reads: list[str]):
    """The whole command, first without and then with a base to compare with; each reads the data once."""
    settings = ["data.source=dreambench", f"data.root={small_dreambench}", "evaluation.metrics=[copy_paste, clip_i]"]
    text = write_evaluation(make_request(TINY, settings, cases=6, images=1), tmp_path / "base", None)
    assert reads.count("prompts_and_classes.txt") == 1
    summary = json.loads((tmp_path / "base" / "summary.json").read_text())
    assert (summary["images"], summary["subjects"]) == (6, 6)
    assert set(summary["real_photographs"]) == {"dino", "clip_i"}
    table = (tmp_path / "base" / "dreambench.md").read_text()
    assert table.strip() in text
    assert "\n| base | - | " in table  # the built-in encoder is not the customary DINO
    again = make_request(TINY, settings, cases=6, images=1)
    assert "against the base" in write_evaluation(again, tmp_path / "again", tmp_path / "base")
    assert reads.count("prompts_and_classes.txt") == 2


def test_dreambench_has_four_images_per_case(small_dreambench: Path):
    settings = ["data.source=dreambench", f"data.root={small_dreambench}"]
    request = make_request(TINY, settings)
    assert (len(request.samples), request.images) == (750, 4)
    assert make_request(TINY, settings, images=2).images == 2


def test_cases_with_two_subjects_train_and_are_evaluated(dreambench: Path, tmp_path: Path):
    """The benchmark's photographs, with our own pairs and prompts in the form of the customary list."""
    root = tmp_path / "dreambooth"
    root.mkdir()
    for path in dreambench.iterdir():
        (root / path.name).symlink_to(path)
    pairs = [
        ("a can and a clock in the snow", "can/01.jpg", "clock/03.jpg"),
        ("a cat and a vase", "cat/04.jpg", "vase/02.jpg"),
    ]
    entries = [{"prompt": prompt, "image_paths": list(pictures)} for prompt, *pictures in pairs]
    (root / "dreambench_multiip.json").write_text(json.dumps(entries))
    data = ["data.source=dreambench_pairs", f"data.root={root}", "evaluation.metrics=[]"]
    trainer = assemble(load_config(TINY, [*data, "data.held_out_share=0", f"output={tmp_path / 'run'}"]))
    row = trainer.step()
    assert row["unscored"] == 0
    assert row["gradient_norm"] > 0
    request = make_request(TINY, data)
    assert [sample.subject for sample in request.samples] == ["can+clock", "cat+vase"]
    write_evaluation(request, tmp_path / "evaluation", None)
    assert json.loads((tmp_path / "evaluation" / "summary.json").read_text())["images"] == 2
