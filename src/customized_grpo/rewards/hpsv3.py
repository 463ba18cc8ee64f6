"""HPSv3: human preference by Qwen2-VL-7B with a small head (arXiv 2508.03789), on the installed transformers.

The published package pins transformers 4.45. What this port keeps of it, each needed for the same number:
- text positions are 0, 1, 2, ... over image tokens too: the original never asked for Qwen2-VL's three-way positions;
- rotary frequencies are rounded to bfloat16, vision angles too: the original casts the whole model, buffers included;
- the head works in float32, on the last hidden state at the token <|Reward|>; of its (mu, log sigma) mu is the score;
- every image is resized to about 256 * 28 * 28 pixels, its sides multiples of 28.
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
from customized_grpo.files.pretrained import ModelError, find, loading
from customized_grpo.rewards.hpsv3_prompt import REWARD_TOKEN, question

WEIGHTS = "HPSv3.safetensors"
PIXELS = 256 * 28 * 28

_RENAMED = (("visual.", "backbone.visual."), ("model.", "backbone.language_model."), ("rm_head.", "head."))
_UNUSED = {"lm_head.weight"}  # of the language model, which says nothing here


class HPSv3Model(nn.Module):
    """Qwen2-VL without its language head, and HPSv3's head: (mu, log sigma) [B, 2] of question and image."""

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
        """ids, mask [B, L] hold one reward token a row; pixels [P, 1176] the patches of B images, grids [B, 3]."""
        backbone: Any = self.backbone  # Any: its annotations leave out what it takes and returns
        embedded = backbone.language_model.embed_tokens(ids)
        # Not by the backbone's forward: it would make three-way positions.
        seen = torch.cat(backbone.get_image_features(pixels, grids).pooler_output).to(embedded.dtype)
        embedded = embedded.masked_scatter((ids == self.image_token)[..., None], seen)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        hidden = backbone.language_model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self.head(hidden[ids == self.reward_token].float())


class HPSv3:
    """Preference mu of a picture for its prompt: without bounds, only differences count.

    model: where `HPSv3.safetensors` lies, a folder or hub id. base: where config, tokenizer and image processor of
    Qwen2-VL-7B-Instruct lie. dtype: "bfloat16" or "float32", of all but the head.
    Raises ValueError where weights and base do not belong together.
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
        find(base, "config.json")
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
        seen = self.processor(images=list(pictures), size=size, return_tensors="pt").to(self.device)
        tokens = seen["image_grid_thw"].prod(-1) // self.processor.merge_size**2
        asked = [question(prompt, int(count)) for prompt, count in zip(prompts, tokens, strict=True)]
        rows = [torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in asked]
        # Padded on the right, so that positions begin at 0 in every row; nothing looks at what comes later.
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id).to(self.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(self.device)
        return self.model(ids, mask, seen["pixel_values"], seen["image_grid_thw"]).cpu()


def load_model(
    model: str | Path, base: str | Path, tokenizer: Any, device: torch.device, dtype: torch.dtype
) -> HPSv3Model:
    """The published weights in the installed transformers' model, on the device, without gradients.

    Raises ValueError where a weight is missing, unknown, or of another shape than base and tokenizer ask for.
    """
    file = find(model, WEIGHTS)
    with loading(base):
        config: Any = Qwen2VLConfig.from_pretrained(base)
    config.text_config.vocab_size = len(tokenizer)  # the original cut its embeddings to the tokenizer's size
    with init_empty_weights():  # 16 GB that would be overwritten; buffers, which the file does not have, are made
        made = HPSv3Model(config, tokenizer.convert_tokens_to_ids(REWARD_TOKEN))
    with loading(model):
        weights = renamed(load_file(file, device=str(device)))
    expected = made.state_dict()
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
    made.load_state_dict(kept, assign=True)
    round_rotations(made.backbone)
    return made.to(device).eval().requires_grad_(False)


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names to those of `HPSv3Model`; unknown ones stay as they are."""
    names = {}
    for key in weights.keys() - _UNUSED:
        prefix = next((pair for pair in _RENAMED if key.startswith(pair[0])), ("", ""))
        names[prefix[1] + key.removeprefix(prefix[0])] = weights[key]
    return names


def round_rotations(backbone: Any) -> None:
    """Rotary embeddings as the published model learned them, rounded to bfloat16 where the original rounds."""
    for name, buffer in backbone.named_buffers():
        if name.endswith("inv_freq"):
            buffer.copy_(buffer.bfloat16())
    backbone.visual.rotary_pos_emb.register_forward_hook(_rounded_angles)


def _rounded_angles(rotary: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """cos and sin [N, C] in place of `output`: transformers 4.45 took them of angles in bfloat16, in bfloat16."""
    positions = inputs[1]  # [N, 2]: row and column of each patch
    angles = (positions[..., None].float() * rotary.inv_freq.float()).bfloat16().flatten(1)
    both = torch.cat([angles, angles], dim=-1)
    return both.cos().float(), both.sin().float()
