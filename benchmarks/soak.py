"""A long run of the built-in model with random faults, compared with the same run undisturbed.

    python benchmarks/soak.py --updates 1000 --output runs/soak

The disturbed run is killed (SIGKILL) and stopped (SIGTERM), its newest checkpoint is damaged, and its reward runs out
of memory; whenever it ends, it is started again with --resume. In both runs one image in twenty cannot be scored. At
the end every update must be present exactly once, the adapter must equal the undisturbed run's bit for bit, and memory
must not have grown.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

REWARD = '''
import hashlib, random
import torch
from safetensors.torch import load_file

def brightness(images, samples):
    """NaN for one image in twenty, by its pixels; out of memory now and then, with more than one image."""
    if len(images) > 1 and {faults} and random.random() < 0.02:
        raise torch.OutOfMemoryError("injected")
    digests = [hashlib.sha256(image.mul(255).round().byte().numpy().tobytes()).digest()[0] for image in images]
    scores = images.mean((1, 2, 3))
    return torch.where(torch.tensor(digests) < 256 / 20, torch.nan, scores)
'''
SETTINGS = (
    *(
        "groups.prompts=2",
        "groups.size=4",
        "sampling.num_steps=4",
        "window.last=2",
        "adapter.rank=4",
        "adapter.alpha=4",
    ),
    *("data.train_samples=64", "data.held_out_samples=4", "evaluation.every=100", "evaluation.metrics=[]"),
    *("save_every=10", "keep_last=3", "device=cpu", "rewards.look.role=quality", "rewards.look.weight=0.1"),
)


def command(folder: Path, updates: int, *, faults: bool) -> list[str]:
    reward = folder.parent / f"{folder.name}_reward.py"
    reward.write_text(REWARD.format(faults=faults))
    more = (f"updates={updates}", f"output={folder}", f"rewards.look.name={reward}:brightness")
    return [sys.executable, "-m", "customized_grpo", "train", "critters", *SETTINGS, *more]


def resident(pid: int) -> float:
    """Memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def undisturbed(folder: Path, updates: int) -> list[tuple[int, float]]:
    """Run to the end; returns pairs of updates finished and memory in MiB."""
    process = subprocess.Popen(command(folder, updates, faults=False), stderr=subprocess.DEVNULL)
    memory = []
    while process.poll() is None:
        time.sleep(1)
        if (rows := done(folder)) and Path(f"/proc/{process.pid}/status").exists():
            memory.append((rows, resident(process.pid)))
    if process.returncode:
        sys.exit(f"the undisturbed run ended with {process.returncode}")
    return memory


def disturbed(folder: Path, updates: int, chance: random.Random) -> Counter[str]:
    """Run to the end through kills, stops and damaged checkpoints; returns how many of each were injected."""
    faults: Counter[str] = Counter()
    while True:
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        process = subprocess.Popen(
            [*command(folder, updates, faults=True), *resume], stderr=subprocess.PIPE, text=True
        )
        try:
            _, output = process.communicate(timeout=chance.uniform(15, 90))
        except subprocess.TimeoutExpired:
            kind = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
            process.send_signal(kind)
            _, output = process.communicate()
            faults[kind.name] += 1
        if process.returncode == 0:
            return faults
        if process.returncode not in (-signal.SIGKILL, 128 + signal.SIGTERM):
            sys.exit(f"ended with {process.returncode}: {output[-2000:]}")
        saved = sorted((folder / "checkpoints").glob("step-*[0-9]"))
        if len(saved) > 1 and chance.random() < 0.3:
            file = chance.choice([each for each in saved[-1].rglob("*") if each.stat().st_size > 100])
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 0xFF
            file.write_bytes(data)
            faults["damaged checkpoint"] += 1


def done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def rows_of(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def digest(folder: Path) -> str:
    """SHA-256 of the weights; not of the file, because the order of its metadata varies."""
    weights = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--updates", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0, help="of the faults")
    options.add_argument("--output", type=Path, default=Path("runs/soak"))
    chosen = options.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=False)
    start = time.monotonic()
    memory = undisturbed(chosen.output / "peace", chosen.updates)
    faults = disturbed(chosen.output / "faults", chosen.updates, random.Random(chosen.seed))
    peace, after = rows_of(chosen.output / "peace"), rows_of(chosen.output / "faults")
    checks = {
        "every update once": [row["update"] for row in after] == list(range(1, chosen.updates + 1)),
        "the same rows": after == peace,
        "the same adapter": digest(chosen.output / "peace") == digest(chosen.output / "faults"),
    }
    early = [mib for update, mib in memory if chosen.updates * 0.1 < update <= chosen.updates * 0.3]
    late = [mib for update, mib in memory if update > chosen.updates * 0.8]
    print(f"faults: {dict(faults)}; images without a score: {sum(row['unscored'] for row in after)}")
    print(f"memory: {max(early):.0f} MiB at 10 to 30 % of the run, {max(late):.0f} MiB in its last fifth")
    for name, held in checks.items():
        print(f"{name}: {'yes' if held else 'NO'}")
    print(f"{chosen.updates} updates twice in {time.monotonic() - start:.0f} s, torch {torch.__version__}")
    sys.exit(0 if all(checks.values()) and max(late) < 1.05 * max(early) else 1)


if __name__ == "__main__":
    main()
