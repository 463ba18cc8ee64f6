"""Downloaded models: found before anything is loaded, read from safetensors only, refused in one line.

A pickle (.bin, .pt, .pth, .ckpt) can execute any program when it is read. None is read here, and code that comes with
a model is never executed: nothing passes `trust_remote_code`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from customized_grpo.errors import InputError
from customized_grpo.files import PACKAGE
from customized_grpo.files.durable import reason_of
from customized_grpo.files.paths import is_file, is_folder

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")  # a tokenizer needs one of them
DOWNLOAD = "download the model again"


class ModelError(InputError, ValueError):
    """A model that is missing or cannot be used; one line that says what to do."""


def find(model: str | Path, name: str) -> Path:
    """The path of a model's file: in its folder, or in the hub's cache, downloaded if necessary. Raises ModelError."""
    folder = Path(model)
    if is_folder(folder):  # a path that the system refuses (a name too long) may still be a hub id
        if not (folder / name).is_file():
            single = next((f"; {file.name} alone is not read" for file in sorted(folder.glob("*.safetensors"))), "")
            raise ModelError(f"{model} is not the kind of model needed here: it has no {name}{single}")
        _refuse_pickles(folder)
        return folder / name
    if is_file(folder):
        raise _of_one_file(model)
    try:
        return Path(hf_hub_download(str(model), name))
    except HFValidationError:
        raise ModelError(f"{str(model)!r} is neither a folder nor a hub id, which is written owner/name") from None
    except GatedRepoError:
        page = f"https://huggingface.co/{model}"
        raise ModelError(f"{model} is gated: accept its terms at {page}, then log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{model} is not a folder here, and the hub has no such public model: check the name, or log in with "
            "`hf auth login` if it is private"
        ) from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{model} is not a folder here, and the hub cannot be reached: check the name, the network, and that "
            "HF_HUB_OFFLINE is not set; or name a folder that holds the model"
        ) from None
    except EntryNotFoundError:
        raise ModelError(f"{model} on the hub is not the kind of model needed here: it has no {name}") from None
    except HfHubHTTPError as error:
        raise ModelError(f"{model}: the hub answers {_line(error)}; try again later") from None
    except OSError as error:  # the network, or the disk that holds the cache
        raise ModelError(f"{model} cannot be downloaded: {reason_of(error)}") from error


def find_offline(model: str | Path, name: str) -> Path | None:
    """As `find`, without the network: None for a hub id whose file is not in the cache. Raises ModelError."""
    if is_folder(Path(model)):
        return find(model, name)
    if is_file(Path(model)):
        raise _of_one_file(model)
    owner, slash, repository = str(model).partition("/")
    try:
        cached = try_to_load_from_cache(str(model), name)
    except HFValidationError:
        slash = ""
        cached = None
    if isinstance(cached, str):
        return Path(cached)
    if not slash or is_folder(Path(owner)):
        where = f"; the folder {owner} has no {repository}" if slash and is_folder(Path(owner)) else ""
        raise ModelError(f"{model} is neither a folder here nor a hub id, which is written owner/name{where}")
    if cached is not None:
        raise ModelError(f"{model} on the hub is not the kind of model needed here: it has no {name}")
    return None


def _of_one_file(model: str | Path) -> ModelError:
    return ModelError(
        f"{model} is a file, and a model in one file is not read; name its folder in the library's format"
    )


def pipeline_class(model: str | Path) -> str:
    """The class named by a checkpoint in diffusers' format, such as "FluxKontextPipeline". Raises ModelError."""
    return str(read_json(find(model, "model_index.json")).get("_class_name"))


def check_complete(model: str | Path) -> None:
    """Raises ModelError if a pipeline's folder lacks parts. A model on the hub is checked when it is downloaded."""
    folder = Path(model)
    if not is_folder(folder):
        return
    if missing := list(_missing_parts(folder, read_json(find(model, "model_index.json")))):
        raise ModelError(f"{model} is incomplete: {', '.join(missing)} missing; {DOWNLOAD}")


def model_type(model: str | Path) -> str:
    """The type named by a checkpoint in transformers' format, such as "clip". Raises ModelError."""
    return str(read_json(find(model, "config.json")).get("model_type"))


def read_json(file: Path) -> dict[str, Any]:
    """The object in one of a model's JSON files. Raises ModelError."""
    try:
        content: Any = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {reason_of(error)}") from None
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}; {DOWNLOAD}") from None
    except RecursionError:
        raise ModelError(f"{file} is not JSON: brackets are nested too deeply; {DOWNLOAD}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a {type(content).__name__} instead of keys and values; {DOWNLOAD}")
    return content


def _missing_parts(folder: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """What a pipeline's folder lacks. Vocabularies count: without one, a library makes an empty tokenizer silently."""
    for name, value in index.items():
        if not (isinstance(value, list) and value and value[-1] is not None):  # not a part, or one left out on purpose
            continue
        if not is_folder(folder / name):
            yield name
        elif not any((folder / name).glob("*config.json")):
            yield f"{name}/config.json"
        elif "tokenizer" in name and not any((folder / name / file).is_file() for file in VOCABULARIES):
            yield f"{name}/{VOCABULARIES[0]}"


def load_part(kind: Any, model: str | Path, part: str = "", **settings: Any) -> Any:
    """A model of the class `kind`, from transformers or diffusers; `part` is a subfolder of the folder or hub id.

    Typed Any because the libraries' annotations omit what their models take and return.
    Raises ModelError if weights are missing: the libraries would initialise them at random and continue.
    """
    with loading(f"{model}, {part}" if part else model):
        loaded, info = kind.from_pretrained(
            model, subfolder=part, use_safetensors=True, output_loading_info=True, **settings
        )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        owner = f"{part} has" if part else "it has"
        raise ModelError(f"{model} is incomplete: {owner} no weight {missing[0]}{more}; {DOWNLOAD}")
    return loaded


@contextmanager
def loading(model: str | Path) -> Iterator[None]:
    """Put around one call of a library's `from_pretrained`. Raises ModelError if the library refuses the files."""
    with reading(model), _no_progress_bars(model):
        yield


@contextmanager
def reading(model: str | Path) -> Iterator[None]:
    """Put around what a model's files decide. Raises ModelError for any error but a lack of memory."""
    try:
        yield
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # libraries raise any type for broken files; tokenizers even a plain Exception
        if type(error).__name__ == "OutOfMemoryError":  # torch's; importing torch takes seconds
            raise
        raise ModelError(f"{model} cannot be loaded: {_line(error)}; check its files, or {DOWNLOAD}") from error


@contextmanager
def _no_progress_bars(model: str | Path) -> Iterator[None]:
    """Turns the libraries' progress bars off for the built-in parts: a dozen of them would flash by."""
    from diffusers.utils import logging as diffusers_bars
    from transformers.utils import logging as transformers_bars

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
    """Raises ModelError if the folder, or a part in it, has its weights only as pickles."""
    try:
        parts = {part: sorted(part.iterdir()) for part in (folder, *folder.iterdir()) if part.is_dir()}
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {reason_of(error)}") from None
    for part, files in parts.items():
        pickles = [file.name for file in files if file.suffix in PICKLES]
        if pickles and not any(file.suffix == ".safetensors" for file in files):
            raise ModelError(
                f"{part} has its weights in {pickles[0]}, a pickle, which could run any program when it is read; "
                "download them as .safetensors, or convert them where you trust them: save_pretrained() writes "
                "safetensors"
            )


def _line(error: Exception) -> str:
    """A library's message as one line of at most 300 characters."""
    text = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in text:  # transformers adds a table to it, diffusers how to overwrite weights
        text = "the shapes of its weights differ from its config.json"
    if not isinstance(error, OSError | ValueError | RuntimeError | SafetensorError):  # a KeyError's text is just a key
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 300 else f"{text[:299]}…"
