"""How training on a CPU bears another busy program, by how long torch's threads spin before they sleep (Linux).

    python benchmarks/busy_cores.py --updates 8

Seconds an update of the built-in model, alone and beside one program that keeps a core busy, with the spin count that
the command sets and with OpenMP's own; the two take turns, so that what else the machine does meets both.
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

COUNTS = {"as the command sets it": None, "OpenMP's own": "300000"}
BUSY = [sys.executable, "-c", "while True: pass"]


def seconds(updates: int, count: str | None) -> float:
    """Of an update: the median, the first left out."""
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
    for beside, busy in (("alone", 0), ("beside a busy program", 1)):
        others = [subprocess.Popen(BUSY) for _ in range(busy)]
        try:
            for _ in range(arguments.rounds):
                for name, count in COUNTS.items():
                    print(f"{beside:<22} {name:<23} {seconds(arguments.updates, count):6.2f} s an update", flush=True)
        finally:
            for each in others:
                each.kill()


if __name__ == "__main__":
    main()
