"""A CLIP checkpoint with random weights, in the files and classes of the published ones."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

LENGTH = 77
PREPROCESSING = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
    "rescale_factor": 1 / 255, "size": {"shortest_edge": 224},
}  # fmt: skip


def save_clip(folder: Path, *, scale: float = 4.6052) -> CLIPModel:
    """exp(4.6052) = 100.0, the scale of all published CLIP models."""
    vocabulary = dict.fromkeys("abcdefghijklmnopqrstuvwxyz") | dict.fromkeys(
        f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"
    )
    words = {word: number for number, word in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=words, merges=[], model_max_length=LENGTH).save_pretrained(folder)
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = common | {
        "vocab_size": len(words), "max_position_embeddings": LENGTH,
        "bos_token_id": words["<|startoftext|>"], "eos_token_id": words["<|endoftext|>"],
    }  # fmt: skip
    vision = common | {"image_size": 224, "patch_size": 32}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, logit_scale_init_value=scale)
    ).eval()
    for name, weight in model.named_parameters():
        if name != "logit_scale":
            weight.data.add_(0.1 * torch.randn(weight.shape))  # fresh ones hardly look at picture and words
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return model
