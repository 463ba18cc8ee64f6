"""How much another busy program slows training on a CPU, by how long torch's threads spin before they sleep (Linux).

    python benchmarks/busy_cores.py --updates 8

Seconds per update of the built-in model, alone and next to a program that keeps one core busy, with the spin count set
by the command and with OpenMP's default. The two alternate, so that other load on the machine affects both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

COUNTS = {"set by the command": None, "OpenMP's default": "300000"}
BUSY = [sys.executable, "-c", "while True: pass"]


def seconds(updates: int, count: str | None) -> float:
    """The median per update, without the first one."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        settings = [f"updates={updates}", "evaluation.every=0", f"output={output}", "device=cpu"]
        environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        environment |= {} if count is None else {"GOMP_SPINCOUNT": count}
        command = [sys.executable, "-m", "customized_grpo", "train", "critters", *settings]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return median(sum(row["seconds"].values()) for row in rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    for load, busy in (("alone", 0), ("next to a busy program", 1)):
        others = [subprocess.Popen(BUSY) for _ in range(busy)]
        try:
            for _ in range(arguments.rounds):
                for name, count in COUNTS.items():
                    print(f"{load:<22} {name:<23} {seconds(arguments.updates, count):6.2f} s per update", flush=True)
        finally:
            for program in others:
                program.kill()


if __name__ == "__main__":
    main()
