"""The model card of an adapter: README.md beside its weights, as the Hugging Face Hub reads it, and its pictures.

A card follows from the files of a run alone, so the same run gives the same card.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from pydantic import BaseModel, TypeAdapter

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.config import CONFIG, RunConfig, load_config
from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN
from customized_grpo.files.adapter_places import FINAL, folder_of
from customized_grpo.files.durable import make_folder, saving, write_text
from customized_grpo.files.json_text import read_json
from customized_grpo.files.paths import as_argument, inside, why
from customized_grpo.files.pictures import draw_card, draw_sheet, save_png
from customized_grpo.run.cases import CASES
from customized_grpo.run.checkpoints import EMA
from customized_grpo.run.own_samples import OwnSamples
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.sharing.licences import licence_of
from customized_grpo.sharing.loading import HERE, Place, program
from customized_grpo.sharing.markdown import code, on_one_line, plain
from customized_grpo.sharing.public import public_config, public_name
from customized_grpo.sharing.scores import Scores, scores_of_evaluations, scores_of_run

CARD, PICTURES = "README.md", "pictures"
SHEET = f"{PICTURES}/held-out.png"
TAG = "customized-grpo"  # of every card; how `push` knows its own repositories
SHOWN, SIDE, GALLERY = 8, 192, 4  # cases on the sheet, pixels per side there, pictures in the Hub's gallery


class _Case(BaseModel):
    prompt: str
    reference: str
    picture: str


@dataclass(frozen=True)
class Trained:
    """An adapter of this program and the run that it is from.

    adapter  its folder
    run      the run's folder; None if only the adapter is here
    update   after which it was saved
    average  whether it is the moving average
    """

    adapter: Path
    config: RunConfig
    run: Path | None
    update: int
    average: bool

    @classmethod
    def find(cls, adapter: Path) -> Trained | None:
        """From what `find_adapter` returns; None for an adapter of another program, which has no configuration.

        Raises ConfigError if the configuration is damaged.
        """
        folder = folder_of(adapter).absolute()
        if not (folder / CONFIG).is_file():
            return None
        config = load_config(str(folder))
        run = next((each for each in list(folder.parents)[:3] if (each / "environment.json").is_file()), None)
        average = folder.name == EMA or folder.name.startswith(f"{FINAL}-{EMA}")
        saved = folder.parent if folder.name == EMA else folder
        number = saved.name.removeprefix("step-")
        update = int(number) if saved.name.startswith("step-") and number.isdecimal() else config.updates
        return cls(folder, config, run, update, average)

    def scores(self) -> Scores | None:
        """Raises InputError if a file of the run is damaged."""
        if self.run is None:
            return None
        of_run = scores_of_run(self.run, self.config, self.update, average=self.average)
        return scores_of_evaluations(self.run, self.adapter) or of_run

    def cases(self) -> list[tuple[_Case, Path, Path, Path]]:
        """(case, reference, base's picture, tuned picture) of the run's evaluations before training and after it.

        Raises InputError if a list of cases is damaged, or names a file outside of the run.
        """
        if self.run is None or self.average or self.update == 0:
            return []
        images = self.run / "images"
        before, after = (images / f"eval-{update:05d}" / CASES for update in (0, self.update))
        if not (before.is_file() and after.is_file()):
            return []
        shape = TypeAdapter(list[_Case])
        parts = (read_json(file, shape, "start the run again, or remove the file") for file in (before, after))
        pairs = [(_Case(**old), _Case(**new)) for old, new in zip(*parts, strict=False)]
        found = [
            (new, _beneath(images, new.reference), _beneath(images, old.picture), _beneath(images, new.picture))
            for old, new in pairs[:SHOWN]
            if old.prompt == new.prompt
        ]
        return [each for each in found if all(path.is_file() for path in each[1:])]


def write_card(
    trained: Trained,
    folder: Path,
    *,
    place: Place = HERE,
    pictures: bool = True,
    public: bool = False,
) -> None:
    """Write README.md into a folder, and the pictures that it shows into `pictures`/ there.

    place     where readers find the weights
    pictures  whether to show held-out cases, the user's references among them
    public    whether config.yaml there is without the folders of the user's machine

    Raises SavingError, and InputError if a file of the run is damaged.
    """
    cases = trained.cases() if pictures else []
    make_folder(folder)
    shutil.rmtree(folder / PICTURES, ignore_errors=True)  # those of an earlier card
    gallery = []
    if cases:
        make_folder(folder / PICTURES)
        cards = []
        for number, (case, *paths) in enumerate(cases):
            shown = [_opened(path) for path in paths]
            cards.append(draw_card(shown, case.prompt, ["reference", "base", "tuned"], SIDE))
            if number < GALLERY:
                name = f"{PICTURES}/{number:02d}.png"
                with saving(folder / name):
                    shutil.copyfile(paths[-1], folder / name)
                gallery.append({"text": on_one_line(case.prompt), "output": {"url": name}})
        save_png(draw_sheet(cards, columns=2), folder / SHEET)
    text = _text(trained, [case for case, *_ in cases], place, public=public)
    card = ModelCard(f"---\n{_front_matter(trained, gallery).to_yaml()}\n---\n\n{text}")  # refuses broken front matter
    write_text(folder / CARD, str(card))


def write_own_card(adapter: Path) -> None:
    """Write the card of a run's adapter beside it. An adapter of another program gets none. Raises as `write_card`."""
    if trained := Trained.find(adapter):
        write_card(trained, adapter)


def _beneath(images: Path, name: str) -> Path:
    """Cards are made to be passed on: a run from elsewhere must not put other files of this machine on one."""
    if (file := inside(PurePath(name), images)) is None:
        raise UsageError(f"{images} names the picture {name!r}, which lies outside; remove it from {CASES}")
    return file


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as a picture: {why(error)}; restore it, or remove it") from None


def _front_matter(trained: Trained, gallery: list[dict[str, Any]]) -> ModelCardData:
    """What the Hub sorts and shows a model by."""
    model = trained.config.model.path
    on_hub = _is_hub_id(model)
    further: dict[str, Any] = {"base_model_relation": "adapter"} if on_hub else {}
    if gallery:
        further["widget"] = gallery
    return ModelCardData(
        base_model=model if on_hub else None,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["lora", "diffusers", "subject-driven", "reinforcement-learning", "grpo", TAG],
        **licence_of(model).fields(),
        **further,
    )


def _is_hub_id(model: str) -> bool:
    return model not in BUILT_IN and public_name(model) == model and model.count("/") == 1 and not Path(model).exists()


def _text(trained: Trained, cases: list[_Case], place: Place, *, public: bool) -> str:
    """The card's Markdown below the front matter."""
    from jinja2 import Environment

    config, scores = trained.config, trained.scores()
    clean, model = public_config(config), config.model
    settings = SamplingSettings.read(trained.adapter) or SamplingSettings.of(config)
    prompt = on_one_line(cases[0].prompt) if cases else f"a {config.data.class_word or 'dog'} on a beach"
    licence = licence_of(model.path)
    base = clean.model.path
    built_in = model.path in BUILT_IN
    marks = {name: " \\*" if scores and name in scores.trained else "" for name in (scores.tuned if scores else ())}
    figures = [
        (f"{code(name, cell=True)}{mark}", _shown(scores.base.get(name)), _shown(scores.tuned[name]))
        for name, mark in marks.items()
        if scores
    ]
    template = Environment(keep_trailing_newline=True).from_string(
        files("customized_grpo.sharing").joinpath("card.md").read_text(encoding="utf-8")
    )
    return template.render(
        title=f"Subject-driven LoRA for {plain(base.rpartition('/')[2])}",
        base=f"the built-in model {code(base)} of customized-grpo"
        if built_in
        else _linked(base, _is_hub_id(model.path)),
        with_base=place.with_base,
        base_adapter=clean.model.base_adapter and code(clean.model.base_adapter),
        version=version("customized-grpo"),
        licence=f"[{licence.text}]({licence.license_link})" if licence.license_link else licence.text,
        base_cell=f"the built-in model {code(base)}" if built_in else _linked(base, _is_hub_id(model.path), cell=True),
        licence_unknown=licence.license == "unknown",
        data=_data(trained, clean),
        updates=trained.update,
        groups=config.groups.prompts,
        group_size=config.groups.size,
        training_size=f"{model.width} × {model.height}",
        rewards=[f"{plain(key)}: {code(str(reward.as_metric()), cell=True)}" for key, reward in clean.rewards.items()],
        shaping=_shaping(config),
        rank=config.adapter.rank,
        alpha=f"{config.adapter.alpha:g}",
        size=f"{settings.width} × {settings.height}",
        steps=settings.num_steps,
        guidance="as usual for the model" if settings.guidance is None else f"{settings.guidance:g}",
        public=public,
        pictures=SHEET if cases else None,
        shown=len(cases),
        scores=scores,
        figures=figures,
        program=program(model, settings, place, prompt),
        generate=_generate(place),
        comfyui="it does not know the built-in model." if built_in else _comfyui(place),
    )


def _linked(base: str, on_hub: bool, *, cell: bool = False) -> str:
    return f"[{plain(base)}](https://huggingface.co/{base})" if on_hub else code(base, cell=cell)


def _shown(estimate: Estimate | None) -> str:
    return "–" if estimate is None else str(estimate)


def _data(trained: Trained, clean: RunConfig) -> str:
    """The source, and how many samples training took from it."""
    data = clean.data
    known = OwnSamples.read(trained.adapter)
    count = data.train_samples if known is None else len(known.train)
    word = f" of a {plain(data.class_word)}" if data.class_word else ""
    held_out = "" if known is None else f"; {len(known.held_out)} held out"
    number = "" if count is None else f"{count} "
    return f"{number}samples of {code(data.source, cell=True)}{word}{held_out}"


def _shaping(config: RunConfig) -> str:
    weighting = config.weighting
    weights = f"prompt weight {weighting.prompt:g}"
    if weighting.kind == "tdw":
        weights = f"prompt weight {weighting.high:g} to {weighting.low:g} along the denoising steps (TDW)"
    return f"{code(config.shaping.rule)}, {weights}"


def _generate(place: Place) -> str:
    folder = as_argument(Path(place.folder))
    fetch = [] if place.repository is None else [f"hf download {place.repository} --local-dir {folder}"]
    return "\n".join([*fetch, f'customized-grpo generate --adapter {folder} --reference reference.png --prompt "..."'])


def _comfyui(place: Place) -> str:
    if place.format == "comfyui":
        return f"put {code(place.file or '')} of this repository into `ComfyUI/models/loras`."
    command = f"customized-grpo export {as_argument(Path(place.folder))} --format comfyui"
    return f"{code(command)} writes the file for `ComfyUI/models/loras`."
