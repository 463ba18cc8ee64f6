"""HPSv3 with random weights: the published file's names and the files of Qwen2-VL-7B-Instruct, at a tiny size."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import Qwen2Tokenizer, Qwen2VLConfig

from customized_grpo.rewards.hpsv3 import WEIGHTS, HPSv3Model
from customized_grpo.rewards.hpsv3_prompt import question

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip


def save_hpsv3(folder: Path) -> None:
    """The same weights at each call, large enough for every part to matter."""
    ids = _save_tokenizer(folder)
    _save_configs(folder, ids)
    config: Any = Qwen2VLConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(ids)
    generator = torch.Generator().manual_seed(1)
    weights = {"lm_head.weight": torch.zeros(len(ids), 64, dtype=torch.bfloat16)}
    for key, value in HPSv3Model(config, reward_token=ids["<|Reward|>"]).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        scaled = noise * 1.5 / value[0].numel() ** 0.5 if value.ndim > 1 else value * 0 + 0.1 * noise
        if "norm" in key or "ln_q" in key:
            scaled += key.endswith("weight")
        published = key.replace("backbone.visual.", "visual.").replace("backbone.language_model.", "model.")
        head = published.startswith("head.")
        weights[f"rm_{published}" if head else published] = scaled if head else scaled.bfloat16()
    save_file(weights, folder / WEIGHTS)


def _save_tokenizer(folder: Path) -> dict[str, int]:
    """Byte pairs learned from the question itself; every id by its token, <|Reward|> behind them all."""
    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator([question("a dog on the beach", 0)], vocab_size=800, min_frequency=1)
    pairs = json.loads(learned._tokenizer.to_str())["model"]
    merges: Any = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in pairs["merges"]]
    tokenizer: Any = Qwen2Tokenizer(vocab=pairs["vocab"], merges=merges)
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    tokenizer.pad_token, tokenizer.eos_token = "<|endoftext|>", "<|im_end|>"
    tokenizer.save_pretrained(folder)
    return tokenizer.get_vocab() | {"<|Reward|>": len(tokenizer)}


def _save_configs(folder: Path, ids: dict[str, int]) -> None:
    """config.json flat, as transformers 4 wrote it; more embeddings than tokens, as Qwen has."""
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768, "max_window_layers": 2,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size": len(ids) + 40, "vision_config": {
            "depth": 2, "embed_dim": 32, "mlp_ratio": 4, "num_heads": 2, "in_chans": 3, "hidden_size": 64,
            "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    preprocessing = {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
