"""`customized-grpo push` with the Hub's own client, against a hub on loopback: it gets all the files, or nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hub import OWNER, TOKEN, Hub, Repository, serving
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

from customized_grpo.config import CONFIG, RunConfig, dump_config, load_config
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.policies.adapter_file import PEFT_CONFIG
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.run.sampling_settings import SAMPLING
from program import Answer, Refusal, start

NAME = f"{OWNER}/rex"
Push = Callable[..., Answer]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The tests' process has read its environment already, so the client's constants are set."""
    with serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of other servers
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture
def adapter(
    make_policy: Callable[..., FluxKontextPolicy],
    excite: Callable[..., None],
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> Path:
    """An adapter and the configuration of its run, whose paths and server are the user's own business."""
    policy = make_policy(rank=4, alpha=6.0)
    excite(policy)
    policy.save_adapter(tmp_path / "adapter")
    judge = "name: vlm_judge, base_url: 'http://10.1.2.3:8000/v1', model: /srv/qwen, judges: prompt"
    reward = f"rewards.judge={{{judge}, role: quality, weight: 1}}"
    config = make_config("data.source=/home/ann/secret/rex.json", reward)
    (tmp_path / "adapter" / CONFIG).write_text(dump_config(config))
    return tmp_path / "adapter"


@pytest.fixture
def push(adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Push:
    monkeypatch.chdir(adapter.parent)
    return lambda *options, name=NAME: start(("push", adapter, name, *options), monkeypatch, capsys)


def test_the_hub_gets_what_was_listed(hub: Hub, push: Push, adapter: Path):
    answer = push("--private", "--message", "first")
    assert answer.code == 0, answer.error
    *listed, last = answer.out.splitlines()
    assert last == f"pushed: {hub.url}/{NAME}/commit/1"
    repository = hub.repositories[NAME]
    assert (repository.private, repository.messages) == (True, ["first"])
    files = {path: content for path, content in repository.files["main"].items() if path != ".gitattributes"}
    assert files.keys() == {"README.md", CONFIG, SAMPLING, ADAPTER_FILE}
    sizes = {line.split()[2]: int(line.split()[0].replace(",", "")) for line in listed}
    assert sizes == {path: len(content) for path, content in files.items()}
    assert files[ADAPTER_FILE] == (adapter / ADAPTER_FILE).read_bytes()
    assert "height" in json.loads(files[SAMPLING])


def test_folders_servers_and_tokens_stay_here(hub: Hub, push: Push, adapter: Path, tmp_path: Path):
    assert push().code == 0
    files = hub.repositories[NAME].files["main"]
    for content in files.values():
        for private in ("/home/", "secret", "/srv", "10.1.2.3", TOKEN, str(tmp_path)):
            assert private.encode() not in content
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / CONFIG).write_bytes(files[CONFIG])
    read = load_config(str(tmp_path / "got"))
    assert read.data.source == "rex.json"
    mine = load_config(str(adapter))
    assert read.model_copy(update={"output": "", "data": mine.data, "rewards": {}}) == mine.model_copy(
        update={"output": "", "rewards": {}}
    )


def test_the_card_names_the_repository(hub: Hub, push: Push):
    assert push().code == 0
    card = ModelCard(hub.repositories[NAME].files["main"]["README.md"].decode())
    assert card.data.to_dict()["library_name"] == "diffusers"
    assert f'load_lora_weights("{NAME}")' in card.text
    assert f"hf download {NAME} --local-dir rex\ncustomized-grpo generate --adapter rex " in card.text


@pytest.mark.parametrize(
    ("format", "weights", "loads"),
    [
        ("comfyui", {"rex.safetensors"}, 'load_lora_weights("ann/rex", weight_name="rex.safetensors")'),
        ("peft", {PEFT_CONFIG, "adapter_model.safetensors"}, 'PeftModel.from_pretrained(pipe.transformer, "ann/rex")'),
    ],
)
def test_other_formats(format: str, weights: set[str], loads: str, hub: Hub, push: Push, tmp_path: Path):
    assert push("--format", format).code == 0
    files = hub.repositories[NAME].files["main"]
    assert files.keys() - {".gitattributes"} == {"README.md", CONFIG, SAMPLING, *weights}
    assert loads in files["README.md"].decode()
    (file,) = [name for name in weights if name.endswith(".safetensors")]
    (tmp_path / file).write_bytes(files[file])
    assert load_file(tmp_path / file)


def test_a_branch_is_made(hub: Hub, push: Push):
    assert push("--revision", "trial").code == 0
    files = hub.repositories[NAME].files
    assert ADAPTER_FILE in files["trial"]
    assert ADAPTER_FILE not in files["main"]


def test_a_dry_run_needs_neither_token_nor_network(push: Push, monkeypatch: pytest.MonkeyPatch):
    """The tests' process is offline."""
    monkeypatch.setenv("HF_TOKEN", "")
    answer = push("--dry-run")
    assert answer.code == 0, answer.error
    assert [line.split()[-1] for line in answer.out.splitlines()] == ["README.md", CONFIG, ADAPTER_FILE, SAMPLING]


def test_pushing_again_adds_a_commit(hub: Hub, push: Push):
    assert push().code == 0
    hub.repositories[NAME].tags.append("customized-grpo")  # the Hub takes them from the card
    assert push("--message", "second").code == 0
    assert hub.repositories[NAME].messages[1:] == ["second"]


def test_files_of_others_are_left_alone(hub: Hub, push: Push):
    other = {"main": {"README.md": b"mine", "notes.txt": b"keep"}}
    hub.repositories[NAME] = Repository(private=False, files=other)
    answer = push()
    assert (answer.code, hub.repositories[NAME].messages) == (2, [])
    assert answer.error.startswith(
        f"error: {NAME} holds README.md, which customized-grpo did not write; name another "
    )
    assert push("--replace").code == 0
    assert other["main"]["notes.txt"] == b"keep"
    assert other["main"]["README.md"] != b"mine"


def test_nothing_private_goes_to_a_public_repository(hub: Hub, push: Push):
    hub.repositories[NAME] = Repository(private=False)
    answer = push("--private")
    assert answer.error.startswith(f"error: {NAME} exists and is public; ")
    assert not hub.repositories[NAME].messages


@pytest.mark.parametrize(
    ("token", "name", "fails", "code", "message"),
    [
        ("", NAME, None, 2, "there is no token of the Hub; log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", NAME, None, 2, "{url} does not accept the token (401); log in with `hf auth login`"),
        (TOKEN, "bob/rex", None, 2, "the token may not write to bob/rex (403); use one with write access, or another"),
        (TOKEN, NAME, "/api/models/ann/rex/commit", 1, "{url} answered 500: the disk is full; nothing was committed"),
        (TOKEN, NAME, "/objects", 1, "the upload to ann/rex failed: Error while uploading 'pytorch_lora_weights.safe"),
    ],
)
def test_refusals_of_the_hub(
    token: str,
    name: str,
    fails: str | None,
    code: int,
    message: str,
    hub: Hub,
    push: Push,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # it tries five times
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nothing")  # the developer's own
    hub.fails = fails
    answer = push(name=name)
    error = answer.error[answer.error.index("error: ") :]
    assert (answer.code, error.count("\n")) == (code, 1)
    assert error.startswith(f"error: {message.format(url=hub.url)}")
    assert not any(repository.messages for repository in hub.repositories.values())


def test_offline_and_unreachable(hub: Hub, push: Push, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        answer = push()
    assert answer.code == 2
    assert answer.error == "error: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network; unset it to push\n"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    answer = push()
    assert answer.code == 1
    assert answer.error.startswith("error: http://127.0.0.1:9 cannot be reached: ")
    assert not hub.requests


@pytest.mark.parametrize("name", ["rex", "ann/rex/main", "ann/../rex", "ann/re x", "https://huggingface.co/ann/rex"])
def test_names_that_are_no_repository(name: str, refused: Refusal, adapter: Path):
    assert " is no repository: " in refused.line("push", adapter, name)


def test_an_adapter_of_another_program(refused: Refusal, adapter: Path):
    (adapter / CONFIG).unlink()
    assert refused.line("push", adapter, NAME).startswith(
        f"{adapter} has no config.yaml beside it, and its card would "
    )


@pytest.mark.slow
def test_the_program_reads_the_hubs_own_variables(adapter: Path):
    with serving() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "customized_grpo", "push", str(adapter), NAME]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ADAPTER_FILE in hub.repositories[NAME].files["main"]
        front = hub.repositories[NAME].files["main"]["README.md"].decode().split("---\n")[1]
        assert yaml.safe_load(front)["license"] == "mit"
