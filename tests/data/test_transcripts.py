"""Transcripts: what is left of one for an encoder."""

import unicodedata

import pytest

from fourm_ser.data.transcripts import clean_transcript


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("[LAUGHTER] Oh, stop.", "Oh, stop."),
        ("Oh, <LAUGHTER> stop.", "Oh, stop."),
        ("Oh,[BREATHING]stop. [LAUGHTER]", "Oh, stop."),
        ("[one] a [two words] b <three> c", "a b c"),
        ("[a] keep [b]", "keep"),
    ],
)
def test_annotators_tags_are_removed(raw: str, clean: str) -> None:
    assert clean_transcript(raw) == clean


@pytest.mark.parametrize("raw", ["Is 3 < 4?", "a > b", "open [ bracket", "closed ] bracket", "(softly) no", "{no}"])
def test_what_is_no_tag_stays(raw: str) -> None:
    assert clean_transcript(raw) == raw


@pytest.mark.parametrize("raw", ["", "   ", "\n\t", "[LAUGHTER]", " <SIGH> [GARBAGE]\n"])
def test_a_transcript_without_words_is_empty(raw: str) -> None:
    assert clean_transcript(raw) == ""


def test_unicode_is_composed() -> None:
    composed = "Où est le café, naïve Zoë? 각"
    decomposed = unicodedata.normalize("NFD", composed)
    assert decomposed != composed
    assert clean_transcript(decomposed) == composed
    assert clean_transcript(composed) == composed


def test_compatibility_characters_stay() -> None:
    assert clean_transcript("ﬁne ½ …") == "ﬁne ½ …"


def test_blanks_become_single_ones() -> None:
    assert clean_transcript("  Oh\t\tno,\r\n not \u00a0 again \u2003 ") == "Oh no, not again"


@pytest.mark.parametrize("raw", ["[x] A  B\u0301 <y>", "", "e\u0301[x]\u0301", " plain "])
def test_cleaning_twice_changes_nothing(raw: str) -> None:
    once = clean_transcript(raw)
    assert clean_transcript(once) == once
    assert unicodedata.is_normalized("NFC", once)
