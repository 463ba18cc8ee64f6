"""The command `probe`: what it prints, writes and refuses."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from customized_grpo.algorithm import TimeAwareWeights, sigma_schedule
from customized_grpo.config import ConfigError, RunConfig, load_config
from customized_grpo.data import Sample
from customized_grpo.measure.probe import choose
from customized_grpo.measure.probe_findings import Findings
from customized_grpo.measure.probe_plot import draw_probe
from customized_grpo.measure.probe_steps import Profile
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.run.directory import RunDirectory
from program import Answer, start

TINY = Path(__file__).parents[1] / "tiny.yaml"


def spreads(*per_step: float, prompts: int = 4) -> Tensor:
    """[N, P]: the same for all prompts."""
    return torch.tensor(per_step).double()[:, None].expand(-1, prompts)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`customized-grpo probe` in this process, in tiny settings."""
    return lambda *arguments: start(("probe", TINY, *arguments), monkeypatch, capsys)


SMALL = ("--prompts", 2, "--draws", 2, "--device", "cpu", "adapter.rank=2")
LONGER = ("sampling.num_steps=8", "evaluation.metrics=[copy_paste]")


def test_the_command_prints_and_writes_its_results(run: Callable[..., Answer], tmp_path: Path):
    answer = run(*SMALL, *LONGER, "--output", tmp_path / "probe")
    assert answer.code == 0, answer.error
    out = answer.out
    report = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert [row["step"] for row in report["steps"]] == list(range(7))
    names = {"identity_reward", "prompt_reward", "oracle_identity", "oracle_prompt", "copy_paste"}
    assert set(report["steps"][0]["spread"]) == names
    for row in report["steps"]:
        spread, share = row["spread"]["identity_reward"], row["prompt_share"]
        head = f"{row['step']}     {row['sigma']:.3f}  {row['progress']:.3f}  "
        assert re.search(rf"^{head} +{spread['mean']:.3f} \[{spread['low']:.3f}, ", out, re.MULTILINE)
        assert f"{share['mean']:.3f} [{share['low']:.3f}, {share['high']:.3f}]" in out
        assert spread["low"] <= spread["mean"] <= spread["high"]
        assert row["gradient_norm"]["mean"] > 0
        assert row["present_weight"] == TimeAwareWeights().prompt_weight(row["step"] / 8).item()
    assert (report["prompts"], report["draws"], report["adapter"]) == (2, 2, None)
    schedule = (tmp_path / "probe" / "weighting.yaml").read_text()
    assert schedule in out
    assert Image.open(tmp_path / "probe" / "probe.png").width > 1000

    assert "objective.kind=nft" not in out

    recipe = yaml.safe_load(TINY.read_text()) | yaml.safe_load(schedule)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    weighting = load_config(str(tmp_path / "recipe.yaml")).weighting.model_dump()
    fitted_weights = TimeAwareWeights(
        **{k: v for k, v in weighting.items() if k not in ("kind", "prompt", "progress", "balance")}
    )
    for row in report["steps"]:
        assert fitted_weights.prompt_weight(row["progress"]).item() == pytest.approx(row["fitted_weight"])

    again = run(*SMALL, *LONGER, "--output", tmp_path / "probe")
    assert again.code == 2
    assert again.error.endswith(
        f"error: {tmp_path / 'probe' / 'probe.json'} exists; choose another folder with --output\n"
    )


def test_pulls_are_said_to_be_of_log_probabilities_where_training_uses_none(run: Callable[..., Answer]):
    answer = run(*SMALL, "objective.kind=nft")
    assert answer.code == 0, answer.error
    assert answer.out.endswith("those of log-probabilities, which objective.kind=nft does without.\n")


def test_a_trained_adapter_is_probed_and_different_sampling_is_noted(
    run: Callable[..., Answer], built_in: FluxKontextPolicy, excite: Any, tmp_path: Path
):
    """The adapter's file decides, not the configuration's rank and number of steps."""
    excite(built_in)
    directory = RunDirectory(
        load_config(str(TINY), [f"output={tmp_path / 'run'}", "sampling.num_steps=5"]), resume=False
    )
    directory.finish(built_in, {})
    reports = {}
    for name, adapter in (("base", ()), ("tuned", ("--adapter", directory.path / "adapter"))):
        answer = run(*SMALL, "sampling.num_steps=3", "window.last=1", *adapter, "--output", tmp_path / name)
        assert answer.code == 0, answer.error
        note = "note: the adapter comes with num_steps 5, and this configuration has 3\n"
        assert (note in answer.error) == (name == "tuned")
        reports[name] = json.loads((tmp_path / name / "probe.json").read_text())
    base, tuned = ([row["spread"]["identity_reward"]["mean"] for row in r["steps"]] for r in reports.values())
    assert base != tuned
    assert reports["tuned"]["adapter"] == str(directory.path / "adapter")
    # Three denoising steps are too few for a schedule, but enough for everything else.
    assert reports["base"]["fit"] is None
    assert "No schedule: 2 steps can have noise" in answer.out
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == ["probe.json", "probe.png"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--prompts", 13), "12 training samples cannot give 13 prompts; use --prompts 12"),
        (("--prompts", 2, "--adapter", "/no/such"), "no adapter in /no/such"),
        (("--prompts", 2, "noise.levle=1"), "noise.levle: unknown key; did you mean 'level'?"),
        (("--prompts", 2, "data.source=/no/such.json"), "/no/such.json cannot be used"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(arguments: tuple[Any, ...], complaint: str, run: Callable[..., Answer]):
    answer = run(*arguments, "--device", "cpu")
    assert answer.code == 2
    (message,) = re.findall("^error: (.*)", answer.error, re.MULTILINE)
    assert complaint in message


def test_photographs_of_one_subject_are_probed_prompt_by_prompt(run: Callable[..., Answer], tmp_path: Path):
    """Resampling the single subject as a whole would make every interval a point."""
    (tmp_path / "rex").mkdir()
    for name in ("a.png", "b.png"):
        Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / "rex" / name)
    source = (f"data.source={tmp_path / 'rex'}", "data.class_word=dog", "evaluation.metrics=[]")
    answer = run(*SMALL, *source, "sampling.num_steps=3", "window.last=1", "--output", tmp_path / "probe")
    assert answer.code == 0, answer.error
    report = json.loads((tmp_path / "probe" / "probe.json").read_text())
    for row in report["steps"]:
        interval = row["spread"]["identity_reward"]
        assert interval["low"] < interval["high"]
    assert (tmp_path / "probe" / "probe.png").exists()


def test_a_share_outside_its_interval_is_drawn(make_config: Any, samples: list[Sample], tmp_path: Path):
    """Resampled ratios are not centred on the ratio; if all prompts are the same, rounding is enough."""
    profile = Profile(dict.fromkeys(("identity_reward", "prompt_reward"), spreads(*range(1, 8))), torch.ones(7, 2))
    found = Findings.of(make_config("sampling.num_steps=8"), samples[:4], sigma_schedule(8, 3.0), profile)
    assert found.fit is not None
    outside = replace(found.fit.shares, values=found.fit.shares.values - 1e-3)
    draw_probe(replace(found, fit=replace(found.fit, shares=outside)), "shares", tmp_path / "probe.png")
    assert (tmp_path / "probe.png").exists()


def test_a_metric_that_cannot_score_is_left_out(make_config: Callable[..., RunConfig], samples: list[Sample]):
    some, none = torch.rand(3, 4).double(), torch.full((3, 4), nan).double()
    known = {"identity_reward": some, "prompt_reward": some}
    profile = Profile({**known, "oracle_prompt": none}, torch.ones(3, 2).double())
    assert set(Findings.of(make_config(), samples[:4], sigma_schedule(4, 3.0), profile).spreads) == set(known)


def test_shares_by_the_oracle_are_compared_with_those_of_the_rewards(
    make_config: Callable[..., RunConfig], samples: Any
):
    """The rewards fall, the oracle rises: (3 - 1) / 4 in three early steps of seven, and the reverse."""
    up, down = spreads(1, 1, 1, 1, 3, 3, 3), spreads(3, 3, 3, 1, 1, 1, 1)
    figures = {"identity_reward": up, "prompt_reward": down, "oracle_identity": down, "oracle_prompt": up}
    config = make_config("sampling.num_steps=8")
    profile = Profile(figures, torch.ones(7, 2).double())
    found = Findings.of(config, samples[:4], sigma_schedule(8, 3.0), profile)
    assert found.oracle_shares is not None
    assert found.oracle_shares.fall().mean == pytest.approx(1 / 4 - 3 / 4)
    assert "half: 0.500 [0.500, 0.500] by the rewards,\n-0.500 [-0.500, -0.500] by the oracle" in found.text()
    del figures["oracle_prompt"]
    without = Profile(figures, profile.gradient_norms)
    assert Findings.of(config, samples[:4], sigma_schedule(8, 3.0), without).oracle_shares is None


def test_prompts_are_chosen_from_as_many_subjects_as_possible():
    """Three of a, two of b, one of c: one of each, and a second of a and of b."""
    listed = [Sample(id=f"{n}", subject=name, prompt="p", references=(Path("x"),)) for n, name in enumerate("aaabbc")]
    assert sorted(sample.subject for sample in choose(listed, 3)) == ["a", "b", "c"]
    assert sorted(sample.subject for sample in choose(listed, 5)) == ["a", "a", "b", "b", "c"]
    with pytest.raises(ConfigError, match="6 training samples cannot give 7 prompts"):
        choose(listed, 7)
