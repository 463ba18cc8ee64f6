"""Models from elsewhere: looked for before anything is loaded, read from safetensors alone, refused in one line.

A pickle (.bin, .pt, .pth, .ckpt) runs whatever program is in it when it is read. None is read here, and no code that
comes with a model is run: nobody passes `trust_remote_code`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_bars
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from transformers.utils import logging as transformers_bars

from customized_grpo.errors import InputError
from customized_grpo.files import PACKAGE

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")  # one of them makes a tokenizer


class ModelError(InputError, ValueError):
    """A model that is not there or cannot be used; one line with the way out."""


def find(model: str | Path, file: str) -> Path:
    """Where a file of a model lies: in its folder, or in the cache once it was fetched from the hub.

    Raises ModelError.
    """
    folder = Path(model)
    if folder.is_dir():
        if not (folder / file).is_file():
            raise ModelError(f"{model} is not the model that is needed here: it has no {file}")
        _refuse_pickles(folder)
        return folder / file
    try:
        return Path(hf_hub_download(str(model), file))
    except HFValidationError:
        raise ModelError(f"{str(model)!r} is no folder, and no hub id: those are written owner/name") from None
    except GatedRepoError:
        page = f"https://huggingface.co/{model}"
        raise ModelError(f"{model} is gated: accept its terms at {page}, then log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{model} is no folder here, and the hub has no such model, or a private one: check the name, or log in "
            "with `hf auth login`"
        ) from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{model} is no folder here, and the hub cannot be reached for it: check the name, the network, and that "
            "HF_HUB_OFFLINE is not set; or name a folder that holds the model"
        ) from None
    except EntryNotFoundError:
        raise ModelError(f"{model} on the hub is not the model that is needed here: it has no {file}") from None
    except HfHubHTTPError as error:
        raise ModelError(f"{model}: the hub answers {_line(error)}; try again later") from None


def pipeline_class(model: str | Path) -> str:
    """The class that a checkpoint in diffusers' format names, such as "FluxKontextPipeline". Raises ModelError."""
    return str(_pipeline_index(model).get("_class_name"))


def check_complete(model: str | Path) -> None:
    """Raises ModelError if a pipeline's folder lacks parts. What lies on the hub is checked as it is fetched."""
    if Path(model).is_dir() and (missing := list(_missing(Path(model), _pipeline_index(model)))):
        raise ModelError(f"{model} is incomplete: {', '.join(missing)} missing; download the model again")


def _pipeline_index(model: str | Path) -> dict[str, Any]:
    file = find(model, "model_index.json")
    try:
        index: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}; download the model again") from None
    if not isinstance(index, dict):
        raise ModelError(f"{file} holds a {type(index).__name__}, not a pipeline's parts; download the model again")
    return index


def _missing(folder: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Parts that a pipeline's folder lacks. A tokenizer without words would be made of none, and nothing said."""
    for name, value in index.items():
        if isinstance(value, list) and value[-1] is not None:
            if not (folder / name).is_dir():
                yield name
            elif not any((folder / name).glob("*config.json")):
                yield f"{name}/config.json"
            elif "tokenizer" in name and not any((folder / name / each).is_file() for each in VOCABULARIES):
                yield f"{name}/{VOCABULARIES[0]}"


def load_part(kind: Any, model: str | Path, part: str = "", **settings: Any) -> Any:
    """A model of the class `kind`, of transformers or diffusers, from a folder or hub id or a subfolder of it.

    Any in and out: the libraries' annotations leave out what their models take and return.
    Raises ModelError where weights are missing: the libraries would make them at random and go on.
    """
    with loading(f"{model}, {part}" if part else model):
        loaded, info = kind.from_pretrained(
            model, subfolder=part, use_safetensors=True, output_loading_info=True, **settings
        )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        where = f"{part} has" if part else "it has"
        raise ModelError(f"{model} is not whole: {where} no weight {missing[0]}{more}; fetch the model again")
    return loaded


def model_type(model: str | Path) -> str:
    """What a checkpoint of transformers says it is, such as "clip". Raises ModelError."""
    file = find(model, "config.json")
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}; fetch the model again") from None
    return str(config.get("model_type")) if isinstance(config, dict) else type(config).__name__


@contextmanager
def loading(model: str | Path) -> Iterator[None]:
    """Around a library's `from_pretrained`: what it says of files that are not what they should be, in one line."""
    try:
        with _quiet(model):
            yield
    except torch.OutOfMemoryError:
        raise
    # What transformers, diffusers and safetensors raise for files that are missing, cut short or of other shapes.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{model} cannot be loaded: {_line(error)}") from error


@contextmanager
def _quiet(model: str | Path) -> Iterator[None]:
    """Without the libraries' bars where the built-in parts are loaded: a dozen of them, full at once."""
    bars = [bar for bar in (transformers_bars, diffusers_bars) if bar.is_progress_bar_enabled()]
    if not str(model).startswith(str(PACKAGE)):
        bars = []
    for bar in bars:
        bar.disable_progress_bar()
    try:
        yield
    finally:
        for bar in bars:
            bar.enable_progress_bar()


def _refuse_pickles(folder: Path) -> None:
    for part in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        files = sorted(part.iterdir())
        pickles = [file.name for file in files if file.suffix in PICKLES]
        if pickles and not any(file.suffix == ".safetensors" for file in files):
            raise ModelError(
                f"{part} has its weights in {pickles[0]}, a pickle, which could run any program when it is read; get "
                "them as .safetensors, or convert them where you trust them: save_pretrained() writes safetensors"
            )


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "ignore_mismatched_sizes" in text:  # transformers shows a table above it, diffusers how to overwrite weights
        text = "its weights have other shapes than its config.json says"
    return text if len(text) <= 300 else f"{text[:299]}…"
