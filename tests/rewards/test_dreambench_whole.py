"""The recipe `dreambench` end to end: 30 real subjects in 2 scenes each, every metric on a tiny checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from clip_checkpoint import save_clip
from hpsv3_checkpoint import save_hpsv3
from test_dino_checkpoints import CHECKPOINTS, TINY
from transformers import ViTModel

from customized_grpo.fields import CRITTERS
from customized_grpo.measure.evaluate import write_evaluation
from customized_grpo.measure.request import make_request

DREAMBENCH = Path(__file__).parents[3] / "shared" / "dreambench"


def encoders(folder: Path) -> dict[str, Path]:
    """Tiny checkpoints, one for each encoder of the recipe."""
    made = {name: folder / name for name in ("dino", "dinov2", "clip", "hpsv3")}
    for name in ("dino", "dinov2"):
        kind, more, preprocessing = CHECKPOINTS[name]
        torch.manual_seed(0)
        config = kind.config_class(**TINY, **more, image_size=224)
        kind(config, **({"add_pooling_layer": False} if kind is ViTModel else {})).save_pretrained(made[name])
        (made[name] / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    for save, name in ((save_clip, "clip"), (save_hpsv3, "hpsv3")):
        made[name].mkdir()
        save(made[name])
    return made


def settings(made: dict[str, Path]) -> list[str]:
    return [
        f"model.path={CRITTERS}",
        *("model.dtype=float32", "model.height=32", "model.width=32", "model.max_sequence_length=32"),
        *("device=cpu", "sampling.num_steps=4", "groups.rollout_batch=50", f"data.root={DREAMBENCH}"),
        f"rewards.identity.model={made['dino']}",
        f"rewards.prompt.model={made['clip']}",
        "evaluation.metrics=["
        f"{{name: clip_i, model: {made['clip']}}}, {{name: hpsv3, model: {made['hpsv3']}, base: {made['hpsv3']}}}, "
        f"{{name: dino, model: {made['dinov2']}}}, {{name: dino, model: {made['dinov2']}, against: other_view}}, "
        f"{{name: copy_paste, model: {made['dinov2']}}}]",
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a prompt of", "ignore:.*longer than the model reads")
@pytest.mark.skipif(not DREAMBENCH.is_dir(), reason="DreamBench's photographs are not next to the checkout")
def test_the_protocol_runs_on_all_subjects(tmp_path: Path):
    request = make_request("dreambench", settings(encoders(tmp_path / "encoders")), images=1, cases=60)
    table = write_evaluation(request, tmp_path / "base", None)
    summary = json.loads((tmp_path / "base" / "summary.json").read_text())
    assert (summary["images"], summary["subjects"]) == (60, 30)
    assert list(summary["metrics"]) == [
        *("dino preprocess=benchmark", "clip_t", "clip_i", "hpsv3", "dino", "dino against=other_view", "copy_paste"),
    ]
    assert all(figure["unscored"] == 0 for figure in summary["metrics"].values())
    assert list(summary["real_photographs"]) == ["dino preprocess=benchmark", "clip_i", "dino"]
    row = next(line for line in table.splitlines() if line.startswith("| base |"))
    assert "| - |" not in row  # every customary column is filled
    assert len(list((tmp_path / "base" / "images").iterdir())) == 60
