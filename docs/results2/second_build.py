"""The second build of base and encoders for part D of docs/results2.md: another seed, another mixture of pictures.

    python docs/results2/second_build.py [FOLDER]   # 85 minutes of one CPU core; goes on after an interruption

FOLDER (by default build/second) gets `weights`, for `model.path` and the encoders' paths, and unfinished `stages`.
"""

import sys
from pathlib import Path

from customized_grpo.critters.build.run import Build, Recipe

folder = Path(*sys.argv[1:] or ["build/second"])
mixture = {"faithful": 0.32, "copied": 0.38, "drifted": 0.16, "wrong": 0.14}  # the first build's: .36, .32, .18, .14
Build(Recipe(seed=1, mixture=mixture), folder / "stages").run(folder / "weights")
