"""EMO-DB, the Berlin database (Burkhardt et al. 2005): ten actors, ten German sentences, seven emotions."""

import re
from pathlib import Path
from typing import Any

from fourm_ser.data.corpus import Corpus
from fourm_ser.data.release import Release, ReleaseBuilder, Utterance, files_in, find_root
from fourm_ser.errors import InputError

EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
# 03a01Fa: speaker, sentence, emotion, version.
IDENTITY = re.compile(r"([0-9]{2})([a-z][0-9]{2})([A-Z])([a-z])")
OTHER_NAME = "file name that tells no utterance"
NO_SENTENCE = "sentence that EMO-DB does not have"


class EmoDbCorpus(Corpus):
    """EMO-DB as it was released: the names of its recordings say everything.

    Args:
        root: the folder that holds `wav`, that folder itself, or one above.
        **use: the arguments of every `Corpus`.
    """

    name = "emodb"

    def __init__(self, root: str, **use: Any) -> None:
        super().__init__(source=str(root), **use)

    def read(self) -> Release:
        root = find_root(
            "EMO-DB",
            Path(self.source),
            lambda folder: any(IDENTITY.fullmatch(path.stem) for path in files_in(folder, ".wav")),
            "recordings with names such as 03a01Fa.wav, in the folder wav",
        )
        builder = ReleaseBuilder(root)
        for path in builder.by_id(files_in(root, ".wav")).values():
            if IDENTITY.fullmatch(path.stem) is None:
                builder.leave_out(path.stem, OTHER_NAME, path.name)
                continue
            speaker, sentence, emotion = parse_name(path.stem, str(path))
            text = SENTENCES.get(sentence)
            if text is None:
                builder.leave_out(path.stem, NO_SENTENCE, f"{path.name}: {sentence}")
                continue
            builder.utterances.append(
                Utterance(path.stem, str(path), text, emotion, speaker, language="de", where=path.name)
            )
        return builder.release()


def parse_name(stem: str, path: str) -> tuple[str, str, str]:
    """Speaker, code of the sentence and emotion that a recording's name tells.

    Raises:
        InputError: a name of another form, or an emotion's letter that EMO-DB does not have.
    """
    identity = IDENTITY.fullmatch(stem)
    if identity is None:
        raise InputError(f"{path}: expected a name such as 03a01Fa: speaker, sentence, emotion and version.")
    speaker, sentence, letter, _ = identity.groups()
    if letter not in EMOTIONS:
        raise InputError(f"{path}: no emotion of EMO-DB: {letter!r}. Expected {', '.join(EMOTIONS)}.")
    return speaker, sentence, EMOTIONS[letter]
