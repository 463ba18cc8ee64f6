"""Encoded conditions on disk: keys by content, damaged files, and a policy that reads instead of encoding."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.files.durable import SavingError
from customized_grpo.policies import encoder
from customized_grpo.policies.condition_cache import ConditionCache, content_key, model_identity
from customized_grpo.policies.conditions import EncodedSamples
from customized_grpo.policies.flux_kontext import FluxKontextEncoder, FluxKontextPolicy

MakePolicy = Callable[..., FluxKontextPolicy]
KEY = content_key("a")
TENSORS = {
    "half": torch.randn(2, 3).bfloat16(),
    "full": torch.tensor([[1.0, -0.0, float("inf")]]),
    "number": torch.tensor(7),
}


def never() -> dict[str, Tensor]:
    return pytest.fail("computed again")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


# --- the files -------------------------------------------------------------------------------------------------------


def test_a_second_cache_of_the_folder_reads_what_the_first_wrote(tmp_path: Path):
    folder = tmp_path / "new" / "folder"
    assert same(ConditionCache(folder).get(KEY, lambda: TENSORS), TENSORS)
    assert [file.name for file in folder.iterdir()] == [f"{KEY}.safetensors"]
    assert same(ConditionCache(folder).get(KEY, never), TENSORS)


def test_a_damaged_file_is_computed_and_written_again(tmp_path: Path):
    cache = ConditionCache(tmp_path)
    cache.get(KEY, lambda: TENSORS)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    cut = [whole[:size] for size in (0, 1, 8, 100, len(whole) - 1)]
    flipped = [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(len(whole))]
    for damaged in [*cut, *flipped, whole + b"\0", b"\0" * len(whole), os.urandom(500)]:
        file.write_bytes(damaged)
        computed = []
        found = cache.get(KEY, lambda computed=computed: computed.append(1) or TENSORS)
        assert computed == [1]
        assert same(found, TENSORS)
        assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_under_another_key_is_not_trusted(tmp_path: Path):
    cache = ConditionCache(tmp_path)
    cache.get(KEY, lambda: TENSORS)
    other = content_key("b")
    (tmp_path / f"{KEY}.safetensors").rename(tmp_path / f"{other}.safetensors")
    assert same(cache.get(other, lambda: {"new": torch.ones(1)}), {"new": torch.ones(1)})
    assert same(cache.get(other, never), {"new": torch.ones(1)})


def test_a_failed_write_is_reported_and_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = ConditionCache(tmp_path)
    cache.get(KEY, lambda: TENSORS)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SavingError, match=r"could not write .*\.safetensors: No space left on device"):
        cache.get(KEY, lambda: TENSORS)
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == b"damaged"


@pytest.mark.parametrize("folder", ["file", "file/folder"])
def test_a_cache_where_no_folder_can_be_made_is_refused(folder: str, tmp_path: Path, make_policy: MakePolicy):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=rf"model\.condition_cache .*{folder}: .*file is a file; name another folder"):
        make_policy(condition_cache=tmp_path / folder)


def test_a_file_without_permission_to_read_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ConditionCache(tmp_path).get(KEY, lambda: {"old": torch.ones(1)})

    def denied(*_: object) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert same(ConditionCache(tmp_path).get(KEY, lambda: TENSORS), TENSORS)


def test_keys_depend_on_types_and_boundaries_of_their_parts():
    parts = [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a"), ("a", b"b"), (1, 2), ("1", 2), (12,), ("a' 1 'b",)]
    assert len({content_key(*each) for each in parts}) == len(parts)
    assert content_key("a", 1, b"x") == content_key("a", 1, b"x")


def test_a_models_identity_depends_on_exactly_its_weights_and_settings():
    torch.manual_seed(0)
    model, other = nn.Linear(3, 3).bfloat16(), nn.Linear(3, 3).bfloat16()
    before = model_identity({"a": model}, {"act": "silu"})
    other.load_state_dict(model.state_dict())
    assert model_identity({"a": other}, {"act": "silu"}) == before
    changes = [
        model_identity({"b": model}, {"act": "silu"}),
        model_identity({"a": model}, {"act": "gelu"}),
        model_identity({"a": other.float()}, {"act": "silu"}),
    ]
    with torch.no_grad():
        model.bias[1] += 1e-1
    assert len({before, model_identity({"a": model}, {"act": "silu"}), *changes}) == 5


# --- the policy ------------------------------------------------------------------------------------------------------


def with_second(sample: Sample) -> Sample:
    return replace(sample, id=f"{sample.id}-two", references=(*sample.references, *sample.other_views))


def must_not_encode(policy: FluxKontextPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if an encoder is called or moved."""
    for name in FluxKontextEncoder.text_encoders:
        monkeypatch.setattr(getattr(policy.pipe, name), "forward", lambda *_, **__: pytest.fail("a prompt"))
        monkeypatch.setattr(getattr(policy.pipe, name), "to", lambda *_, **__: pytest.fail("moved"))
    monkeypatch.setattr(policy.pipe.vae, "encode", lambda *_, **__: pytest.fail("a picture"))


def equal(one: EncodedSamples, other: EncodedSamples) -> bool:
    return all(
        a.references == b.references
        and a.tensors[name].dtype == b.tensors[name].dtype
        and torch.equal(a.tensors[name], b.tensors[name])
        for a, b in zip(one.entries, other.entries, strict=True)
        for name in ("text", "pooled", "reference")
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_policy_reads_what_the_first_encoded_bit_for_bit(
    dtype: str, tmp_path: Path, samples: list[Sample], make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
):
    mixed = [samples[0], with_second(samples[1]), samples[2]]
    plain = make_policy(dtype=dtype).encode(mixed)
    assert equal(make_policy(dtype=dtype, condition_cache=tmp_path).encode(mixed), plain)
    assert len(list(tmp_path.iterdir())) == 3 + 4  # prompts and pictures have files of their own
    second = make_policy(dtype=dtype, condition_cache=tmp_path, offload_text_encoders=True)
    must_not_encode(second, monkeypatch)
    assert equal(second.encode(mixed), plain)


def test_keys_hold_only_values_that_are_the_same_in_every_process(
    tmp_path: Path, samples: list[Sample], make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
):
    """A set or an object would be written in another order, or with its address."""
    recorded: list[Any] = []

    def recording(modules: dict[str, nn.Module], settings: dict[str, Any]) -> str:
        recorded.append(settings)
        return model_identity(modules, settings)

    monkeypatch.setattr(encoder, "model_identity", recording)
    make_policy(condition_cache=tmp_path).encode(samples[:1])
    assert len(recorded) == 2  # of the text encoders and of the VAE
    while recorded:
        value = recorded.pop()
        assert isinstance(value, dict | list | tuple | str | int | float | torch.dtype | None), value
        recorded += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()


@pytest.mark.slow  # most of it is the start of Python; the test above covers the keys, and those before it the files
def test_another_process_reads_what_this_one_encoded(tmp_path: Path, samples: list[Sample], make_policy: MakePolicy):
    picture = tmp_path / "reference.png"
    samples[0].reference_images()[0].save(picture)
    sample = Sample("listed", "critter", samples[0].prompt, (picture,))
    ours = make_policy(condition_cache=tmp_path / "cache").encode([sample]).entries[0]
    program = f"""
import sys
from pathlib import Path
from safetensors.torch import save_file
from customized_grpo.critters.weights import resolve
from customized_grpo.data import Sample
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.sections import Model
policy = FluxKontextPolicy.load(resolve("critters", "generator"), Model(condition_cache=sys.argv[1]), "cpu")
policy.pipe.encode_prompt = policy.pipe.vae.encode = None
entry = policy.encode([Sample("elsewhere", "critter", {sample.prompt!r}, (Path(sys.argv[2]),))]).entries[0]
save_file(dict(entry.tensors), sys.argv[3])
"""
    out = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-c", program, tmp_path / "cache", picture, out], check=True, timeout=300)
    theirs = load_file(out)
    assert all(torch.equal(ours.tensors[name], theirs[name]) for name in ("text", "pooled", "reference"))


def test_a_damaged_condition_is_encoded_again(
    tmp_path: Path, samples: list[Sample], make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
):
    plain = make_policy(condition_cache=tmp_path).encode(samples[:1])
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(whole) == 2
    for file, content in whole.items():
        file.write_bytes(content[: len(content) // 2])
    assert equal(make_policy(condition_cache=tmp_path).encode(samples[:1]), plain)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == whole
    later = make_policy(condition_cache=tmp_path)
    must_not_encode(later, monkeypatch)
    assert equal(later.encode(samples[:1]), plain)


def test_prompts_and_pictures_are_encoded_independently(
    tmp_path: Path, samples: list[Sample], make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
):
    make_policy(condition_cache=tmp_path).encode(samples[:2])
    crossed = replace(samples[0], id="crossed", references=samples[1].references)
    policy = make_policy(condition_cache=tmp_path)
    must_not_encode(policy, monkeypatch)
    policy.encode([crossed])
    with pytest.raises(pytest.fail.Exception, match="a picture"):
        policy.encode([replace(crossed, id="new picture", references=samples[2].references)])
    with pytest.raises(pytest.fail.Exception, match="a prompt"):
        policy.encode([replace(crossed, id="new prompt", prompt="a critter reading")])


def test_settings_that_change_the_bits_are_in_the_key(tmp_path: Path, samples: list[Sample], make_policy: MakePolicy):
    """One prompt and one picture: how many files there are after each change of a setting."""
    white = replace(samples[0], references=(Image.new("RGB", (64, 64), "white"),))  # the same bytes in every shape

    def files(**settings: object) -> int:
        make_policy(condition_cache=tmp_path, **settings).encode([white])
        return len(list(tmp_path.iterdir()))

    assert files() == 2
    assert files() == 2
    assert files(width=48) == 3
    assert files(height=48) == 4  # 48x32 and 32x48 hold the same number of pixels
    assert files(max_sequence_length=20) == 5
    assert files(dtype="bfloat16") == 7
    assert files(guidance=5.0, rank=4) == 7  # read by the transformer alone


def test_models_share_files_only_if_the_encoder_is_the_same(
    tmp_path: Path, samples: list[Sample], make_policy: MakePolicy
):
    def copy_of_built_in(name: str) -> Path:
        return Path(shutil.copytree(FOLDER / "generator", tmp_path / name))

    def retrained(folder: Path, part: str) -> Path:
        """Change one weight of a hundred thousand."""
        (file,) = (folder / part).glob("*.safetensors")
        weights = load_file(file)
        weights[max(weights, key=lambda name: weights[name].numel())].view(-1)[3] += 1e-3
        save_file(weights, file, {"format": "pt"})
        return folder

    cache = tmp_path / "cache"

    def files(model: Path | str) -> int:
        make_policy(model, condition_cache=cache).encode(samples[:1])
        return len(list(cache.iterdir()))

    assert files("critters") == 2
    assert files(copy_of_built_in("moved")) == 2  # the same model in another place
    assert files(retrained(copy_of_built_in("vae"), "vae")) == 3
    assert files(retrained(copy_of_built_in("clip"), "text_encoder")) == 4
    assert files(retrained(copy_of_built_in("t5"), "text_encoder_2")) == 5
    assert files(retrained(copy_of_built_in("transformer"), "transformer")) == 5
