"""DreamBench: the 30 photographed subjects of DreamBooth (arXiv 2208.12242), 25 prompts each.

Read from a clone of https://github.com/google/dreambooth: `dataset/<subject>/00.jpg, ...`, four to six photographs
each, and `dataset/prompts_and_classes.txt` with the class of each subject and two lists of prompts, for objects and
for live subjects (nine dogs and cats, according to its README).
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from customized_grpo.data.checks import check_pictures
from customized_grpo.data.copies import without_copies
from customized_grpo.data.findings import DataError, Findings, Place, show
from customized_grpo.data.lists import load_list
from customized_grpo.data.masks import check_masks
from customized_grpo.data.reading import list_folder, read_lines
from customized_grpo.data.sample import Sample
from customized_grpo.files.paths import display, is_file, is_folder

# The reference photographs of the customary list of 750 cases (datasets/dreambench_singleip.json of UNO), the same as
# in scripts/remove_dreambench_multiimg.sh of github.com/xichenpan/Kosmos-G.
REFERENCES = {
    "backpack": "02.jpg",
    "backpack_dog": "02.jpg",
    "bear_plushie": "03.jpg",
    "berry_bowl": "02.jpg",
    "can": "01.jpg",
    "candle": "02.jpg",
    "cat": "04.jpg",
    "cat2": "02.jpg",
    "clock": "03.jpg",
    "colorful_sneaker": "01.jpg",
    "dog": "02.jpg",
    "dog2": "02.jpg",
    "dog3": "05.jpg",
    "dog5": "00.jpg",
    "dog6": "02.jpg",
    "dog7": "01.jpg",
    "dog8": "04.jpg",
    "duck_toy": "01.jpg",
    "fancy_boot": "02.jpg",
    "grey_sloth_plushie": "04.jpg",
    "monster_toy": "04.jpg",
    "pink_sunglasses": "04.jpg",
    "poop_emoji": "00.jpg",
    "rc_car": "03.jpg",
    "red_cartoon": "00.jpg",
    "robot_toy": "00.jpg",
    "shiny_sneaker": "01.jpg",
    "teapot": "04.jpg",
    "vase": "02.jpg",
    "wolf_plushie": "04.jpg",
}
_LIVE = ("cat", "dog")  # classes with the prompts of live subjects
_PROMPTS = 25  # in each of the two lists
_NAMED = 3  # masks in a warning
_TEXT = "prompts_and_classes.txt"
_PAIRS = "dreambench_multiip.json"
_CLONE = "data.root is a clone of https://github.com/google/dreambooth, its folder dataset, or a copy of that folder."


def dreambench_cases(root: Path) -> list[Sample]:
    """The 750 customary cases, subject by subject: one fixed reference each, the other photographs as other views.

    root  a clone of google/dreambooth, its folder `dataset`, or a copy of that folder

    Ids are subject and number of the prompt, "backpack/00" to "wolf_plushie/24". The benchmark has no masks; if
    masks/<subject>/<its reference>.png exists next to the subjects' folders, it is used. A warning names the
    subjects that have none there.

    Raises:
        DataError: all problems of text and photographs at once.
    """
    folder = _folder(root)
    findings = Findings(folder)
    text = _parse(folder / _TEXT, findings)
    views = {name: _photographs(folder / name, reference, findings) for name, reference in REFERENCES.items()}
    masks = _masks(folder)
    checked = check_pictures(((None, view) for photographs in views.values() for view in photographs), findings)
    check_masks(((None, views[name][0], mask) for name, mask in masks.items() if views[name]), checked, findings)
    findings.raise_if_any(_CLONE)
    samples = [
        Sample(
            id=f"{subject}/{number:02d}",
            subject=subject,
            prompt=template.format(class_word),
            references=(views[subject][0],),
            other_views=tuple(views[subject][1:]),
            mask=masks.get(subject),
            class_word=class_word,
        )
        for subject, class_word in text.classes.items()
        for number, template in enumerate(text.live if class_word in _LIVE else text.objects)
    ]
    return without_copies(samples, checked)


def dreambench_pairs(root: Path) -> list[Sample]:
    """The customary cases with two subjects, in the order of UNO's list: both references, subject "can+clock".

    The pairs are defined only in that list: `datasets/dreambench_multiip.json` of https://github.com/bytedance/UNO
    (Apache-2.0) must be in `root` or next to the subjects' folders. Its entries are {"prompt": "a backpack and a
    stuffed animal in the jungle", "image_paths": [".../backpack_dog/02.jpg", ".../bear_plushie/03.jpg"]}.

    Ids are pair and number of its prompt: "backpack_dog+bear_plushie/00".

    Raises:
        DataError: the list is missing, or all its problems at once.
    """
    folder = _folder(root)
    file = next((place / _PAIRS for place in (root, folder) if is_file(place / _PAIRS)), None)
    if file is None:
        remedy = f"Copy datasets/{_PAIRS} of https://github.com/bytedance/UNO into that folder."
        raise DataError(root, [f"no {_PAIRS}"], remedy)
    numbers: dict[str, int] = {}  # of the last prompt of each pair
    pairs = []
    for sample in load_list(file, folder, reference_count=2):
        subject = "+".join(reference.parent.name for reference in sample.references if isinstance(reference, Path))
        number = numbers[subject] = numbers.get(subject, -1) + 1
        pairs.append(replace(sample, id=f"{subject}/{number:02d}", subject=subject, class_word=None))
    return pairs


def _folder(root: Path) -> Path:
    for folder in (root, root / "dataset"):
        if is_file(folder / _TEXT):
            return folder
    list_folder(root, _CLONE)  # raises if root itself is the problem
    raise DataError(root, [f"no {_TEXT} here or in dataset/"], _CLONE)


def _masks(folder: Path) -> dict[str, Path]:
    """The masks of the references, by subject."""
    names = {subject: f"masks/{subject}/{Path(reference).stem}.png" for subject, reference in REFERENCES.items()}
    found = {subject: folder / name for subject, name in names.items() if is_file(folder / name)}
    missing = [name for subject, name in names.items() if subject not in found]
    if missing and is_folder(folder / "masks"):
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        warnings.warn(
            f"references without a mask in {display(folder)}: no {', '.join(missing[:_NAMED])}{more}", stacklevel=3
        )
    return found


def _photographs(folder: Path, reference: str, findings: Findings) -> list[Path]:
    """The reference first, then the others by name."""
    try:
        views = list_folder(folder)
    except DataError as error:
        findings.include(folder, error)
        return []
    if folder / reference not in views:
        findings.add([], f"{folder / reference}: missing; it is the customary reference")
        return views
    return [folder / reference, *(view for view in views if view.name != reference)]


@dataclass
class _Text:
    """The content of prompts_and_classes.txt; templates have {} for the class."""

    classes: dict[str, str] = field(default_factory=dict)
    objects: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)


def _parse(path: Path, findings: Findings) -> _Text:
    text = _Text()
    for place, section, line in _lines(path):
        if section == "Classes":
            _read_class(place, line, text, findings)
        elif (template := _template(line)) is not None:
            (text.live if section.startswith("Live") else text.objects).append(template)
        else:
            findings.add([place], f"not a quoted prompt with {{0}} and {{1}}: {show(line)}")
    for kind, prompts in (("Object", text.objects), ("Live Subject", text.live)):
        if len(prompts) != _PROMPTS:
            findings.add([], f"{path.name}: {len(prompts)} prompts under {kind} Prompts, not {_PROMPTS}")
    missing = ", ".join(name for name in REFERENCES if name not in text.classes)
    if missing:
        findings.add([], f"{path.name}: no class for {missing}")
    return text


def _lines(path: Path) -> Iterator[tuple[Place, str, str]]:
    """(place, section, line) of each line with a class or a prompt."""
    section = ""
    for number, text in enumerate(read_lines(path), start=1):
        line = text.strip()
        if line == "Classes" or line.endswith("Prompts"):
            section = line
        elif line not in ("", "subject_name,class", "prompt_list = [", "]"):
            yield Place(path, number, "line"), section, line


def _read_class(place: Place, line: str, text: _Text, findings: Findings) -> None:
    subject, comma, class_word = (part.strip() for part in line.partition(","))
    if not (subject and comma and class_word):
        findings.add([place], f"not a subject and its class, separated by a comma: {show(line)}")
    elif subject in text.classes:
        findings.add([place], f"names {subject} a second time")
    elif subject not in REFERENCES:
        findings.add([place], f"{subject} is not one of the {len(REFERENCES)} subjects with a customary reference")
    else:
        text.classes[subject] = class_word


def _template(line: str) -> str | None:
    """ "'a {0} {1} in the snow'.format(...)," -> "a {} in the snow": the customary cases have no unique token."""
    quoted = re.match(r"""(['"])(.*?)\1""", line)
    template = quoted[2].replace("{0} {1}", "{}") if quoted else ""
    return template if template.count("{") == template.count("{}") == template.count("}") == 1 else None
