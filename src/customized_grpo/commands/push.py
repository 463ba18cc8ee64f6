"""`customized-grpo push`: an adapter with its card, pictures and settings to a repository on the Hugging Face Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from customized_grpo.commands.export import SUFFIX, ExportRequest, write_export, write_settings
from customized_grpo.config import CONFIG
from customized_grpo.errors import RunError, UsageError, first_line
from customized_grpo.files.adapter_places import ADAPTER_FILE, find_adapter
from customized_grpo.files.durable import saving
from customized_grpo.files.paths import display
from customized_grpo.sharing.card import TAG, Trained, write_card
from customized_grpo.sharing.loading import Format, Place
from customized_grpo.sharing.public import public_config

GIT = ".gitattributes"  # the Hub's own file in a new repository


class HubError(RunError, OSError):
    """The Hub cannot be reached, or has stopped an upload."""


@dataclass(frozen=True)
class PushRequest:
    """What to upload, and where to.

    target      folder of a run, a checkpoint or an adapter, as `find_adapter` takes it
    repository  OWNER/NAME
    with_base   add the adapter that was fused into the model before training
    private     make a new repository private; refuse one that is public
    revision    branch; made if it is missing. None: main
    message     of the commit; None: one that names the version
    pictures    whether to show held-out cases, the user's references among them
    replace     also commit over files that this program did not write
    """

    target: Path
    repository: str
    format: Format = "diffusers"
    with_base: bool = False
    private: bool = False
    revision: str | None = None
    message: str | None = None
    pictures: bool = True
    replace: bool = False

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise UsageError(f"{display(self.repository)} is no repository: {first_line(error)}") from None
        if self.repository.count("/") != 1:
            raise UsageError(f"{display(self.repository)} is no repository: write OWNER/NAME, such as ann/rex-lora")


def stage(request: PushRequest, folder: Path) -> list[Path]:
    """Write what will be uploaded into an empty folder; returns its files, sorted.

    Raises UsageError for an adapter of another program, ModelError for one that is missing, and SavingError.
    """
    adapter = find_adapter(request.target)
    trained = Trained.find(adapter)
    if trained is None:
        raise UsageError(f"{adapter} has no {CONFIG} beside it, and its card would be empty; name the folder of a run")
    name = f"{request.repository.rpartition('/')[2]}{SUFFIX}" if request.format == "comfyui" else None
    if request.format == "diffusers" and not request.with_base:
        with saving(folder / ADAPTER_FILE):
            shutil.copyfile(trained.adapter / ADAPTER_FILE, folder / ADAPTER_FILE)
    else:
        output = folder / (name or "exported")
        write_export(ExportRequest(adapter, request.format, output, request.with_base))
        for file in output.iterdir() if output.is_dir() else ():
            if file.is_file():
                file.replace(folder / file.name)
        if output.is_dir():
            shutil.rmtree(output)
    place = Place(request.repository, request.format, name, request.with_base)
    write_card(trained, folder, place=place, pictures=request.pictures, public=True)
    write_settings(trained, public_config(trained.config), folder, with_base=request.with_base)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def push(request: PushRequest, *, dry_run: bool = False) -> str | None:
    """Upload, and return the address of the commit; with `dry_run` only list the files.

    Raises UsageError for a repository or token that cannot be used, and HubError if the Hub cannot be reached or stops
    the upload; and whatever `stage` raises.
    """
    with TemporaryDirectory(prefix="customized-grpo-") as name:
        folder = Path(name)
        files = stage(request, folder)
        for file in files:
            print(f"{file.stat().st_size:>12,} bytes  {file.relative_to(folder).as_posix()}")
        if dry_run:
            return None
        api = HfApi(library_name=TAG)
        if get_token() is None:
            raise UsageError("there is no token of the Hub; log in with `hf auth login`, or set HF_TOKEN")
        with _asking(api, request):
            _prepare(api, request, {file.relative_to(folder).as_posix() for file in files})
            commit = api.upload_folder(
                repo_id=request.repository,
                folder_path=folder,
                revision=request.revision,
                commit_message=request.message or f"Adapter trained with {TAG}",
            )
        return commit.commit_url


def _prepare(api: HfApi, request: PushRequest, files: set[str]) -> None:
    """Make repository and branch if they are missing. Raises UsageError if an existing one should be left alone."""
    repository = request.repository
    try:
        info = api.model_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=request.private)
    else:
        if request.private and not info.private:
            raise UsageError(f"{repository} exists and is public; make it private on its page, or leave out --private")
        found = {each.rfilename for each in info.siblings or ()} - {GIT}
        others = sorted(found & files) if TAG not in (info.tags or ()) else []
        if others and not request.replace:
            raise UsageError(
                f"{repository} holds {', '.join(others[:3])}, which {TAG} did not write; name another repository, or "
                "add --replace: earlier commits keep the old files"
            )
    if request.revision is not None:
        api.create_branch(repository, branch=request.revision, exist_ok=True)


@contextmanager
def _asking(api: HfApi, request: PushRequest) -> Iterator[None]:
    """Turns what the Hub's client raises into one line."""
    repository, hub = request.repository, api.endpoint
    again = "nothing was committed; start again with the same command"
    try:
        yield
    except OfflineModeIsEnabled:
        raise UsageError("HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network; unset it to push") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise UsageError(f"{hub} does not accept the token (401); log in with `hf auth login`") from None
        if status == 403:
            raise UsageError(
                f"the token may not write to {repository} (403); use one with write access, or another owner"
            ) from None
        raise HubError(f"{hub} answered {status}: {_said(error)}; {again}") from error
    except httpx2.TransportError as error:
        raise HubError(f"{hub} cannot be reached: {first_line(error)}; {again}") from error
    except RuntimeError as error:  # the client's own, of a file that it could not send
        raise HubError(f"the upload to {repository} failed: {first_line(error)}; {again}") from error


def _said(error: HfHubHTTPError) -> str:
    return " ".join((error.server_message or str(error)).split()) or "no reason given"
