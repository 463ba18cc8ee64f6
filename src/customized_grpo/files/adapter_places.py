"""Where adapters lie: in the folder of a run, of a checkpoint or of an adapter, or in a file."""

import re
from pathlib import Path

from customized_grpo.files.durable import reason_of
from customized_grpo.files.pretrained import PICKLES, ModelError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
FOLDER, FINAL = "checkpoints", "adapter"  # in a run's folder: what it resumes from, and its result
BEST = "best"  # in a run's folder: the adapter of its best evaluation
TENSORS = "optimizer.safetensors"  # in a checkpoint, beside the adapter


def checkpoints_of(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first. Each was complete when it was written; it may be damaged since."""
    folders = (path for path in (run / FOLDER).glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(folders, key=update_of)


def has_trained(run: Path) -> bool:
    """Whether a run has a checkpoint, perhaps a damaged one. Until then it starts over, with any settings."""
    return any(re.fullmatch(r"step-\d+(\.damaged)?", path.name) for path in (run / FOLDER).glob("step-*"))


def bests_of(run: Path) -> list[Path]:
    """The folders of a run's best adapters, oldest first. Usually one; before the next checkpoint also older ones."""
    folders = (path for path in (run / BEST).glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(folders, key=update_of)


def update_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def find_adapter(path: Path) -> Path:
    """Where an adapter is: the folder that holds `ADAPTER_FILE`, or a safetensors file of another name.

    path  the folder of a run, of a checkpoint or of an adapter, or a file; in a folder without `ADAPTER_FILE` the only
          safetensors file is taken

    Raises ModelError if there is none, or several. For an unfinished run the message names a checkpoint to use.
    """
    path = Path(path)
    try:
        bests = bests_of(path.parent)[-1:] if path.name == BEST else []
        for candidate in (path / FINAL, path, *bests):
            if (candidate / ADAPTER_FILE).is_file():
                return candidate
        files = [path] if path.is_file() else [each for each in sorted(path.glob("*")) if each.is_file()]
        saved = checkpoints_of(path)
    except OSError as error:
        raise ModelError(f"no adapter in {path}: {reason_of(error)}; name the folder that holds it") from None
    others = [each for each in files if each.suffix == ".safetensors" and each.name != TENSORS]
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(each.name for each in others[:5]) + (", ..." if len(others) > 5 else "")
        raise ModelError(f"{path} holds {len(others)} safetensors files ({names}); name the file of the adapter")
    pickles = [each.name for each in files if each.suffix in PICKLES]
    pickle = f"; {pickles[0]} is a pickle, which is never read: it could run any program" if pickles else ""
    remedy = "name the folder that holds it"
    if pickles or path.is_file():
        remedy = "save the adapter as .safetensors"
    if saved:
        remedy = f"the run is not finished; name a checkpoint, {saved[-1]}"
    raise ModelError(f"no adapter in {path}: {ADAPTER_FILE} is missing{pickle}; {remedy}")


def folder_of(adapter: Path) -> Path:
    """The folder in which an adapter from `find_adapter` lies, perhaps with its configuration and sampling.json."""
    return adapter if adapter.is_dir() else adapter.parent
