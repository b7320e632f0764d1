"""Transcripts as encoders should see them."""

import re
import unicodedata

TAG = re.compile(r"\[[^\[\]]*\]|<[^<>]*>")


def clean_transcript(text: str) -> str:
    """A transcript without annotators' tags (`[LAUGHTER]`, `<LAUGHTER>`), in Unicode NFC, with single blanks.

    What is left may be empty: an utterance without words stays an utterance.
    """
    return " ".join(TAG.sub(" ", unicodedata.normalize("NFC", text)).split())
