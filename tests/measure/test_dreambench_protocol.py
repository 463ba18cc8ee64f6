"""The DreamBench protocol on the tiny built-in model; the photographs are DreamBench's own where they are at hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.config import load_config
from customized_grpo.data import Sample
from customized_grpo.measure.dreambench import (
    CAUTION,
    PUBLISHED,
    column_of,
    customary_table,
    photographs,
    real_photographs,
    with_masks,
)
from customized_grpo.measure.evaluate import make_request, write_evaluation
from customized_grpo.measure.intervals import Estimate
from customized_grpo.measure.scored_pictures import as_image
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.training.assemble import assemble

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
DREAMBENCH = Path(__file__).parents[3] / "shared" / "dreambench"


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
    pairs = [(sample.references[0], view) for sample, view in photographs(cats)]
    named = [(Path(str(reference)).stem, view.stem) for reference, view in pairs]
    assert sorted(named) == sorted(
        [*((f"cat{a}", f"cat{b}") for a in range(3) for b in range(3) if a != b), ("cup0", "cup1"), ("cup1", "cup0")]
    )


def test_the_ceiling_is_what_the_metric_says_of_photographs(cats: list[Sample]):
    """Worked out pair by pair; metrics that need another view, a region or a prompt have no ceiling."""
    lines = ("dino", "dino against=other_view", "dino region=centre", "clip_t", "copy_paste")
    config = load_config(TINY)
    metrics = {line: config.resolve(parse_reward(line)) for line in lines}
    found = real_photographs(config, metrics, cats)
    assert list(found) == ["dino"]
    features = metrics["dino"].make(torch.device("cpu"))
    by_hand = [features(as_image(view, (32, 32))[None], [sample]).item() for sample, view in photographs(cats)]
    assert found["dino"].mean == pytest.approx(float(np.mean(by_hand)), abs=1e-6)


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("dino model=facebook/dino-vits16 preprocess=benchmark", "DINO"),
        ("dino model=facebook/dinov2-base", None),
        ("dino preprocess=benchmark against=other_view", None),
        ("clip_i model=openai/clip-vit-base-patch32", "CLIP-I"),
        ("clip_i region=centre", None),
        ("clip_t", "CLIP-T"),
        ("hpsv3", "HPSv3"),
        ("hpsv3 model=a base=b", "HPSv3"),
        ("copy_paste", None),
    ],
)
def test_only_the_customary_metric_fills_a_customary_column(line: str, column: str | None):
    assert column_of(parse_reward(line)) == column


def test_the_table_sets_what_was_measured_here_apart_from_what_was_published():
    metrics = {"dino preprocess=benchmark": parse_reward("dino preprocess=benchmark"), "hpsv3": parse_reward("hpsv3")}
    measured = {"tuned": {"dino preprocess=benchmark": {"mean": 0.8}, "hpsv3": {"mean": None}}}
    real = {"dino preprocess=benchmark": Estimate(0.7741, 0.7, 0.8)}
    lines = customary_table(metrics, measured, real).splitlines()
    assert lines[2] == "| tuned | 0.800 | - | - | - | measured here |"
    assert lines[3] == "| real photographs | 0.774 | - | - | - | measured here |"
    assert len(lines) == 4 + len(PUBLISHED) + 2
    assert "| Customized-GRPO | 0.812 | - | - | 8.32 | arXiv 2510.18263, read off its figure |" in lines
    assert lines[-1] == CAUTION


def test_masks_bring_a_masked_identity(cats: list[Sample]):
    config = load_config("dreambench")
    assert with_masks(config, cats) == ()
    masked = Sample("a", "a", "b", (Image.new("RGB", (4, 4)),), mask=Image.new("L", (4, 4)))
    assert [str(metric) for metric in with_masks(config, [*cats, masked])] == ["dino region=mask preprocess=benchmark"]


@pytest.mark.skipif(not DREAMBENCH.is_dir(), reason="DreamBench's photographs are not beside the checkout")
def test_base_and_tuned_in_one_table(tmp_path: Path):
    """The command's own path on the 30 subjects; few cases, so that it takes seconds."""
    settings = ["data.source=dreambench", f"data.root={DREAMBENCH}", "evaluation.metrics=[copy_paste, clip_i]"]
    base = make_request(TINY, settings, cases=30, images=1)
    said = write_evaluation(base, tmp_path / "base", None)
    summary = json.loads((tmp_path / "base" / "summary.json").read_text())
    assert (summary["images"], summary["subjects"]) == (30, 30)
    assert set(summary["real_photographs"]) == {"dino", "clip_i"}
    table = (tmp_path / "base" / "dreambench.md").read_text()
    assert table.strip() in said
    assert "\n| base | - | " in table  # the built-in encoder is not the customary DINO
    again = write_evaluation(base, tmp_path / "again", tmp_path / "base")
    assert "against the base" in again


def test_dreambench_has_four_images_per_case():
    if not DREAMBENCH.is_dir():
        pytest.skip("DreamBench's photographs are not beside the checkout")
    settings = ["data.source=dreambench", f"data.root={DREAMBENCH}"]
    request = make_request(TINY, settings)
    assert (len(request.samples()), request.images) == (750, 4)
    assert make_request(TINY, settings, images=2).images == 2


@pytest.mark.skipif(not DREAMBENCH.is_dir(), reason="DreamBench's photographs are not beside the checkout")
def test_cases_with_two_subjects_train_and_are_evaluated(tmp_path: Path):
    """Photographs of the benchmark, pairs and prompts of our own: the customary list has this form."""
    root = tmp_path / "dreambooth"
    root.mkdir()
    for each in DREAMBENCH.iterdir():
        (root / each.name).symlink_to(each)
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
    assert [sample.subject for sample in request.samples()] == ["can+clock", "cat+vase"]
    write_evaluation(request, tmp_path / "evaluation", None)
    assert json.loads((tmp_path / "evaluation" / "summary.json").read_text())["images"] == 2
