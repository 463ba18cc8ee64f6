"""A probe on models with known answers, on the built-in model in small, and the schedule that is fitted to it."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from customized_grpo import cli
from customized_grpo.algorithm import Dynamics, TimeAwareWeights, sigma_schedule, step_distribution
from customized_grpo.analysis.probe import Findings, choose
from customized_grpo.analysis.probe_plot import draw_probe
from customized_grpo.analysis.probe_steps import Probe, Profile, spread_within
from customized_grpo.config import ConfigError, RunConfig, load_config
from customized_grpo.data import Sample
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.rollout import Sampler
from customized_grpo.run_directory import RunDirectory, SamplingSettings

STEPS, DIMENSIONS = 6, 3
SIGMAS = sigma_schedule(STEPS, 3.0)
TINY = Path(__file__).parents[1] / "tiny.yaml"


# --- models with known answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """A condition that says nothing: which entries of the batch these are."""

    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def repeat(self, count: int) -> "Places":
        return Places(self.index.repeat_interleave(count))

    def __getitem__(self, part: slice | Tensor) -> "Places":
        return Places(self.index[part])


class Linear:
    """Latents [B, 3] that are their own picture; velocity(x, step) is given, plus a trainable shift that is zero."""

    def __init__(self, velocity: Callable[[Tensor, int], Tensor]):
        self.field, self.shift = velocity, nn.Parameter(torch.zeros(DIMENSIONS))
        self.module, self.device, self.calls = nn.Module(), torch.device("cpu"), []

    def sigmas(self, num_steps: int, shift: float | str) -> Tensor:
        return sigma_schedule(num_steps, float(shift))

    def encode(self, samples: Sequence[Sample]) -> Places:
        return Places(torch.arange(len(samples)))

    def noise(self, condition: Any, seeds: Sequence[int]) -> Tensor:  # noqa: ARG002
        return torch.stack([torch.randn(DIMENSIONS, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def velocity(self, latents: Tensor, sigma: float | Tensor, condition: Any) -> Tensor:
        assert len(latents) == len(condition)
        step = int((SIGMAS - torch.as_tensor(sigma)).abs().argmin())
        self.calls.append((step, len(latents)))
        return self.field(latents, step) + self.shift

    def decode(self, latents: Tensor, condition: Any) -> Tensor:  # noqa: ARG002
        return latents

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {"shift": self.shift}

    @contextmanager
    def base_policy(self) -> Iterator[None]:
        yield

    def save_adapter(self, directory: Path) -> None:
        raise NotImplementedError

    def load_adapter(self, directory: Path) -> None:
        raise NotImplementedError


def coordinate(index: int, scale: float = 1.0) -> Callable[[Tensor, Sequence[Sample]], Tensor]:
    return lambda images, samples: images[:, index] / scale  # noqa: ARG005


def probe_of(
    policy: Any,
    samples: Sequence[Sample],
    figures: Any,
    *,
    draws: int = 4,
    dynamics: Dynamics = "dance",
    batch: int = 7,
) -> Probe:
    return Probe(policy, Sampler(SIGMAS, dynamics, 0.4, batch), samples, figures, draws, seed=0)


def drawn(probe: Probe, step: int) -> Tensor:
    """The standard normal numbers [P, G, 3] that a probe draws at a step."""
    seeds = [[probe.seed_of(sample, step, draw) for draw in range(probe.draws)] for sample in probe.samples]
    return torch.stack(
        [torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(s)) for s in row]) for row in seeds]
    )


@pytest.mark.parametrize("dynamics", ["dance", "flow", "cps"])
def test_the_spread_is_a_steps_noise_times_what_the_later_steps_make_of_it(dynamics: Dynamics, samples: list[Sample]):
    """v = -x / 2, so that a deterministic step multiplies by 1 + (sigma - sigma') / 2; the reward is a coordinate."""
    probe = probe_of(Linear(lambda x, _: -x / 2), samples[:5], {"first": coordinate(0)}, dynamics=dynamics)
    spreads = probe.measure().spreads["first"]
    assert spreads.shape == (STEPS - 1, 5)
    for step in range(STEPS - 1):
        x = torch.zeros(1, 1)
        _, std = step_distribution(dynamics, x, x, SIGMAS[step], SIGMAS[step + 1], 0.4, SIGMAS[1])
        gain = torch.prod(1 + (SIGMAS[step + 1 : -1] - SIGMAS[step + 2 :]) / 2)
        expected = std * gain * drawn(probe, step)[..., 0].double().std(dim=1)
        torch.testing.assert_close(spreads[step], expected, rtol=1e-4, atol=1e-6)


def erased_at(step: int, then_kept: bool = True) -> Callable[[Tensor, int], Tensor]:
    """Coordinate 0 becomes 0 at `step`; at the step after it, coordinate 1 becomes 10,000 times coordinate 0."""

    def velocity(x: Tensor, now: int) -> Tensor:
        dt = (SIGMAS[now + 1] - SIGMAS[now]).item()
        v = torch.zeros_like(x)
        if now == step:
            v[:, 0] = -x[:, 0] / dt
        if now == step + 1 and then_kept:
            v[:, 1] = (1e4 * x[:, 0] - x[:, 1]) / dt
        return v

    return velocity


def test_only_the_step_that_decides_a_reward_spreads_it(samples: list[Sample]):
    """Noise before step 2 is erased there, noise after it comes too late for what step 3 keeps."""
    probe = probe_of(Linear(erased_at(2)), samples[:6], {"kept": coordinate(1, 1e4)}, draws=5)
    spreads = probe.measure().spreads["kept"]
    assert spreads[2].min() > 0.01
    for step in (0, 1, 3, 4):
        assert spreads[step].max() < 1e-3 * spreads[2].min()


def test_a_reward_that_ignores_the_picture_has_no_spread(samples: list[Sample]):
    figure = lambda images, owners: torch.tensor([float(sample.id[-2:]) for sample in owners])  # noqa: E731, ARG005
    spreads = probe_of(Linear(lambda x, _: x), samples[:4], {"name": figure}).measure().spreads["name"]
    assert torch.equal(spreads, torch.zeros(STEPS - 1, 4).double())


@pytest.mark.parametrize("dynamics", ["dance", "flow", "cps"])
def test_gradient_norms_are_factor_times_noise(dynamics: Dynamics, samples: list[Sample], make_config: Any):
    """v = shift: d log_prob / d shift = (b / std) noise / D, b / std being the gradient factor and D = 3."""
    probe = probe_of(Linear(lambda x, _: 0 * x), samples[:10], {"first": coordinate(0)}, dynamics=dynamics)
    profile = probe.measure()
    config = make_config(f"noise.dynamics={dynamics}", "noise.level=.4", f"sampling.num_steps={STEPS}")
    figures = {"identity_reward": profile.spreads["first"], "prompt_reward": profile.spreads["first"]}
    findings = Findings.of(config, samples[:10], SIGMAS, Profile(figures, profile.gradient_norms))
    assert profile.gradient_norms.shape == (STEPS - 1, 8)
    for step, factor in enumerate(findings.gradient_factors):
        expected = factor * drawn(probe, step)[:8, 0].double().norm(dim=1) / DIMENSIONS
        torch.testing.assert_close(profile.gradient_norms[step], expected, rtol=1e-4, atol=1e-7)


def test_the_prefix_is_extended_and_every_draw_computed_from_its_noise_on(samples: list[Sample]):
    """P prompts of G draws. At a step: once for the noise, once for the prefix, M times alone for the gradient."""
    policy = Linear(lambda x, _: x)
    probe_of(policy, samples[:3], {"first": coordinate(0)}, draws=4, batch=64).measure()
    expected = []
    for step in range(STEPS - 1):
        later = [(after, 3 * 4) for after in range(step + 1, STEPS)]
        expected += [(step, 3), *later, *[(step, 1)] * 3, (step, 3)]
    assert policy.calls == expected


def test_every_image_has_a_seed_of_its_own(samples: list[Sample]):
    probe = probe_of(Linear(lambda x, _: x), samples[:3], {})
    images = [(sample, step, draw) for sample in probe.samples for step in range(5) for draw in range(4)]
    assert len({probe.seed_of(*image) for image in images} | {probe.seed_of(sample) for sample in probe.samples}) == 63


# --- the built-in model ----------------------------------------------------------------------------------------------


@pytest.fixture
def built_in(make_policy: Callable[..., FluxKontextPolicy]) -> FluxKontextPolicy:
    return make_policy(rank=2)


def test_draws_are_those_of_the_sampler_that_trains(built_in: FluxKontextPolicy, samples: list[Sample]):
    seen = []

    def keep(images: Tensor, _: Sequence[Sample]) -> Tensor:
        seen.append(images)
        return images.mean(dim=(1, 2, 3))

    probe = probe_of(built_in, samples[:2], {"kept": keep}, draws=3, dynamics="flow", batch=64)
    probe.measure()
    condition = built_in.encode(samples[:2])
    for step, images in enumerate(seen):

        def seed_of(group: int, member: int | None, step: int = step) -> int:
            sample = samples[group]
            return probe.seed_of(sample) if member is None else probe.seed_of(sample, step, member)

        rollout = probe.sampler.rollout(built_in, condition, 3, (step,), seed_of)
        torch.testing.assert_close(images, rollout.images, atol=1e-4, rtol=0)
    assert len(seen) == STEPS - 1


@pytest.mark.parametrize("batch", [1, 4])  # 6 images: remainders of 0 and 2
def test_figures_do_not_depend_on_the_batch(batch: int, built_in: FluxKontextPolicy, samples: list[Sample]):
    def contrast(images: Tensor, owners: Sequence[Sample]) -> Tensor:
        assert len(images) == len(owners)
        return images.std(dim=(1, 2, 3))

    one, other = (
        probe_of(built_in, samples[:3], {"contrast": contrast}, draws=2, dynamics="flow", batch=size).measure()
        for size in (64, batch)
    )
    torch.testing.assert_close(one.spreads["contrast"], other.spreads["contrast"], atol=1e-5, rtol=0)
    torch.testing.assert_close(one.gradient_norms, other.gradient_norms, rtol=1e-3, atol=0)


def test_a_probe_leaves_no_gradient_behind(built_in: FluxKontextPolicy, samples: list[Sample]):
    profile = probe_of(built_in, samples[:2], {"mean": lambda x, _: x.mean(dim=(1, 2, 3))}, draws=2).measure()
    assert (profile.gradient_norms > 0).all()
    assert all(weight.grad is None for weight in built_in.trainable_parameters().values())


def test_spread_within_a_prompt_by_hand():
    """(1, 2, 3): mean 2, squares 1 + 0 + 1 over 2. (0, nan, 4): mean 2, squares 4 + 4 over 1."""
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, nan, 4.0], [5.0, 5.0, 5.0], [nan, nan, 7.0]])
    expected = torch.tensor([1.0, 8**0.5, 0.0, nan]).double()
    torch.testing.assert_close(spread_within(scores), expected, equal_nan=True)


def spreads(*per_step: float, prompts: int = 4) -> Tensor:
    """[N, P]: all prompts alike."""
    return torch.tensor(per_step).double()[:, None].expand(-1, prompts)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`customized-grpo probe` in this process, in tiny settings: exit code, and output or error message."""

    def start(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["customized-grpo", "probe", str(TINY), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code, captured = stopped.value.code, capsys.readouterr()
        assert isinstance(code, int | None)
        message = captured.err[max(captured.err.find("error: "), 0) :]  # bars and notes may stand before it
        return (code, message.rstrip("\n")) if code else (0, captured.out + captured.err)

    return start


SMALL = ("--prompts", 3, "--draws", 2, "--device", "cpu", "adapter.rank=2")
LONGER = ("sampling.num_steps=8", "evaluation.metrics=[copy_paste]")


def test_the_command_prints_and_writes_what_it_found(run: Callable[..., tuple[int, str]], tmp_path: Path):
    code, out = run(*SMALL, *LONGER, "--output", tmp_path / "probe")
    assert code == 0, out
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
    assert (report["prompts"], report["draws"], report["adapter"]) == (3, 2, None)
    schedule = (tmp_path / "probe" / "weighting.yaml").read_text()
    assert schedule in out
    assert Image.open(tmp_path / "probe" / "probe.png").width > 1000

    recipe = yaml.safe_load(TINY.read_text()) | yaml.safe_load(schedule)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    weighting = load_config(str(tmp_path / "recipe.yaml")).weighting.model_dump()
    fitted_weights = TimeAwareWeights(
        **{k: v for k, v in weighting.items() if k not in ("kind", "prompt", "progress")}
    )
    for row in report["steps"]:
        assert fitted_weights.prompt_weight(row["progress"]).item() == pytest.approx(row["fitted_weight"])

    code, error = run(*SMALL, *LONGER, "--output", tmp_path / "probe")
    assert (code, error) == (
        2,
        f"error: {tmp_path / 'probe' / 'probe.json'} exists; choose another folder with --output",
    )


def test_a_trained_adapter_is_probed_and_its_sampling_compared(
    run: Callable[..., tuple[int, str]], built_in: FluxKontextPolicy, excite: Any, tmp_path: Path
):
    """Excited weights of rank 2, under a configuration of rank 16: the file decides."""
    excite(built_in)
    settings = SamplingSettings(5, 3.0, 2.5, 32, 32, 16)
    directory = RunDirectory(tmp_path / "run", "", settings, resume=False)
    directory.finish(built_in)
    reports = {}
    for name, adapter in (("base", ()), ("tuned", ("--adapter", directory.path / "adapter"))):
        arguments = ("--prompts", 2, "--draws", 2, "--device", "cpu", *adapter, "--output", tmp_path / name)
        code, out = run(*arguments)
        assert code == 0, out
        assert ("note: the adapter was trained with num_steps 5 and is probed with 4\n" in out) == (name == "tuned")
        reports[name] = json.loads((tmp_path / name / "probe.json").read_text())
    base, tuned = ([row["spread"]["identity_reward"]["mean"] for row in r["steps"]] for r in reports.values())
    assert base != tuned
    assert reports["tuned"]["adapter"] == str(directory.path / "adapter")
    # Four denoising steps are too few for a schedule: everything else is there.
    assert reports["base"]["fit"] is None
    assert "No schedule: 3 steps can have noise" in out
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
def test_what_a_user_gets_wrong_is_one_line(
    arguments: tuple[Any, ...], complaint: str, run: Callable[..., tuple[int, str]]
):
    code, error = run(*arguments, "--device", "cpu")
    assert code == 2
    assert error.startswith("error: ")
    assert complaint in error


def test_photographs_of_one_subject_are_probed_prompt_by_prompt(run: Callable[..., tuple[int, str]], tmp_path: Path):
    """As a whole, one subject would make every interval a point, and the picture of shares impossible."""
    (tmp_path / "rex").mkdir()
    for name in ("a.png", "b.png"):
        Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / "rex" / name)
    source = (f"data.source={tmp_path / 'rex'}", "data.class_word=dog", "evaluation.metrics=[]")
    code, out = run(*SMALL, *source, "sampling.num_steps=8", "--output", tmp_path / "probe")
    assert code == 0, out
    report = json.loads((tmp_path / "probe" / "probe.json").read_text())
    for row in report["steps"]:
        for interval in (row["spread"]["identity_reward"], row["prompt_share"]):
            assert interval["low"] < interval["high"]
    assert report["fit"]["standard_error_of_shares"] > 0
    assert report["fit"]["verdict"].startswith("Only 3 prompts, too few")
    assert (tmp_path / "probe" / "probe.png").exists()


def test_a_share_outside_its_interval_is_drawn(make_config: Any, samples: list[Sample], tmp_path: Path):
    """Resampling a ratio is not centred on it, and where all prompts are alike rounding is enough."""
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


def test_the_oracles_shares_stand_beside_those_of_the_rewards(make_config: Callable[..., RunConfig], samples: Any):
    """The rewards fall, the oracle rises: (3 - 1) / 4 in three early steps of seven, and the reverse."""
    up, down = spreads(1, 1, 1, 1, 3, 3, 3), spreads(3, 3, 3, 1, 1, 1, 1)
    figures = {"identity_reward": up, "prompt_reward": down, "oracle_identity": down, "oracle_prompt": up}
    config = make_config("sampling.num_steps=8")
    profile = Profile(figures, torch.ones(7, 2).double())
    found = Findings.of(config, samples[:4], sigma_schedule(8, 3.0), profile)
    assert found.truth is not None
    assert found.truth.fall().mean == pytest.approx(1 / 4 - 3 / 4)
    assert "half: 0.500 [0.500, 0.500] by the rewards,\n-0.500 [-0.500, -0.500] by the oracle" in found.text()
    without = {name: figure for name, figure in figures.items() if name != "oracle_prompt"}
    assert (
        Findings.of(config, samples[:4], sigma_schedule(8, 3.0), Profile(without, profile.gradient_norms)).truth
        is None
    )


def test_a_reward_that_cannot_score_stops_the_probe_at_the_first_step(samples: list[Sample]):
    policy = Linear(lambda x, _: x)
    figures = {"identity_reward": coordinate(0), "prompt_reward": lambda x, _: x[:, 0] * nan}
    with pytest.raises(ValueError, match="the prompt reward cannot score these samples"):
        probe_of(policy, samples[:3], figures, batch=64).measure()
    assert [step for step, _ in policy.calls] == list(range(STEPS))


def test_prompts_show_as_many_subjects_as_there_are():
    """Three of a, two of b, one of c: one of each, then a second of a and of b."""
    listed = [Sample(id=f"{n}", subject=name, prompt="p", references=(Path("x"),)) for n, name in enumerate("aaabbc")]
    assert [sample.id for sample in choose(listed, 5)] == ["0", "3", "5", "1", "4"]
    with pytest.raises(ConfigError, match="6 training samples cannot give 7 prompts"):
        choose(listed, 7)
