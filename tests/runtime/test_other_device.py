"""Training and the probe on a device other than the CPU, simulated because most machines that run tests have none."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny_models
from customized_grpo.files.adapter_places import ADAPTER_FILE
from forked import start_program, train
from runs import CALIBRATED, SMALL, rows_of

TINY = Path(__file__).parents[1] / "tiny.yaml"
LEARNING_RATE = 1e-3  # of tiny.yaml: the most that AdamW changes a weight in an update
PAPER = ("objective.kl=.1", "adapter.ema.decay=.5", "evaluation.every=1", "evaluation.metrics=[copy_paste]")
NFT = ("objective.kind=nft", "shaping.rule=joint", "shaping.normalise=pooled", CALIBRATED)
COMPARED = ("reward_identity", "reward_prompt", "gradient_norm", "identity_reward_ema", "copy_paste")


@pytest.fixture
def on(tmp_path: Path) -> Callable[..., Path]:
    """The folder of a run on a device, with the settings of tiny.yaml and others."""

    def run(device: str, *settings: str, resume: bool = False) -> Path:
        folder, log = tmp_path / device, tmp_path / f"{device}.log"
        code = train([TINY, *settings, f"device={device}", f"output={folder}", *["--resume"] * resume], log)
        assert code == 0, log.read_text()
        return folder

    return run


@pytest.mark.parametrize("settings", [pytest.param(PAPER, id="paper"), pytest.param(NFT, id="nft")])
def test_a_card_trains_what_the_cpu_trains(settings: tuple[str, ...], on: Callable[..., Path]):
    """Attention and layers are computed in other pieces, so the last digits differ."""
    cpu = on("cpu", *SMALL, *settings, "updates=2")
    on("card", *SMALL, *settings, "updates=1")
    card = on("card", *SMALL, *settings, "updates=2", resume=True)
    ours, theirs = (load_file(folder / "adapter" / ADAPTER_FILE) for folder in (cpu, card))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < LEARNING_RATE / 10
    compared = set()
    for log in ("metrics.jsonl", *(["evaluations.jsonl"] if settings is PAPER else [])):
        for expected, row in zip(rows_of(cpu, log), rows_of(card, log), strict=True):
            assert row.keys() == expected.keys()
            compared |= {*COMPARED} & row.keys()
            for name in {*COMPARED} & row.keys():
                assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6)
    assert compared == ({*COMPARED} if settings is PAPER else {*COMPARED[:3]})


def test_the_probe_takes_gradients_on_a_card(tmp_path: Path):
    log, output = tmp_path / "log", tmp_path / "probed"
    few = ("--prompts", 2, "--draws", 2, "--output", output)
    process = start_program(["probe", TINY, *SMALL, "device=card", *few], log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert any(output.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "further"),
    [
        pytest.param(tiny_models.klein, ["model.guidance=4"], id="klein"),
        pytest.param(tiny_models.qwen_edit, ["model.reference_size=96"], id="qwen"),
        pytest.param(tiny_models.flux_dev, ["model.family=uno", "model.reference_size=64"], id="uno"),
    ],
)
def test_every_family_trains_on_a_card_in_half_precision(
    make: Callable[[], object], further: list[str], on: Callable[..., Path], tmp_path: Path
):
    model = tiny_models.saved(make(), tmp_path / "model")
    settings = [*SMALL, "adapter.targets=null", f"model.path={model}", "model.max_sequence_length=48", *further]
    settings += ["model.dtype=bfloat16", "model.gradient_checkpointing=true"]
    (expected,), (row,) = (rows_of(on(device, *settings)) for device in ("cpu", "card"))
    assert row["ratio_mean"] == expected["ratio_mean"] == 1
    assert row["reward_identity"] == pytest.approx(expected["reward_identity"], abs=0.02)


def test_the_simulated_card_refuses_what_cards_refuse():
    program = """
import torch, simulated_card
simulated_card.insert()
for attempt in (
    lambda: torch.ones(2, device="card") + torch.ones(2),
    lambda: torch.ones(2, device="card").numpy(),
    lambda: torch.randn(2, device="card", generator=torch.Generator()),
):
    try:
        print("allowed", attempt())
    except (RuntimeError, TypeError) as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=TINY.parent, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    for line, part in zip(lines, ("must be on one device", "numpy", "draws nothing on card"), strict=True):
        assert part in line
