"""The front end of text, with tokenizers that add nothing to a transcript and know no padding."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fourm_ser.analysis.words import read_words
from fourm_ser.encoders.hub import _is_tokenizer
from fourm_ser.encoders.text import TextEncoder
from fourm_ser.encoders.tokens import Tokens
from fourm_ser.errors import InputError


def bytewise(**special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, as GPT-2's, with some special tokens."""
    vocabulary = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


@pytest.mark.parametrize(
    ("special", "stands"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, "<s>"),
        ({"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}, "<|endoftext|>"),
        ({"pad_token": "<pad>", "unk_token": "<unk>"}, "<pad>"),
        ({"unk_token": "<unk>"}, "<unk>"),
    ],
)
def test_a_token_stands_for_an_empty_transcript(special: dict[str, str], stands: str) -> None:
    tokens = Tokens(bytewise(**special), 16)
    assert tokens.tokenizer.convert_ids_to_tokens(tokens("")["ids"].tolist()) == [stands]
    assert tokens.describe()["empty"] == tokens("")["ids"].item()
    words = read_words(tokens, "")
    assert (words.names, words.indices.tolist(), words.special.tolist()) == ([stands], [0], [True])
    assert read_words(tokens, "ab c").names == ["ab", "c"]
    batch = tokens.collate([tokens("ab"), tokens("")])
    assert batch["mask"].tolist() == [[True, True], [True, False]]  # on the right, whatever the tokenizer's own side
    assert batch["ids"][1, 0] == tokens.empty[0]


def test_a_tokenizer_without_any_special_token_has_its_first_stand() -> None:
    tokens = Tokens(bytewise(), 16)
    assert (tokens("")["ids"].tolist(), tokens.padding) == ([0], 0)


def test_what_a_tokenizer_appends_stays(text_encoder: Callable[..., TextEncoder]) -> None:
    tokens = text_encoder().frontend
    assert isinstance(tokens, Tokens)
    assert "empty" not in tokens.describe()
    assert tokens.empty == tokens("")["ids"].tolist()
    assert len(tokens.empty) == 2


def test_a_decoder_without_a_padding_token(
    text_encoder: Callable[..., TextEncoder], check_padding: Callable[..., None], tmp_path: Path, texts: list[str]
) -> None:
    bytewise(eos_token="<|endoftext|>").save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    given = [*texts[:3], "".join(rng.choice(list("abc de"), 90))]
    encoder = text_encoder(
        "gpt2", {"vocab_size": 260, "initializer_range": 0.2, "pad_token_id": None}, tokenizer=str(tmp_path)
    )
    check_padding(encoder, given)
    assert torch.isfinite(encoder(encoder.collate([encoder.frontend("")])).features).all()


def panicking() -> PreTrainedTokenizerFast:
    """A tokenizer whose template names a special token that it does not define: tokenizers gives up at any text."""
    whole = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "calm": 2}, unk_token="[UNK]"))
    whole.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    definition = json.loads(whole.to_str())
    definition["post_processor"]["special_tokens"] = {}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(definition)), unk_token="[UNK]")


def test_a_tokenizer_that_gives_up_is_blamed() -> None:
    tokenizer = panicking()
    with pytest.raises(InputError, match=r"^encoder\.text\.tokenizer: the tokenizer is damaged: it fails at ''"):
        Tokens(tokenizer, 8)
    sound = Tokens(bytewise(pad_token="[PAD]"), 8)
    sound.tokenizer = tokenizer
    with pytest.raises(InputError, match="it fails at 'calm'"):
        sound("calm")


def test_a_cached_tokenizer_that_gives_up_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "wordpiece.json"
    path.write_text(panicking().backend_tokenizer.to_str(), encoding="utf-8")
    assert not _is_tokenizer(path)
