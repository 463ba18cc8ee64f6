"""Text and pictures for Qwen's text encoder, by hand: the real processor needs torchvision."""

from typing import Any

import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tiny_models
from customized_grpo.policies.qwen_image_edit import Processor


def test_a_placeholder_becomes_a_token_for_each_28_pixels_squared():
    """Of two pictures in one text, in their order: 56 x 84 pixels are 2 x 3 tokens, 112 x 28 are 4 x 1."""
    tokenizer: Any = tiny_models.qwen_tokenizer()
    images = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, min_pixels=28 * 28)
    pad = "<|image_pad|>"
    pictures = [Image.new("RGB", (84, 56)), Image.new("RGB", (28, 112))]
    inputs = Processor(tokenizer, images)([f"a{pad}b{pad}c"], pictures, return_tensors="pt")
    expected = tokenizer("a" + 6 * pad + "b" + 4 * pad + "c")["input_ids"]
    assert inputs["input_ids"].tolist() == [expected]
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6], [1, 8, 2]]  # patches of 14 pixels
    assert inputs["pixel_values"].shape == torch.Size([4 * 6 + 8 * 2, 2 * 3 * 14 * 14])  # two frames of three colours


def test_texts_take_their_pictures_in_turn():
    tokenizer: Any = tiny_models.qwen_tokenizer()
    images = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, min_pixels=28 * 28)
    pictures = [Image.new("RGB", (28, 28)), Image.new("RGB", (56, 28))]
    pad = "<|image_pad|>"
    inputs = Processor(tokenizer, images)([f"a{pad}", f"b{pad}"], pictures, padding=True, return_tensors="pt")
    token = tokenizer.convert_tokens_to_ids(pad)
    assert (inputs["input_ids"] == token).sum(dim=1).tolist() == [1, 2]
