"""The analyses by their names, each with the question that it answers."""

from collections.abc import Sequence

from fourm_ser.errors import InputError

QUESTIONS = {
    "alignment": "How near are speech and text in the fusion?",
    "projection": "Where do the utterances lie in the embedding?",
    "correlation": "Do speech and text features correlate, and did training change that?",
    "space": "Does the embedding group by emotion, or by speaker?",
    "contribution": "What does each modality contribute?",
    "attention": "Where does the fusion look?",
    "attribution": "Which words and moments speak for the emotion?",
    "gradcam": "What does the audio encoder's last convolution answer to?",
}


def refuse_unknown(parts: Sequence[str]) -> None:
    """Refuse parts that are no analyses, and none at all."""
    unknown = [part for part in parts if part not in QUESTIONS]
    if unknown or not parts:
        raise InputError(f"parts=[{', '.join(unknown)}]: expected any of {', '.join(QUESTIONS)}.")
