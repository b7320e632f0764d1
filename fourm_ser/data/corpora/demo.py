"""The demo corpus: invented speech, synthesised with espeak-ng in the shape of IEMOCAP.

It follows the circumplex model of affect (Russell 1980): the voice tells arousal (anger and happiness are high, sadness
and neutral low) and the words tell valence (anger and sadness are negative). Neither modality alone can tell more than
two of the four emotions apart; both together can.
"""

import ctypes
import logging
import re
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import soundfile
import soxr
from rich.console import Console
from rich.progress import track

from fourm_ser import SAMPLE_RATE
from fourm_ser.checks import check_number
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.manifest import read_manifest, write_manifest
from fourm_ser.data.release import Release
from fourm_ser.errors import InputError
from fourm_ser.files import made_once, whole

log = logging.getLogger(__name__)

VERSION = 1
"""Part of the cache key: raised whenever the same arguments would give other bytes."""

LEAST = 40  # utterances: ten speakers in four emotions each
MOST = 10_000  # utterances: as many as IEMOCAP has

# Emotion -> (aroused, negative).
AFFECT = {"anger": (True, True), "happiness": (True, False), "sadness": (False, True), "neutral": (False, False)}

# Variants with breath are left out: their noise differs from run to run.
VOICES = {
    "Ses01F": "f1",
    "Ses01M": "m1",
    "Ses02F": "f4",
    "Ses02M": "m3",
    "Ses03F": "linda",
    "Ses03M": "m6",
    "Ses04F": "shelby",
    "Ses04M": "m7",
    "Ses05F": "steph",
    "Ses05M": "m4",
}

# Cue -> (middle, half the distance between low and high arousal, deviation between speakers, and within a speaker).
# The level is in dB, the rate in words per minute, pitch and range on espeak's scale from 0 to 99.
CUES = {
    "level": (-9.5, 5.5, 0.8, 2.2),
    "rate": (172.0, 20.0, 6.0, 13.0),
    "pitch": (48.0, 14.0, 3.0, 9.0),
    "range": (50.0, 24.0, 4.0, 15.0),
}
# Draws beyond these would clip, or are none of espeak's.
LIMITS = {"level": (-24.0, 0.0), "rate": (125.0, 240.0), "pitch": (5.0, 95.0), "range": (5.0, 95.0)}

# The part of the labels that is exchanged with another emotion's, the part of the sentences with a mild word only, how
# often that mild word sides with the sentence's valence, and the most words in a sentence.
NOISE = 0.01
MILD = 0.05
MILD_RIGHT = 0.85
LONGEST = 16

# Word lists; where valence is told, (not negative, negative), alike in length and in parts of speech.
TOLD = {
    "adj": (
        "lovely|wonderful|great|delightful|pleasant|excellent|fantastic|brilliant|beautiful|perfect|charming|good|nice",
        "awful|terrible|bad|disappointing|nasty|dreadful|disastrous|horrible|miserable|depressing|painful|sad|grim",
    ),
    "mild": ("fine|all right|decent|okay|short|quiet", "odd|a bit dull|slow|long|strange|tiring"),
    "state": (
        "glad|pleased|happy|proud|hopeful|grateful|delighted|thankful|optimistic|satisfied|cheerful",
        "hurt|upset|unhappy|ashamed|worried|bitter|disappointed|troubled|pessimistic|miserable|gloomy",
    ),
    "deed": (
        "kept every promise|thanked me for the work|remembered my birthday|praised my report|helped me with the boxes|"
        "came to welcome me|supported my plan|cheered me up|made me laugh|was kind to me|gave me a nice present|"
        "shared the good news with me|was generous with the money|admired my cooking",
        "broke every promise|blamed me for the work|forgot my birthday|criticised my report|left me with the boxes|"
        "came to threaten me|rejected my plan|let me down|made me cry|was cruel to me|gave me a nasty look|"
        "kept the bad news from me|was selfish with the money|insulted my cooking",
    ),
    "event": (
        "I passed the driving test|I found my wallet|we won the match|the bank approved our loan|"
        "they saved the project|they offered me the job|my best friend came back|the doctor had good news|"
        "my essay won a prize|we solved the problem with the heating|I enjoyed the whole visit",
        "I failed the driving test|I lost my wallet|we lost the match|the bank refused our loan|"
        "they ruined the project|they denied me the job|my best friend moved away|the doctor had bad news|"
        "my essay got a bad mark|we had more trouble with the heating|I hated the whole visit",
    ),
    "course": (
        "is going well|has improved a lot|is getting better|goes well at last|has turned out well|is a success",
        "is going wrong|has suffered a lot|is getting worse|goes wrong every day|has turned out badly|is a failure",
    ),
}
PLAIN = {
    "thing": "the meeting|the party|the train ride|the dinner|the phone call|the weekend|the exam|the new flat|"
    "the wedding|the interview|the film|the lesson|the concert|lunch|work|the hotel|the food|the weather|"
    "the whole evening|the show|the service|the journey home",
    "outing": "the meeting|the dinner|the phone call|the weekend|the trip to the coast|the walk by the river|lunch|"
    "the visit to the museum|the holiday|the evening|the conversation",
    "person": "my sister|my brother|my boss|the neighbour|my landlord|our teacher|my oldest friend|my cousin|"
    "my flatmate|my aunt|the manager|my colleague|my uncle|the man next door|her mother|the woman from the office",
    "topic": "the new job|the results|the move|the letter from school|the marks|the plan for the summer|the holiday|"
    "the house|the news from home|the decision|that conversation|the changes at work|the wedding",
    "affair": "the project|life at home|the course|everything at work|the business|the new team|the training|"
    "the work on the kitchen|everything at school|the treatment",
    "opening": "Well,|You know,|Honestly,|I have to say that|To tell you the truth,|Between you and me,|"
    "I told Anna that|As you may have heard,|Like I said before,|I can only say that|The thing is that|"
    "As I wrote to you,",
    "past": "yesterday|last night|on Monday|this morning|last week|this afternoon|on Friday evening|two days ago|"
    "at the weekend|earlier today|on my day off",
    "ending": "if you ask me|as far as I can tell|as I told you on the phone|as everybody could see|"
    "in case you wondered|and I wanted you to know|and we talked about it on the way home",
}
CORES = (
    "{thing} was {adj}",
    "{thing} was {adj} {past}",
    "{outing} with {person} was {adj}",
    "it was a {adj} day for {person}",
    "{person} {deed}",
    "{person} {deed} {past}",
    "{event}",
    "{event} {past}",
    "I feel {state} about {topic}",
    "{person} is {state} about {topic}",
    "{thing} made me {state}",
    "{affair} {course}",
    "{affair} {course}, so I feel {state}",
    "{thing} was {adj} and {person} {deed}",
    "{person} {deed}, so I feel {state}",
)
MILD_CORES = ("{outing} was {mild}", "{outing} was {mild} {past}", "{outing} with {person} was {mild}")


class _Utterance(NamedTuple):
    speaker: str
    emotion: str
    aroused: bool
    negative: bool
    text: str


class DemoCorpus(Corpus):
    """The demo corpus, made once into the cache.

    Args:
        utterances: the number of utterances, from 40 to 10,000.
        corpus_seed: the corpus's seed, apart from the run's.
        **use: the arguments of every `Corpus`.
    """

    name = "demo"

    def __init__(self, utterances: int, corpus_seed: int, **use: Any) -> None:
        _check_count(utterances)
        check_number("data.corpus_seed", corpus_seed, "a whole number from 0", whole=True)
        super().__init__(source=f"demo-{VERSION}-{utterances}-{corpus_seed}", **use)
        self.utterances, self.corpus_seed = utterances, corpus_seed

    def read(self) -> Release:
        folder = self.cache / "corpora" / self.source
        lock = folder.with_name(f"{self.source}.lock")
        with nullcontext() if folder.is_dir() else made_once(lock, "the demo corpus"):
            if not folder.is_dir():
                for unfinished in folder.parent.glob(f".{self.source}.*"):  # what a kill left
                    shutil.rmtree(unfinished)
                log.info("demo corpus: synthesising %d utterances into %s", self.utterances, folder)
                with whole(folder) as temporary:
                    synthesise(temporary, self.utterances, self.corpus_seed)
        frame = read_manifest(folder / "manifest.csv")
        frame["where"] = [f"row {row}" for row in frame.pop("row")]
        return Release(frame, [], folder.resolve(), folder / "manifest.csv")


def synthesise(folder: Path, utterances: int = 1600, seed: int = 0) -> None:
    """Write `folder/manifest.csv` and `folder/wav/<id>.wav` (16 kHz, mono, 16 bit).

    Ten speakers and four emotions share the utterances evenly. The same arguments give the same bytes. The manifest is
    written last, so that a folder with one is complete.

    Raises:
        InputError: `utterances` is out of bounds, or espeak-ng, its data or one of its voices is not available.
    """
    script = _script(utterances, seed)
    # A stream of its own: a change to the sentences leaves the voices as they are.
    rng = np.random.default_rng([seed, 1])
    habits = {speaker: {cue: rng.normal(0, CUES[cue][2]) for cue in CUES} for speaker in VOICES}
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".espeak-", ignore_cleanup_errors=True) as scratch:
        espeak = _Espeak(Path(scratch))
        counts, shown = dict.fromkeys(VOICES, 0), Console(stderr=True)
        seen = track(script, "synthesising", console=shown, transient=True, disable=not shown.is_terminal)
        for speaker, emotion, aroused, _, text in seen:
            cues = {}
            for cue, (middle, half, _, within) in CUES.items():
                value = middle + (half if aroused else -half) + habits[speaker][cue] + rng.normal(0, within)
                cues[cue] = float(np.clip(value, *LIMITS[cue]))
            samples = espeak.say(VOICES[speaker], text, round(cues["rate"]), round(cues["pitch"]), round(cues["range"]))
            audio = soxr.resample(samples * np.float32(10 ** (cues["level"] / 20)), espeak.rate, SAMPLE_RATE)
            counts[speaker] += 1
            name = f"{speaker}_{counts[speaker]:04d}"
            soundfile.write(folder / "wav" / f"{name}.wav", audio, SAMPLE_RATE, subtype="PCM_16")
            seconds = len(audio) / SAMPLE_RATE
            rows.append((name, f"wav/{name}.wav", text, emotion, speaker, speaker[:5], "en", seconds))
        espeak.close()
    columns = ["id", "audio", "text", "emotion", "speaker", "session", "language", "duration"]
    write_manifest(pd.DataFrame(rows, columns=columns), folder / "manifest.csv")


def _check_count(utterances: int) -> None:
    expected = f"{LEAST} (ten speakers in four emotions each) to {MOST}"
    check_number("data.utterances", utterances, expected, least=LEAST, most=MOST, whole=True)


def _script(utterances: int, seed: int) -> list[_Utterance]:
    """Who says what: labels balanced in every speaker, and no sentence twice."""
    _check_count(utterances)
    rng = np.random.default_rng([seed, 0])
    spoken: set[str] = set()
    script = []
    for index, speaker in enumerate(VOICES):
        count = utterances // len(VOICES) + (index < utterances % len(VOICES))
        # The remainder starts at another emotion for each speaker, so that the whole corpus is balanced too.
        played = rng.permutation([list(AFFECT)[(index + number) % len(AFFECT)] for number in range(count)]).tolist()
        labels = list(played)
        # Labels are exchanged rather than replaced: the noise leaves the balance as it is.
        for _ in range(int(count * NOISE / 2 + rng.random())):
            one = rng.integers(count)
            other = rng.choice([index for index in range(count) if labels[index] != labels[one]])
            labels[one], labels[other] = labels[other], labels[one]
        for emotion, label in zip(played, labels, strict=True):
            aroused, negative = AFFECT[emotion]
            text = _sentence(negative, rng)
            while text in spoken:
                text = _sentence(negative, rng)
            spoken.add(text)
            script.append(_Utterance(speaker, label, aroused, negative, text))
    return script


def _sentence(negative: bool, rng: np.random.Generator) -> str:
    mild = rng.random() < MILD
    side = negative == (not mild or rng.random() < MILD_RIGHT)

    def pick(slot: re.Match[str]) -> str:
        words = PLAIN[slot[1]] if slot[1] in PLAIN else TOLD[slot[1]][side]
        return str(rng.choice(words.split("|")))

    text = ""
    while not text or len(text.split()) > LONGEST:
        opening = "{opening} " if rng.random() < 0.35 else ""
        ending = ", {ending}" if rng.random() < 0.35 else ""
        text = re.sub(r"{(\w+)}", pick, opening + rng.choice(MILD_CORES if mild else CORES) + ending)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return text[0].upper() + text[1:] + "."


class _Espeak:
    """espeak-ng in a state of its own, so that what it says depends on nothing said before in the process.

    Its global state (the phase of the pitch flutter, for one) outlives re-initialisation. A copy of the library in a
    folder of its own is loaded afresh, with fresh state.
    """

    def __init__(self, scratch: Path) -> None:
        import espeakng_loader

        try:
            data = espeakng_loader.get_data_path()
            self._library = ctypes.CDLL(str(shutil.copy(espeakng_loader.get_library_path(), scratch)))
        except (OSError, RuntimeError) as error:
            raise InputError(f"espeak-ng cannot be loaded: {error}. Install espeakng-loader again.") from error
        library = self._library
        integer, text, pointer = ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
        callback = ctypes.CFUNCTYPE(integer, pointer, integer, pointer)
        library.espeak_Initialize.argtypes = [integer, integer, text, integer]
        library.espeak_SetSynthCallback.argtypes = [callback]
        library.espeak_SetSynthCallback.restype = None
        library.espeak_SetVoiceByName.argtypes = [text]
        library.espeak_SetParameter.argtypes = [integer, integer, integer]
        size, unsigned = ctypes.c_size_t, ctypes.c_uint
        library.espeak_Synth.argtypes = [text, size, unsigned, integer, unsigned, unsigned, pointer, pointer]
        # 2: synchronous, to the callback. 0x8000: an error returns instead of ending the process.
        self.rate: int = library.espeak_Initialize(2, 0, data.encode(), 0x8000)
        if self.rate <= 0:
            raise InputError(f"espeak-ng finds no data in {data}. Install espeakng-loader again.")
        self._variants = Path(data, "voices", "!v")
        self._parts: list[bytes] = []
        # espeak keeps no reference to the callback; without one here it would be collected.
        self._callback = callback(self._receive)
        library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: int | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            self._parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, variant: str, text: str, rate: int, pitch: int, spread: int) -> np.ndarray:
        """Speak `text`; float32 samples in -1 to 1 at `self.rate` Hz."""
        library = self._library
        # espeak takes its default voice for a variant that it does not find, and says nothing.
        known = (self._variants / variant).is_file()
        if not known or library.espeak_SetVoiceByName(f"en-us+{variant}".encode()) != 0:
            raise InputError(f"espeak-ng has no voice en-us+{variant}. Install espeakng-loader again.")
        self._parts.clear()
        # 1 rate, 2 volume (short of the loudest variant's clipping), 3 pitch, 4 pitch range.
        statuses = [library.espeak_SetParameter(*pair, 0) for pair in ((1, rate), (2, 80), (3, pitch), (4, spread))]
        encoded = text.encode()
        statuses += [library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, 1, None, None)]
        statuses += [library.espeak_Synchronize()]
        samples = np.frombuffer(b"".join(self._parts), dtype=np.int16)
        if any(statuses) or not len(samples):
            raise RuntimeError(f"espeak-ng could not say {text!r} as en-us+{variant}: statuses {statuses}")
        return samples.astype(np.float32) / 32768

    def close(self) -> None:
        self._library.espeak_Terminate()
