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
JOINED = "joined"
"""The group by which a pattern says that nothing stands in the place of what it takes out, not even a blank."""
# As the originals read IEMOCAP: a line is cut at its colons, and the part behind the first one is the transcript, so
# that one with a colon ends there. 4M-SER and MemoCMT then take out from any bracket, ( or [, to the next that closes.
FROM_COLON = r"(?s):.*"
BRACKETED = rf"(?P<{JOINED}>[(\[].*?[)\]])"
RULES: dict[str, tuple[str, ...]] = {
    "tags": TAGS,
    "none": (),
    "server": (FROM_COLON,),
    "4m_ser": (FROM_COLON, BRACKETED),
}
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
        clean: a rule, `tags` (`[...]` of capitals, and what annotators are known to note in `[...]` or `<...>`),
            `none`, `server` (what stands from a colon on, as SERVER and 3M-SER read IEMOCAP) or `4m_ser` (that, and
            `[...]` and `(...)`, as 4M-SER and MemoCMT do); or regular expressions of what is taken out. A blank takes
            its place, nothing where the expression has a group called `joined`.
        empty: what a transcript without words becomes; None leaves it empty.

    Attributes:
        patterns: the regular expressions, which say all of it whatever a rule's name will mean later.

    Raises:
        InputError: no rule, or what is no regular expression, or one that matches where nothing stands.
    """

    def __init__(self, clean: str | Sequence[str], empty: str | None = None) -> None:
        self.patterns, self.empty = _patterns(clean), empty
        if empty is not None and not tidy(empty):
            raise InputError(f"data.empty_text={empty!r}: expected a word, or null to leave an empty transcript empty.")
        self._compiled = [re.compile(pattern) for pattern in self.patterns]

    def __call__(self, text: str) -> str:
        """What is left of a transcript, tidied; an utterance without words stays one, with an empty one or `empty`."""
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
                    text = tidy(pattern.sub("" if JOINED in pattern.groupindex else " ", text))
        return text or self.empty or "", taken


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
