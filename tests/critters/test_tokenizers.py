import json
from collections.abc import Callable
from typing import Any

import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from customized_grpo.critters.build import models
from customized_grpo.critters.weights import FOLDER
from customized_grpo.critters.world import SITUATIONS

PROMPTS = [situation.prompt for situation in SITUATIONS]
OTHER_TEXTS = [
    "a photo of a backpack in the jungle",
    "A Corgi, 3 years old!",
    "café “x” 猫 ✓ <sks> #1",
    "critters beaches unhatted",
    "",
    "   ",
    "<|endoftext|>",
    "x" * 500,
]
MAKERS = {"tokenizer": models.clip_tokenizer, "tokenizer_2": models.t5_tokenizer}


def parts(prompt: str) -> list[str]:
    """The words and commas of a prompt."""
    return prompt.replace(",", " ,").split()


def logic(tokenizer: Any) -> dict[str, Any]:
    """All settings that decide the tokens; padding and truncation are only those of the last call."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: value for name, value in settings.items() if name not in ("padding", "truncation")}


def test_every_word_of_every_prompt_is_one_token_of_clip():
    tokenizer = models.clip_tokenizer()
    for prompt in PROMPTS:
        assert tokenizer.tokenize(prompt) == [f"{part}</w>" for part in parts(prompt)]
        ids = tokenizer(prompt).input_ids
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert len(set(ids[1:-1])) == len(set(parts(prompt)))


def test_every_word_of_every_prompt_is_one_piece_of_t5():
    tokenizer = models.t5_tokenizer()
    for prompt in PROMPTS:
        assert tokenizer.tokenize(prompt) == [part if part == "," else f"▁{part}" for part in parts(prompt)]
        ids = tokenizer(prompt).input_ids
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids


def test_no_two_prompts_have_the_same_tokens():
    for make in MAKERS.values():
        tokenizer = make()
        assert len({tuple(tokenizer(prompt).input_ids) for prompt in PROMPTS}) == len(PROMPTS)


def test_the_longest_prompt_fits():
    """12 words and 2 commas at most; CLIP adds two special tokens, T5 one."""
    assert max(len(parts(prompt)) for prompt in PROMPTS) == 14
    clip = [len(ids) for ids in models.clip_tokenizer()(PROMPTS).input_ids]
    t5 = [len(ids) for ids in models.t5_tokenizer()(PROMPTS).input_ids]
    assert max(clip) == 16 <= models.CLIP_TOKENS
    assert max(t5) == 15 <= models.TEXT_TOKENS


@pytest.mark.parametrize("text", OTHER_TEXTS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_any_other_text_is_accepted(make: Callable[[], Any], text: str):
    tokenizer = make()
    ids = tokenizer(text, padding="max_length", max_length=models.TEXT_TOKENS, truncation=True).input_ids
    assert len(ids) == models.TEXT_TOKENS
    assert all(0 <= token < len(tokenizer) for token in ids)
    assert tokenizer.eos_token_id in ids


def test_other_words_are_split_into_letters():
    clip: Any
    t5: Any
    clip, t5 = models.clip_tokenizer(), models.t5_tokenizer()
    assert clip.tokenize("Dog, 3.") == ["d", "o", "g</w>", ",</w>", "3</w>", ".</w>"]
    assert t5.tokenize("dog, 3.") == ["▁", "d", "o", "g", ",", "▁", "3", "."]
    assert clip.decode(clip("a jungle cat").input_ids, skip_special_tokens=True).strip() == "a jungle cat"
    assert t5.decode(t5("a jungle cat").input_ids, skip_special_tokens=True).strip() == "a jungle cat"


@pytest.mark.parametrize(
    ("make", "kind", "folder"),
    [
        (models.clip_tokenizer, CLIPTokenizer, "generator/tokenizer"),
        (models.clip_tokenizer, CLIPTokenizer, "clip"),
        (models.t5_tokenizer, T5Tokenizer, "generator/tokenizer_2"),
    ],
    ids=["generator-clip", "clip", "generator-t5"],
)
def test_construction_is_reproducible_and_gives_the_shipped_tokenizer(make: Callable[[], Any], kind: Any, folder: str):
    """The shipped one comes from another process, in which sets had another order."""
    one, two, shipped = make(), make(), kind.from_pretrained(FOLDER / folder)
    assert logic(one) == logic(two) == logic(shipped)
    assert one.get_vocab() == two.get_vocab() == shipped.get_vocab()
    assert one.model_max_length == shipped.model_max_length
    assert one.special_tokens_map == shipped.special_tokens_map
    for text in PROMPTS + OTHER_TEXTS:
        assert one(text).input_ids == shipped(text).input_ids
