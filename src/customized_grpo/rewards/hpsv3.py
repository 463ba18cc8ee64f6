"""HPSv3: human preference by Qwen2-VL-7B with a small head (arXiv 2508.03789), on the installed transformers.

The published package pins transformers 4.45. To give the same scores, this port keeps these traits of it:
- positions are 0, 1, 2, ... over image tokens as well: the original does not use Qwen2-VL's three-way positions;
- rotary frequencies and vision angles are rounded to bfloat16: the original casts the whole model, buffers included;
- the head runs in float32 on the last hidden state at the token <|Reward|>; of its output (mu, log sigma), mu is the
  score;
- every image is resized to about 256 * 28 * 28 pixels, with sides that are multiples of 28.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures
from customized_grpo.files.pretrained import ModelError, find, loading, model_type
from customized_grpo.rewards.hpsv3_prompt import IMAGE_TOKEN, REWARD_TOKEN, question

WEIGHTS = "HPSv3.safetensors"
PIXELS = 256 * 28 * 28

_RENAMED = (("visual.", "backbone.visual."), ("model.", "backbone.language_model."), ("rm_head.", "head."))
_UNUSED = {"lm_head.weight"}  # the language head, which HPSv3 does not use


class HPSv3Model(nn.Module):
    """Qwen2-VL with HPSv3's head instead of its language head: (mu, log sigma) [B, 2] of question and image."""

    def __init__(self, config: Any, reward_token: int):
        super().__init__()
        self.backbone = Qwen2VLModel(config)
        self.head = nn.Sequential(
            nn.Linear(config.text_config.hidden_size, 1024),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )
        self.image_token, self.reward_token = config.image_token_id, reward_token

    def forward(self, ids: Tensor, mask: Tensor, pixels: Tensor, grids: Tensor) -> Tensor:
        """ids and mask [B, L], one reward token per row; pixels [P, 1176], the patches of B images; grids [B, 3]."""
        backbone: Any = self.backbone  # Any: its annotations omit what it takes and returns
        embedded = backbone.language_model.embed_tokens(ids)
        # The backbone's own forward would use three-way positions.
        image_features = torch.cat(backbone.get_image_features(pixels, grids).pooler_output).to(embedded.dtype)
        embedded = embedded.masked_scatter((ids == self.image_token)[..., None], image_features)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        hidden = backbone.language_model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self.head(hidden[ids == self.reward_token].float())


class HPSv3:
    """Preference mu for a picture given its prompt: unbounded, only differences count.

    model: folder or hub id with `HPSv3.safetensors`. base: folder or hub id with config, tokenizer and image processor
    of Qwen2-VL-7B-Instruct. dtype: "bfloat16" or "float32", of everything but the head.
    Raises ModelError if weights and base do not fit together.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        base: str | Path = "Qwen/Qwen2-VL-7B-Instruct",
        device: torch.device,
        batch: int = 8,
        dtype: str = "bfloat16",
    ):
        if (kind := model_type(base)) != "qwen2_vl":
            raise ModelError(f"hpsv3: {base} is a {kind!r} checkpoint; set base to one of type qwen2_vl")
        with loading(base):
            self.tokenizer = AutoTokenizer.from_pretrained(base)
            self.processor = Qwen2VLImageProcessorPil.from_pretrained(base)
        self.tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self.model = load_model(model, base, self.tokenizer, device, getattr(torch, dtype))
        self.device, self.batch = device, batch

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        pictures, prompts = to_pictures(images), [sample.prompt for sample in samples]
        parts = [
            self.outputs(pictures[start : start + self.batch], prompts[start : start + self.batch])[:, 0]
            for start in range(0, len(pictures), self.batch)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def outputs(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """mu and log sigma [B, 2] of B > 0 pictures in one forward pass, float32 on the CPU."""
        size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
        patches = self.processor(images=list(pictures), size=size, return_tensors="pt").to(self.device)
        tokens = patches["image_grid_thw"].prod(-1) // self.processor.merge_size**2
        questions = [question(prompt, int(count)) for prompt, count in zip(prompts, tokens, strict=True)]
        rows = [torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in questions]
        # Padded on the right, so that positions start at 0 in every row; attention is causal and ignores the padding.
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id).to(self.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(self.device)
        return self.model(ids, mask, patches["pixel_values"], patches["image_grid_thw"]).cpu()


def load_model(
    model: str | Path, base: str | Path, tokenizer: Any, device: torch.device, dtype: torch.dtype
) -> HPSv3Model:
    """The published weights in the installed transformers' model, on the device, without gradients.

    Raises ModelError if a weight is missing, unknown, or not of the shape that base and tokenizer require.
    """
    file = find(model, WEIGHTS)
    with loading(base):
        config: Any = Qwen2VLConfig.from_pretrained(base)
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != config.image_token_id:
        raise ModelError(
            f"hpsv3: the tokenizer of {base} has no {IMAGE_TOKEN} with id {config.image_token_id}, which its config "
            "names; download the model again"
        )
    config.text_config.vocab_size = len(tokenizer)  # the original trims its embeddings to the tokenizer's size
    # Saves allocating 16 GB that would be overwritten. Buffers are allocated: the file does not have them.
    with loading(base), init_empty_weights():
        network = HPSv3Model(config, tokenizer.convert_tokens_to_ids(REWARD_TOKEN))
    with loading(model):
        weights = renamed(load_file(file, device=str(device)))
    expected = network.state_dict()
    problems = [f"{key} is missing" for key in sorted(expected.keys() - weights.keys())]
    problems += [f"{key} is unknown" for key in sorted(weights.keys() - expected.keys())]
    problems += [
        f"{key} is {list(weights[key].shape)}, not {list(expected[key].shape)}"
        for key in sorted(expected.keys() & weights.keys())
        if weights[key].shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"hpsv3: {file} does not fit {base}: {'; '.join(problems[:3])}{more}")
    kept = {key: value.to(torch.float32 if key.startswith("head.") else dtype) for key, value in weights.items()}
    network.load_state_dict(kept, assign=True)
    round_rotations(network.backbone)
    return network.to(device).eval().requires_grad_(False)


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of `HPSv3Model`; unknown names are unchanged."""
    names = {}
    for key in weights.keys() - _UNUSED:
        prefix = next((pair for pair in _RENAMED if key.startswith(pair[0])), ("", ""))
        names[prefix[1] + key.removeprefix(prefix[0])] = weights[key]
    return names


def round_rotations(backbone: Any) -> None:
    """Round rotary embeddings to bfloat16 where the original does: the published model was trained with them."""
    for name, buffer in backbone.named_buffers():
        if name.endswith("inv_freq"):
            buffer.copy_(buffer.bfloat16())
    backbone.visual.rotary_pos_emb.register_forward_hook(_rounded_angles)


def _rounded_angles(rotary: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """cos and sin [N, C] instead of `output`: transformers 4.45 computes angles, cos and sin in bfloat16."""
    positions = inputs[1]  # [N, 2]: row and column of each patch
    angles = (positions[..., None].float() * rotary.inv_freq.float()).bfloat16().flatten(1)
    both = torch.cat([angles, angles], dim=-1)
    return both.cos().float(), both.sin().float()
