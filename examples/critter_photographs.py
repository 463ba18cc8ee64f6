"""Photographs of one subject and prompts for it, where no large model is at hand: a critter of the built-in world.

python examples/critter_photographs.py FOLDER

FOLDER gets six photographs and list.json, which `data.source` reads (docs/data.md). The built-in model knows no other
words than those of its world, so the prompts are its own. With photographs of a real subject no list is needed.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from customized_grpo.critters import world
from customized_grpo.critters.samples import SEEN_SITUATIONS

CRITTER = 2_000_007  # none that the built-in model or encoders were trained on
PHOTOGRAPHED = ("beach", "snow", "forest", "grass", "city", "desert")


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    names = {scene: f"{scene}.png" for scene in PHOTOGRAPHED}
    for scene, name in names.items():
        world.picture(CRITTER, world.HATTED.reference(scene)).save(folder / name)
    entries = []
    for number, situation in enumerate(SEEN_SITUATIONS):
        shown = [name for scene, name in names.items() if scene != situation.scene]  # elsewhere than the prompt asks
        reference, *views = shown[number % len(shown) :] + shown[: number % len(shown)]
        entries.append(
            {
                "prompt": situation.prompt,
                "image_path": reference,
                "other_views": views,
                "class_word": "critter",
                "critter": CRITTER,  # for the metric joint_success, which knows what a right picture looks like
                **{key: value for key, value in asdict(situation).items() if value is not None},
            }
        )
    (folder / "list.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
    print(f"{folder}: {len(names)} photographs and {len(entries)} prompts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
