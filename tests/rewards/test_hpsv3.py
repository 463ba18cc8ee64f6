"""HPSv3 against numbers of the original code, on a tiny checkpoint with random weights."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hpsv3_checkpoint import save_hpsv3
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.files.pretrained import ModelError
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.rewards.hpsv3 import WEIGHTS, HPSv3, renamed
from customized_grpo.rewards.hpsv3_prompt import question

CPU = torch.device("cpu")
CLIP = FOLDER / "clip"
DIGEST = "4ffa57dabd39e7e05048a57901bc99ad4e0ab75467c12eff7fa600faf200bd32"
ORIGINAL = [[-0.783423, 1.215171], [-1.855917, 0.753124], [-2.460737, 1.527567]]
PROMPTS = ["a dog on the beach", "a red cat wearing a hat, in the snow", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hpsv3")
    save_hpsv3(folder)
    return folder


@pytest.fixture(scope="module")
def reward(folder: Path) -> HPSv3:
    return HPSv3(folder, base=folder, device=CPU, dtype="float32")


def noise(seed: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [noise(0, 512, 512), noise(1, 512, 384), noise(2, 320, 640)]


@pytest.fixture(scope="module")
def images() -> Tensor:
    made = np.stack([np.asarray(noise(seed, 96, 96)) for seed in range(5)])
    return torch.from_numpy(made).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def samples(pictures: list[Image.Image]) -> list[Sample]:
    prompts = [*PROMPTS, "a dog on the beach", "one more cat"]
    return [Sample(id=str(i), subject="it", prompt=p, references=(pictures[0],)) for i, p in enumerate(prompts)]


class LatestCall:
    """The latest inputs of the model and of its language model, and its hidden states."""

    def __init__(self, reward: HPSv3):
        self.model: tuple[Tensor, Tensor, Tensor, Tensor]
        self.language: dict[str, Any] = {}
        self.hidden: Tensor
        language = reward.model.backbone.language_model
        self.hooks = [
            reward.model.register_forward_pre_hook(lambda _, inputs: setattr(self, "model", inputs)),
            language.register_forward_pre_hook(lambda _, __, inputs: self.language.update(inputs), with_kwargs=True),
            language.register_forward_hook(lambda _, __, output: setattr(self, "hidden", output.last_hidden_state)),
        ]

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


# --- the number ------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_original_code(reward: HPSv3, pictures: list[Image.Image]):
    """mu and log sigma from Qwen2VLRewardModelBT's forward under transformers 4.45.2, on the same weights, tokens and
    patches, in float32 except for the rotary buffers, which it casts to bfloat16 with the rest of the model."""
    expected = torch.tensor(ORIGINAL)
    torch.testing.assert_close(reward.outputs(pictures, PROMPTS), expected, atol=1e-3, rtol=0)
    assert expected.std(0).min() > 0.1  # a hundred times the tolerance: a mix-up would show


def test_the_question_is_the_published_one():
    """By its digest, so that no editor strips the spaces at its line ends; the template is that of Qwen2-VL."""
    text = question("PROMPT", 2)
    instruction = text.split("<|vision_end|>")[1].split("<|im_end|>")[0]
    assert hashlib.sha256(instruction.encode()).hexdigest() == DIGEST
    assert text.startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>\nYou are tasked with"
    )
    assert text.endswith(
        "\nTextual prompt - PROMPT\n\n\n\nPlease provide the overall ratings of this image: <|Reward|>\n\nEND\n"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "being the best. \n\n**Visual Quality:**  \nEvaluate" in text


def test_braces_in_a_prompt_are_not_replaced():
    assert "Textual prompt - a {prompt} {0} %s\n" in question("a {prompt} {0} %s", 1)


@pytest.mark.parametrize("token", ["<|Reward|>", "<|image_pad|>"])
def test_a_prompt_with_a_special_token_is_refused(token: str):
    with pytest.raises(
        UsageError, match=r"^hpsv3: the prompt 'a .* cat' holds .*, a special token of the model; reword it$"
    ):
        question(f"a {token} cat", 1)


def test_mu_is_the_score(reward: HPSv3, images: Tensor, samples: list[Sample], pictures: list[Image.Image]):
    one = torch.from_numpy(np.array(pictures[0])).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(reward(one, samples[:1]), reward.outputs(pictures[:1], PROMPTS[:1])[:, 0])
    scores = reward(images, samples)
    assert (scores.shape, scores.dtype) == ((5,), torch.float32)
    assert scores.std() > 0.1


# --- shapes and positions --------------------------------------------------------------------------------------------


def test_shapes_and_positions(reward: HPSv3, pictures: list[Image.Image]):
    """Sides are multiples of 28, four patches of 14 x 14 per token; a patch has 3 x 2 x 14 x 14 = 1176 numbers.

    512 x 512 is too large: scaled by .875, down to 448 x 448. 512 x 384 rounds to 504 x 392, which is too small:
    scaled by 1.0104, up to 532 x 392. 320 x 640 rounds to 308 x 644, too small as well: by .98995, up to 336 x 644.
    """
    seen = LatestCall(reward)
    out = reward.outputs(pictures, PROMPTS)
    seen.remove()
    ids, mask, pixels, grids = seen.model
    assert out.shape == (3, 2)
    assert grids.tolist() == [[1, 32, 32], [1, 28, 38], [1, 46, 24]]
    patches = grids.prod(-1)
    assert pixels.shape == (int(patches.sum()), 1176)
    L = ids.shape[1]
    assert ids.shape == mask.shape == (3, L)
    assert ((ids == reward.model.image_token).sum(1) == patches // 4).all()
    assert (ids == reward.model.reward_token).sum(1).tolist() == [1, 1, 1]
    assert mask.sum(1).max() == L
    assert (mask.sum(1) < L).any()  # the rows differ in length
    assert seen.language["position_ids"].shape == (3, 3, L)
    assert torch.equal(seen.language["position_ids"], torch.arange(L).expand(3, 3, L))
    assert seen.language["inputs_embeds"].shape == seen.hidden.shape == (3, L, 64)
    for row in range(3):
        place = int((ids[row] == reward.model.reward_token).nonzero())
        by_hand = reward.model.head(seen.hidden[row, place])
        torch.testing.assert_close(out[row], by_hand, atol=1e-6, rtol=0)


def test_every_picture_takes_about_256_tokens(reward: HPSv3):
    for width, height in ((32, 32), (224, 224), (448, 448), (1024, 1024), (1536, 640), (320, 640)):
        seen = LatestCall(reward)
        reward.outputs([noise(0, width, height)], ["x"])
        seen.remove()
        assert 240 <= int((seen.model[0] == reward.model.image_token).sum()) <= 276


# --- batches and padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_size_of_forward_passes_changes_nothing(
    batch: int, folder: Path, reward: HPSv3, images: Tensor, samples: list[Sample]
):
    other = HPSv3(folder, base=folder, device=CPU, batch=batch, dtype="float32")
    torch.testing.assert_close(other(images, samples), reward(images, samples), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str, reward: HPSv3, pictures: list[Image.Image]):
    """On the left it shifts all positions, which changes only the rounding of rotary embeddings."""
    seen = LatestCall(reward)
    alone = reward.outputs(pictures[:1], PROMPTS[:1])
    seen.remove()
    ids, mask, pixels, grids = seen.model
    more = (7, 0) if side == "left" else (0, 7)
    ids = torch.nn.functional.pad(ids, more, value=reward.tokenizer.pad_token_id)
    mask = torch.nn.functional.pad(mask, more)
    torch.testing.assert_close(reward.model(ids, mask, pixels, grids), alone, atol=1e-5, rtol=0)


def test_a_longer_prompt_in_the_batch_changes_nothing(reward: HPSv3, pictures: list[Image.Image]):
    alone = reward.outputs(pictures[:1], ["x"])
    batch = reward.outputs([pictures[0], pictures[0]], ["x", "a much longer prompt " * 20])
    torch.testing.assert_close(batch[:1], alone, atol=1e-5, rtol=0)
    assert (batch[1] - alone[0]).abs().max() > 1e-3


# --- weights ---------------------------------------------------------------------------------------------------------


def test_every_published_weight_has_its_place(folder: Path, reward: HPSv3):
    published = load_file(folder / WEIGHTS)
    assert set(renamed(published)) == set(reward.model.state_dict())
    state = reward.model.state_dict()
    assert torch.equal(state["head.5.bias"], published["rm_head.5.bias"])
    key = "layers.1.mlp.up_proj.weight"
    assert torch.equal(state[f"backbone.language_model.{key}"], published[f"model.{key}"].float())
    assert torch.equal(state["backbone.visual.merger.mlp.2.bias"], published["visual.merger.mlp.2.bias"].float())
    assert not any(tensor.is_meta for tensor in [*reward.model.parameters(), *reward.model.buffers()])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w.pop("rm_head.3.weight"), "head.3.weight is missing"),
        (lambda w: w.update({"model.norm.bias": torch.zeros(64)}), "backbone.language_model.norm.bias is unknown"),
        (lambda w: w.update({"extra": torch.zeros(1)}), "extra is unknown"),
        (
            lambda w: w.update({"model.embed_tokens.weight": torch.zeros(9, 64)}),
            r"backbone.language_model.embed_tokens.weight is \[9, 64\], not \[\d+, 64\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, problem: str, folder: Path, tmp_path: Path):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=f"^hpsv3: .*{WEIGHTS} does not fit .*: {problem}$"):
        HPSv3(tmp_path, base=folder, device=CPU)


def test_a_folder_without_the_weights_is_refused_with_their_name(folder: Path, tmp_path: Path):
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ModelError, match=WEIGHTS):
        HPSv3(tmp_path, base=folder, device=CPU)


def test_a_base_of_another_type_is_refused(folder: Path):
    with pytest.raises(ModelError, match=r"^hpsv3: .*clip is a 'clip' checkpoint; set base to one of type qwen2_vl$"):
        HPSv3(folder, base=CLIP, device=CPU)


def test_another_models_tokenizer_is_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_token_id": 3}))
    with pytest.raises(ModelError, match=r"^hpsv3: the tokenizer of .* has no <\|image_pad\|> with id 3, which its"):
        HPSv3(folder, base=tmp_path, device=CPU)


@pytest.mark.parametrize("half", [0, 0.5])
def test_a_weights_file_that_was_cut_short_is_refused(folder: Path, tmp_path: Path, half: float):
    content = (folder / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[: int(half * len(content))])
    with pytest.raises(ModelError, match=f"^{tmp_path} cannot be loaded: ") as error:
        HPSv3(tmp_path, base=folder, device=CPU)
    assert "\n" not in str(error.value)


def test_in_bfloat16_the_head_stays_in_full_precision(
    folder: Path, reward: HPSv3, images: Tensor, samples: list[Sample]
):
    half = parse_reward(f"hpsv3 model={folder} base={folder}").make(CPU)
    assert isinstance(half, HPSv3)
    assert {p.dtype for p in half.model.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.model.head.parameters()} == {torch.float32}
    scores = half(images, samples)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reward(images, samples), atol=0.1, rtol=0)


def test_scoring_keeps_no_gradients(reward: HPSv3, images: Tensor, samples: list[Sample]):
    assert not any(p.requires_grad for p in reward.model.parameters())
    assert not reward.model.training
    seen = LatestCall(reward)
    with torch.enable_grad():
        scores = reward(images[:2].requires_grad_(), samples[:2])
    seen.remove()
    assert scores.grad_fn is None
    assert not seen.hidden.requires_grad
    images.requires_grad_(False)
