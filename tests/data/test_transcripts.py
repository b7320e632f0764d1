"""Transcripts: what is taken out of one, and what is left for an encoder."""

import re
import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from fourm_ser.data.transcripts import BEFORE, RULES, Cleaning, tidy
from fourm_ser.errors import InputError

TAGS = Cleaning("tags")
# Words, signs and brackets of all kinds side by side: what transcripts are made of, right and wrong.
PIECES = st.lists(
    st.sampled_from(
        [
            "we",
            "Oh,",
            "<3",
            "7 > 6",
            "[so]",
            "[LAUGHTER]",
            "<sigh>",
            "[",
            "]",
            "<",
            ">",
            " ",
            "[U",
            "S]",
            "e\u0301",
            "é",
            "I",
        ]
    ),
    max_size=12,
).map("".join)


def test_annotators_tags_are_taken_out_and_told() -> None:
    for raw, clean, taken in (
        ("[LAUGHTER] Oh, stop.", "Oh, stop.", ["[LAUGHTER]"]),
        ("Oh, <LAUGHTER> stop.", "Oh, stop.", ["<LAUGHTER>"]),
        ("Oh,[BREATHING]stop. [LAUGHTER]", "Oh, stop.", ["[BREATHING]", "[LAUGHTER]"]),
        ("[laughs] no [ Cough ] yes <inaudible>", "no yes", ["[laughs]", "[ Cough ]", "<inaudible>"]),
        (
            "a [LIP-SMACK] b [MN] c [TURN 2/B] d [GERÄUSCH]",
            "a b c d",
            ["[LIP-SMACK]", "[MN]", "[TURN 2/B]", "[GERÄUSCH]"],
        ),
        ("a [vocalized-noise] b <unk> c <sil>", "a b c", ["[vocalized-noise]", "<unk>", "<sil>"]),
        ("a [U [LAUGHTER] S] b", "a b", ["[LAUGHTER]", "[U S]"]),  # what is left is a tag, too
    ):
        left, found = TAGS.apart(raw)
        assert (left, sorted(found)) == (clean, sorted(taken))
        assert TAGS(raw) == clean


def test_what_is_no_tag_stays() -> None:
    for raw in (
        *(
            "Is 3 < 4?",
            "a > b",
            "we <3 it, and 7 > 6",
            "[so] they say",
            "[one] a [two words] b <three> c",
            "<LOVE> you",
        ),
        *(
            "open [ bracket",
            "closed ] bracket",
            "(softly) no",
            "{no}",
            "[I] think",
            "[Laughter here]",
            "[laughter-yeah]",
        ),
        *("noise", "the music of silence", "laughter", "[]", "<>", "[42]", "<b>bold</b>", "a[0] <- b[1]"),
    ):
        assert TAGS.apart(raw) == (raw, [])


def test_a_transcript_without_words_is_empty() -> None:
    for raw in ("", "   ", "\n\t", "[LAUGHTER]", " <SIGH> [GARBAGE]\n"):
        assert TAGS(raw) == ""


@settings(max_examples=60)
@given(PIECES | st.text(max_size=30))
def test_every_word_outside_of_what_was_taken_stays_and_cleaning_twice_changes_nothing(raw: str) -> None:
    left, taken = TAGS.apart(raw)
    assert re.sub(r"\s", "", "".join(sorted(left + "".join(taken)))) == re.sub(r"\s", "", "".join(sorted(tidy(raw))))
    assert TAGS.apart(left) == (left, [])
    assert unicodedata.is_normalized("NFC", left)
    assert left == " ".join(left.split())
    if "[" not in raw and "<" not in raw:
        assert left == tidy(raw)


@given(st.text(max_size=30))
def test_without_a_rule_nothing_is_taken_out(raw: str) -> None:
    assert Cleaning("none").apart(raw) == (tidy(raw), [])


@given(st.sampled_from([r"\b", r"(?=b)", r"x*y", r"(a)(b)\2?", r"\{[^{}]*\}"]), st.text("ab {}xy", max_size=12))
def test_any_pattern_comes_to_an_end(pattern: str, raw: str) -> None:
    cleaning = Cleaning([pattern])
    assert cleaning.apart(cleaning(raw))[0] == cleaning(raw)


def test_patterns_of_one_s_own_take_out_what_they_match_and_no_more() -> None:
    cleaning = Cleaning([r"\([^()]*\)", r"%\w+"])
    assert cleaning.apart("(door) [LAUGHTER] no %uh way (she [SIGH]s)") == (
        "[LAUGHTER] no way",
        ["(door)", "(she [SIGH]s)", "%uh"],
    )
    assert Cleaning(list(TAGS.patterns)).patterns == TAGS.patterns  # a record holds patterns, not a rule's name


def test_the_rule_of_before_takes_out_whatever_stands_in_brackets() -> None:
    assert Cleaning(BEFORE)("we <3 it, and 7 > 6 [so] they say [LAUGHTER]") == "we 6 they say"


def test_what_is_no_rule_is_refused() -> None:
    def refusal(clean: object) -> str:
        with pytest.raises(InputError) as caught:
            Cleaning(clean)  # type: ignore[arg-type]
        return str(caught.value)

    for clean, named in (
        ("tag", "data.clean=tag: expected tags, none"),
        (None, "data.clean=None"),
        (3, "data.clean=3"),
        ([1], r"data.clean=[1]"),
        (["[A-Z"], "'[A-Z' is no regular expression"),
        (["a*"], "'a*' matches where nothing stands"),
        ([""], "matches where nothing stands"),
    ):
        assert named in refusal(clean)
        assert "\n" not in refusal(clean)


def test_unicode_is_composed() -> None:
    composed = "Où est le café, naïve Zoë? 각"
    decomposed = unicodedata.normalize("NFD", composed)
    assert decomposed != composed
    assert TAGS(decomposed) == composed
    assert TAGS(composed) == composed


def test_compatibility_characters_stay() -> None:
    assert TAGS("ﬁne ½ …") == "ﬁne ½ …"


def test_blanks_become_single_ones() -> None:
    assert TAGS("  Oh\t\tno,\r\n not \u00a0 again \u2003 ") == "Oh no, not again"


def as_4m_ser(line: str) -> str:
    """What 4M-SER's code makes of the part of a line behind its first colon."""
    text = re.sub(r"[\(\[].*?[\)\]]", "", line.split(":")[0].strip())
    return " ".join(text.split()) or "NULL"


@given(st.text("ab .:()[]", max_size=20))
@example("Oh [LAUGHTER] it's (sighs) ten[BREATHING]fold: at 5:30 [X]")
@example("[LAUGHTER]")
@example("((a) b] c")
def test_transcripts_are_cleaned_as_the_originals_clean_them(line: str) -> None:
    assert Cleaning("4m_ser", "NULL")(line) == as_4m_ser(line)
    assert Cleaning("server")(line) == " ".join(line.split(":")[0].split())


@pytest.mark.parametrize("rule", [*RULES, [r"\[.*?\]"]])
def test_a_transcript_without_words_may_become_a_word(rule: str | list[str]) -> None:
    cleaning = Cleaning(rule, "NULL")
    assert cleaning("") == cleaning(" \n") == "NULL"
    assert cleaning("word") == "word"
    assert cleaning(cleaning("")) == "NULL"
    assert Cleaning(rule)("") == ""
    with pytest.raises(InputError, match=r"data\.empty_text=' ': expected a word"):
        Cleaning(rule, " ")


def test_a_pattern_says_whether_a_blank_takes_its_place() -> None:
    assert Cleaning([r"\[.*?\]"])("ten[NOISE]fold") == "ten fold"
    assert Cleaning([r"(?P<joined>\[.*?\])"])("ten[NOISE]fold") == "tenfold"
