"""Transcripts as encoders should see them."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from fourm_ser.errors import InputError

CAPITALS, FILLING = "A-ZÀ-ÖØ-Þ", r"0-9 _'/-"
# What transcribers of speech corpora note that is no word: IEMOCAP ([LAUGHTER], [BREATHING], [GARBAGE], [LIPSMACK]),
# Switchboard and Fisher ([laughter], [cough], [sigh], [vocalized-noise], [silence]), TED-LIUM and GigaSpeech (<sil>,
# <unk>, <noise>, <music>), Rev and YouTube captions (<inaudible>, [crosstalk], [applause]).
NOTED = (
    "laugh(?:s|ter|ing)?|breath(?:s|ing)?|cough(?:s|ing)?|sigh(?:s|ing)?|lip[ _-]?smack(?:s|ing)?|garbage|"
    "(?:(?:vocali[sz]ed|spoken|background)[ _-])?noises?|sil(?:ence)?|music|applause|unintelligible|inaudible|"
    "cross[ -]?talk|unk"
)
TAGS = (
    rf"\[(?=[{FILLING}]*[{CAPITALS}][{FILLING}]*[{CAPITALS}])[{CAPITALS}{FILLING}]+\]",
    rf"(?i:\[ ?(?:{NOTED}) ?\]|< ?(?:{NOTED}) ?>)",
)
RULES: dict[str, tuple[str, ...]] = {"tags": TAGS, "none": ()}
BEFORE = (r"\[[^\[\]]*\]|<[^<>]*>",)
"""What was taken out of every transcript before there was a choice: records and models of then name none."""


def tidy(text: str) -> str:
    """A text in Unicode NFC, with single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def told_rule(patterns: Sequence[str]) -> str:
    """Patterns as `data.clean` names them."""
    return next((name for name, own in RULES.items() if own == tuple(patterns)), f"[{','.join(patterns)}]")


class Cleaning:
    """Takes annotators' tags out of transcripts, by patterns.

    Args:
        clean: a rule, `tags` (`[...]` of capitals, and what annotators are known to note in `[...]` or `<...>`) or
            `none`; or regular expressions of what is taken out.

    Attributes:
        patterns: the regular expressions, which say all of it whatever a rule's name will mean later.

    Raises:
        InputError: no rule, or what is no regular expression, or one that matches where nothing stands.
    """

    def __init__(self, clean: str | Sequence[str]) -> None:
        self.patterns = _patterns(clean)
        self._compiled = [re.compile(pattern) for pattern in self.patterns]

    def __call__(self, text: str) -> str:
        """What is left of a transcript, tidied; an utterance without words stays an utterance, with an empty one."""
        return self.apart(text)[0]

    def apart(self, text: str) -> tuple[str, list[str]]:
        """What is left of a transcript, and what was taken out.

        What is left holds nothing more to take out, so that cleaning twice changes nothing.
        """
        taken: list[str] = []
        text, before = tidy(text), ""
        while text != before:
            before = text
            for pattern in self._compiled:
                found = [match[0].strip() for match in pattern.finditer(text)]
                if found:
                    taken += filter(None, found)
                    text = tidy(pattern.sub(" ", text))
        return text, taken


def _patterns(clean: Any) -> tuple[str, ...]:
    if isinstance(clean, str) and clean in RULES:
        return RULES[clean]
    if not isinstance(clean, list | tuple) or not all(isinstance(pattern, str) for pattern in clean):
        raise InputError(
            f"data.clean={clean}: expected {', '.join(RULES)}, or a list of regular expressions in quotes."
        )
    for pattern in clean:
        try:
            is_empty = re.search(pattern, "") is not None
        except re.error as error:
            raise InputError(f"data.clean: {pattern!r} is no regular expression: {error}.") from error
        if is_empty:
            raise InputError(f"data.clean: {pattern!r} matches where nothing stands. Let it match what is taken out.")
    return tuple(clean)
