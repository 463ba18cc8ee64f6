"""`customized-grpo export`: an adapter in the format of another program, perhaps with the one it was trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from customized_grpo.config import CONFIG, RunConfig, dump_config
from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import find_adapter, folder_of
from customized_grpo.files.durable import (
    SAVING,
    SavingError,
    check_folder,
    make_folder,
    saving,
    sync,
    sync_tree,
    write_text,
)
from customized_grpo.files.notices import print_line
from customized_grpo.files.paths import is_file
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies import adapter_tensors
from customized_grpo.policies.adapter_formats import check_comfyui, write_comfyui, write_diffusers, write_peft
from customized_grpo.policies.lora_tensors import DOWN, UP, LoraTensors, joined
from customized_grpo.run.base_adapter import check_base_adapter
from customized_grpo.run.sampling_settings import SAMPLING, SamplingSettings, model_of
from customized_grpo.sections import Model
from customized_grpo.sharing.card import Trained, write_card
from customized_grpo.sharing.loading import Format, Place

FOLDER = Path("exported")
SUFFIX = ".safetensors"  # of the formats that are one file


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    target     folder of a run, a checkpoint or an adapter, or a file
    output     a new file for ComfyUI, a new folder for the others; None: a name in `FOLDER`
    with_base  add the adapter that was fused into the model before training
    model      what an adapter of another program was trained for; None: as its configuration says
    """

    target: Path
    format: Format
    output: Path | None = None
    with_base: bool = False
    model: str | None = None


def write_export(request: ExportRequest) -> Path:
    """Write the file or folder, and return its path. A folder also gets the card of a run's adapter.

    Raises UsageError if the output exists or the format cannot hold the adapter, ModelError for an adapter that is
    missing or damaged, and SavingError.
    """
    output = _output(request)
    adapter = find_adapter(request.target)
    model = _model_of(adapter, request.model)
    lora = adapter_tensors(adapter, model)
    base = None if model is None else model.base_adapter
    if request.with_base:
        if model is not None:
            check_base_adapter(model, folder_of(adapter))
        lora = joined(_plain(lora, adapter), _base(base, model, adapter))
    elif base is not None:
        print_line(
            f"note: the adapter works on a model with {base} fused into it; --with-base adds that one to the file"
        )
    if request.format == "comfyui":
        check_comfyui(lora)
    _write(request, lora, output)
    trained = Trained.find(adapter)
    if trained is not None and output.is_dir():
        write_card(trained, output, place=Place(format=request.format, with_base=request.with_base))
        write_settings(trained, trained.config, output, with_base=request.with_base)
    return output


def write_settings(trained: Trained, config: RunConfig, folder: Path, *, with_base: bool) -> None:
    """Write what `generate` reads beside the weights: config.yaml and sampling.json. Raises SavingError.

    with_base  whether the weights hold `model.base_adapter`, which must not be added a second time
    """
    if with_base:
        config = config.model_copy(update={"model": config.model.model_copy(update={"base_adapter": None})})
    write_text(folder / CONFIG, dump_config(config))
    settings = SamplingSettings.read(trained.adapter) or SamplingSettings.of(trained.config)
    write_text(folder / SAMPLING, json.dumps(asdict(settings), indent=2) + "\n")


def _output(request: ExportRequest) -> Path:
    """Where to write. Raises UsageError if something is there, or nothing can be written there."""
    target = request.target.absolute()
    name = f"{target.stem if is_file(target) else target.name}-{request.format}"
    as_file = request.format == "comfyui"
    output = request.output or FOLDER / (f"{name}{SUFFIX}" if as_file else name)
    if as_file and output.suffix != SUFFIX:
        raise UsageError(
            f"--output {output}: ComfyUI needs a file that ends in {SUFFIX}, such as {output / name}{SUFFIX}"
        )
    check_folder(output.parent)
    if output.exists():
        raise UsageError(f"{output} exists; name another with --output, or remove it")
    return output


def _model_of(adapter: Path, path: str | None) -> Model | None:
    """The model that an adapter was trained for, at another path if one is given; None if nothing says which."""
    trained = model_of(adapter)
    if path is None:
        return trained
    return Model.model_validate({**({} if trained is None else trained.model_dump()), "path": path})


def _base(base: str | None, model: Model | None, adapter: Path) -> LoraTensors:
    """The adapter that was fused before training. Raises UsageError if there is none, or its file has gone."""
    if base is None:
        raise UsageError(f"--with-base: {adapter} was trained without model.base_adapter; leave the option out")
    try:
        found = find_adapter(Path(base))
    except ModelError:
        raise UsageError(
            f"--with-base: the run's model.base_adapter {base} is not here; put it back, or start where it is"
        ) from None
    return _plain(adapter_tensors(found, model), found)


def _plain(lora: LoraTensors, adapter: Path) -> LoraTensors:
    if others := lora.beyond((DOWN, UP)):
        raise UsageError(
            f"--with-base: {others[0]} in {adapter} is more than lora_A and lora_B; export without the option"
        )
    return lora


def _write(request: ExportRequest, lora: LoraTensors, output: Path) -> None:
    """Complete or not at all: written under another name, synced, renamed. Raises SavingError."""
    temporary = output.with_name(output.name + SAVING)
    make_folder(output.parent)
    with saving(output):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _write_as(request.format, lora, temporary)
        except SafetensorError as error:  # how safetensors reports a full or broken disk
            raise SavingError(f"could not write {output}: {error}", str(error)) from error
        sync_tree(temporary)
        temporary.replace(output)
        sync(output.parent)


def _write_as(name: Format, lora: LoraTensors, path: Path) -> None:
    if name == "comfyui":
        write_comfyui(lora, path)
    else:
        path.mkdir()
        (write_diffusers if name == "diffusers" else write_peft)(lora, path)
