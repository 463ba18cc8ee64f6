"""Folders for a report, written as the commands write them, with chosen texts and sizes."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from customized_grpo.compare.comparison import Comparison
from customized_grpo.compare.tables import tabulate
from customized_grpo.files.pictures import Shown
from customized_grpo.run.cases import keep_cases, keep_reference

TINY = Path(__file__).parents[1] / "tiny.yaml"
HOSTILE = "a <script>document.title = 'hacked'</script> & \"critter\" </script><!-- '"


def shown(number: int, prompt: str, update: int = 0) -> Shown:
    """A case with a picture of its own after each update."""
    rng, side = np.random.default_rng((number, update)), 32
    pictures = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(2)]
    scores = {"identity_reward": 0.5, "prompt_reward": float("nan"), "oracle_identity": 1.0}
    return Shown(f"case-{number}", f"subject {number}", prompt, pictures[0], pictures[1], scores)


def fake_run(folder: Path, prompt: str = HOSTILE, warning: str = "it <b>fell</b>") -> Path:
    """Two evaluations and twelve updates, as `train` writes them."""
    folder.mkdir(parents=True)
    config = yaml.safe_load(TINY.read_text()) | {"output": "/home/someone/secret", "seed": 0}
    config |= {"model": {"path": "critters"}, "data": {"source": "critters"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "command": ["/home/someone/bin"]}))
    metrics = ("identity_reward", "prompt_reward", "oracle_identity", "oracle_prompt", "joint_success")
    with (folder / "evaluations.jsonl").open("w") as file:
        for update in (0, 12):
            values = dict.fromkeys(metrics, 0.3 + 0.01 * update)
            sizes = {"spread": dict.fromkeys(metrics, 0.4), "scored": dict.fromkeys(metrics, 64)}
            file.write(json.dumps({"update": update, **values, **sizes}) + "\n")
            keep_cases(folder / "images", f"eval-{update:05d}", [shown(n, prompt, update) for n in range(2)])
    with (folder / "metrics.jsonl").open("w") as file:
        for update in range(1, 13):
            row: dict[str, Any] = {"update": update, "reward_identity": 0.5, "reward_prompt": update / 20}
            row |= {"both_good": 0.2, "conflict": 0.6, "both_bad": 0.2, "conflict_excess": 0.1, "correlation": None}
            row |= {"saturated_identity": 0.0, "saturated_prompt": 0.5}
            row["steps"] = [{"step": 1, "prompt_weight": 0.7, "prompt_pull": 0.3, "identity_pull": 0.1}]
            if update == 12:
                row["warnings"] = [{"update": 12, "kind": "hacking suspected", "message": warning}]
            file.write(json.dumps(row) + "\n")
    return folder


def fake_demo(folder: Path) -> Path:
    fake_run(folder / "run")
    figure = {"mean": 0.25, "low": 0.2, "high": 0.31}
    better = {"mean": 0.75, "low": 0.7, "high": 0.79}
    metrics = ("identity_reward", "joint_success", "oracle_identity", "oracle_prompt")
    summary: dict[str, Any] = {"cases": 512, "cases_unseen_combinations": 128, "seconds": {}}
    summary["seconds"] = {"install_excluded_total": 250.4}
    for part in ("", "_unseen_combinations"):
        summary |= {f"base{part}": dict.fromkeys(metrics, figure), f"tuned{part}": dict.fromkeys(metrics, better)}
    (folder / "summary.json").write_text(json.dumps(summary))
    for name in ("base", "tuned"):
        keep_cases(folder / "cases", name, [shown(n, f"prompt {n}") for n in range(5)])
    return folder


def fake_comparison(folder: Path, weights: Sequence[float] = ()) -> Path:
    """Two arms, and one more for each weight of the prompt."""
    file = folder.with_suffix(".yaml")
    arms: dict[str, Any] = {"naive": {"shaping.rule": "linear"}, "sars_tdw": None}
    constant = {"weighting.kind": "constant"}
    others = {f"weight{weight:g}".replace("0.", "."): {**constant, "weighting.prompt": weight} for weight in weights}
    arms |= others
    settings: dict[str, Any] = {"output": str(folder), "recipe": str(TINY), "seeds": [0, 1], "arms": arms}
    if others:
        front = [*list(others)[:2], "naive", *list(others)[2:]]
        settings |= {"selections": {"two_weights": list(others)[:2]}, "front": front, "compare_on": ["joint_success"]}
    primary = {"arm": "sars_tdw", "against": ["naive"], "metric": "joint_success"}
    file.write_text(yaml.safe_dump({**settings, "primary": primary}))
    comparison = Comparison.read(file)
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for place, arm in enumerate(("base", *arms)):
        for seed in (0, 1):
            run = comparison.folder(arm, seed) / "run"
            fake_run(run, prompt=f"prompt of seed {seed}")
            held_out = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
            updates = [{"update": n, "conflict_excess": 0.1 * place, "correlation": -0.1} for n in range(1, 13)]
            result = {
                "test": {"dino": 0.5, "clip_t": 0.4, "joint_success": 0.1 * place + 0.1 * seed}
                | ({"oracle_identity": 0.1 * place, "oracle_prompt": 0.5 + 0.1 * seed} if others else {}),
                "updates": [] if arm == "base" else updates,
                "held_out": [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in held_out],
                "warnings": []
                if arm != "naive"
                else [{"update": 12, "kind": "competitive degradation", "message": "!"}],
            }
            (run.parent / "result.json").write_text(json.dumps(result))
            results.setdefault(arm, {})[seed] = result
    (folder / "comparison.json").write_text(json.dumps(tabulate(comparison, results)[0]))
    return folder


def fake_evaluation(
    folder: Path, cases: int, side: int, *, steps: int = 10, subjects: int | None = None, encoder: str = "critters"
) -> Path:
    """Pictures of noise: nothing compresses worse. Every case has its own subject, or there are `subjects` in all."""
    for part in ("images", "references"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    drawn: dict[int, bytes] = {}
    rows = []
    for n in range(cases):
        turn = n % 60  # enough different ones
        if turn not in drawn:
            noise.rotate(turn, fillcolor=(turn, 0, 0)).save(file := BytesIO(), "PNG", compress_level=1)
            drawn[turn] = file.getvalue()
        (folder / "images" / f"{n:05d}-s{n}-0.png").write_bytes(drawn[turn])
        if n % 4 == 0:
            keep_reference(noise, folder / "references" / f"{n:05d}-s{n}.png")
        rows.append(
            {
                "sample": f"s{n}",
                "subject": f"s{n % (subjects or cases)}",
                "prompt": f"prompt {n}",
                "index": 0,
                "scores": {"dino": 0.5},
            }
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model": "critters", "data": "critters", "adapter": None, "sampling": {"num_steps": steps}}
    settings["metrics"] = {"dino": f"dino model={encoder}"}
    (folder / "settings.json").write_text(json.dumps(settings))
    figure = {"mean": 0.5, "low": 0.4, "high": 0.6, "unscored": 0, "trained_on": False}
    summary = {"images": cases, "subjects": subjects or cases, "metrics": {"dino": figure}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
