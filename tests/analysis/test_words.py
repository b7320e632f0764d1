"""From tokens back to words."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fourm_ser.analysis.word_cells import count_lines, draw_words, prepare_axes, word_positions
from fourm_ser.analysis.words import read_words
from fourm_ser.encoders.tokens import Tokens
from tests.drawn import Drawn, distance

TEXT = "Well, I can't say:  the results were disappointing"


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: pieces of words, punctuation by itself."""
    words = ["well", "i", "can", "t", "say", "the", "results", "were", "dis", "##appoint", "##ing", "我", "很"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ",", "'", ":", *words]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


def byte_level(trim: bool) -> PreTrainedTokenizerFast:
    """As RoBERTa's: a piece holds the space before its word; offsets may hold it, too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<s>", "<pad>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=trim)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", cls_token="<s>", sep_token="</s>")


@pytest.mark.parametrize("tokenizer", [wordpiece(), byte_level(True), byte_level(False)])
def test_pieces_and_punctuation_belong_to_their_word(tokenizer: PreTrainedTokenizerFast) -> None:
    text = TEXT.replace("Well", "well").replace("I", "i")
    words = read_words(Tokens(tokenizer, 128), text)
    assert words.names[1:-1] == text.split()
    assert words.special.tolist() == [True, *[False] * len(text.split()), True]
    ids = Tokens(tokenizer, 128)(text)["ids"]
    assert len(words.indices) == len(ids)
    # Decoding a word's own pieces gives the word, but for spaces.
    for number, name in enumerate(words.names[1:-1], start=1):
        decoded = tokenizer.decode(ids[words.indices == number])
        assert isinstance(decoded, str)
        assert decoded.replace(" ", "").replace("##", "") == name


def test_values_of_pieces_are_summed_or_averaged_by_word() -> None:
    words = read_words(Tokens(wordpiece(), 128), "the disappointing results")
    values = np.array([[1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0]])
    assert words.sum(values, axis=1).tolist() == [[1.0, 2.0, 13.0, 7.0, 8.0]]
    assert words.mean(values, axis=1)[0] == pytest.approx([1.0, 2.0, 13 / 3, 7.0, 8.0])


def test_what_the_tokenizer_cut_off_is_no_word() -> None:
    words = read_words(Tokens(wordpiece(), 4), "the results were disappointing")
    assert words.names == ["[CLS]", "the", "results", "[SEP]"]


def test_an_empty_transcript_has_special_tokens_alone() -> None:
    assert read_words(Tokens(wordpiece(), 128), "").names == ["[CLS]", "[SEP]"]


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert read_words(Tokens(wordpiece(), 128), "我很 well,").names[1:-1] == ["我", "很", "well,"]


def test_cells_hold_every_word_once_within_the_line() -> None:
    names = [f"word{number}" for number in range(40)]
    places = word_positions(names, 60)
    assert count_lines(names, 60) == places[-1][0] + 1 > 1
    assert all(column + len(name) <= 60 for name, (_, column) in zip(names, places, strict=True))
    axes = Figure().subplots()
    prepare_axes(axes, count_lines(names))
    draw_words(axes, names, [0.0, 1.0] * 20, lambda value: to_rgba("white" if value > 0.5 else "black"))
    cells = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [text.get_text() for text in axes.texts] == names
    assert [text.get_color() for text in axes.texts] == ["white", "black"] * 20
    boxes = [(cell.get_x(), cell.get_y(), cell.get_x() + cell.get_width(), cell.get_y()) for cell in cells]
    for before, after in pairwise(boxes):
        assert after[1] > before[1] or after[0] > before[2]  # below, or behind


def test_words_are_read_from_left_to_right_and_lines_from_the_top() -> None:
    names = [f"word{number}" for number in range(40)]
    figure = Figure(figsize=(9.5, 1.5))
    axes = figure.subplots()
    prepare_axes(axes, count_lines(names))
    draw_words(axes, names, list(range(40)), lambda value: (value / 40, 0.0, 0.0, 1.0))
    drawn = Drawn(figure)
    places = np.array([text.get_transform().transform(text.get_position()) for text in axes.texts])
    lines = [line for line, _ in word_positions(names)]
    for number, (before, after) in enumerate(pairwise(places)):
        if lines[number] == lines[number + 1]:
            assert after[0] > before[0]
            assert after[1] == pytest.approx(before[1])
        else:
            assert after[1] < before[1]
    cells = [patch.get_window_extent() for patch in axes.patches]
    for number, (text, place) in enumerate(zip(axes.texts, places, strict=True)):
        assert text.get_text() == names[number]
        (box,) = [box for box in cells if box.contains(*place)]
        assert distance(drawn.colour(box.x0 + 3, box.y0 + 3), np.array([number / 40, 0.0, 0.0])) < 0.02
