"""Releases of corpora as they lie on disk, made up, beside what a reader should find in them.

All take `seconds` (the length of each recording), `seed` (of words, order and sound), `quirks` (with what makes true
releases hard to read: litter of macOS, other folders, other encodings) and `shared` (hard-link the recordings of an
emotion, so that a whole release takes seconds). All make `root`, the release's folder.
"""

import csv
import io
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from itertools import count, islice, product
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile

# IEMOCAP's label -> (emotion, how many in the whole release).
IEMOCAP = {
    "sad": ("sadness", 1084),
    "neu": ("neutral", 1708),
    "dis": ("disgust", 2),
    "oth": ("other", 3),
    "fea": ("fear", 40),
    "fru": ("frustration", 1849),
    "sur": ("surprise", 107),
    "hap": ("happiness", 595),
    "exc": ("excitement", 1041),
    "ang": ("anger", 1103),
    "xxx": ("", 2507),
}
IEMOCAP_LABELS = {label: many for label, (_, many) in IEMOCAP.items()}
"""The whole release's labels, 10,039."""
IEMOCAP_FEW = {label: 16 if label in ("ang", "hap", "exc", "sad", "neu") else 3 for label in IEMOCAP}
IEMOCAP_DIALOGS = (
    *("impro01", "script01_1", "impro02", "script01_1b", "impro03", "script01_2", "impro04", "script01_3"),
    *("impro05", "script02_1", "impro06", "script02_2", "impro07", "script03_1", "script03_2"),
)

# Folder -> (emotion, its word in some speakers' files), in the order of the ids.
ESD_EMOTIONS = {
    "Neutral": ("neutral", "中立"),
    "Angry": ("anger", "生气"),
    "Happy": ("happiness", "快乐"),
    "Sad": ("sadness", "伤心"),
    "Surprise": ("surprise", "惊喜"),
}
ESD_SPEAKERS = tuple(f"{number:04}" for number in range(1, 21))
ESD_FEW = ("0001", "0002", "0011", "0012", "0013", "0014")
# Split -> (folder, first, how many) of each block of 350 sentences.
ESD_SPLITS = {"val": ("evaluation", 1, 20), "test": ("test", 21, 30), "train": ("train", 51, 300)}
# With quirks, (encoding, line end) of the first speakers' files. The second's emotions are in Chinese, the fifth's in
# lower case.
ESD_FILES = [("utf-16", "\n"), ("gb18030", "\n"), ("utf-8-sig", "  \r\n"), ("utf-8", "\n \n\n"), ("utf-8", "\n")]

MELD_COUNTS = (9989, 1109, 2610)
"""Rows of the whole release's train, dev and test."""
MELD_EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
MELD_COLUMNS = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
MELD_SPEAKERS = [*("Ross", "Monica", "Rachel", "Chandler", "Joey", "Phoebe") * 4, "Mrs. Green", "Paul", "All", "Guy #1"]
# Split -> (name of the table and of the outer folder, folder, the clip that cannot be read).
MELD_SPLITS: dict[str, tuple[str, str, tuple[int, int] | None]] = {
    "train": ("train", "train_splits", (125, 3)),
    "val": ("dev", "dev_splits_complete", (110, 7)),
    "test": ("test", "output_repeated_splits_test", None),
}
# Texts as some tables have them -> as they are meant. Windows-1252 was read as Latin-1 before it became UTF-8.
MELD_TEXTS = {
    "It\x92s mine, isn\x92t it?": "It\u2019s mine, isn\u2019t it?",
    'Oh, "great",\nthank you, Ross.': 'Oh, "great",\nthank you, Ross.',
    " He said \x93no\x94\x85 ": "He said \u201cno\u201d\u2026",
    "That\u2019s it.": "That\u2019s it.",
    "None": "None",
}

EMODB_EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
EMODB_SPEAKERS = ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")
EMODB_TEXTS = {
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

EMOTIONS = ["boredom", *(emotion for emotion, _ in IEMOCAP.values())]
"""All words that readers return, in the order of pitch and level; the last, empty, stands for no agreement."""

# Parts of sentences; every choice of one from each line makes one.
PARTS = {
    "en": (
        "I|We|You|They|My sister|The neighbour|Our teacher|That man",
        " left| found| wanted| sold| washed| forgot| carried| painted",
        " the boat| a letter| the old car| two chairs| the keys| a red coat| the piano| some eggs",
        ".| today.| at home.| again, I think.",
    ),
    "zh": (
        "我|他们|我们|老师|我的妹妹|那个人|邻居|孩子",
        "昨天|今天|早上|晚上|常常|又",
        "找到了|忘记了|卖了|洗了|拿走了|喜欢",
        "一封信。|那辆车。|两把椅子。|红色的大衣。|钢琴。|几个鸡蛋。",
    ),
}


class Told(NamedTuple):
    """What a reader should find of an utterance; empty where the corpus does not tell.

    `audio` is a POSIX path relative to the release's root; `text` has the annotators' tags and no blanks around it.
    """

    id: str
    audio: str
    text: str
    emotion: str
    speaker: str
    session: str
    split: str
    language: str


class _Recorder:
    """Writes recordings: a tone whose pitch and level depend on the emotion, in noise of its own.

    Args:
        seconds: how long each is.
        seed: of pitch and noise.
        shared: hard-link all recordings of an emotion, so that whole releases take seconds.
    """

    def __init__(self, seconds: float, seed: int, shared: bool) -> None:
        self.seconds, self.shared = seconds, shared
        self.rng = np.random.default_rng(seed)
        self.first: dict[tuple[str, str], str] = {}

    def write(self, path: str, emotion: str) -> None:
        """Write to `path`, whose folder exists: 16 kHz mono PCM_16 (.wav), or a film with 44.1 kHz mono AAC (.mp4)."""
        kind = emotion, path[-4:]
        if self.shared and kind in self.first:
            try:
                os.link(self.first[kind], path)
            except OSError:
                shutil.copyfile(self.first[kind], path)
            return
        self.first[kind] = path
        rate, place = 44_100 if kind[1] == ".mp4" else 16_000, EMOTIONS.index(emotion)
        pitch, time = 110 + 12 * place + self.rng.normal(0, 8), np.arange(round(self.seconds * rate)) / rate
        tone = (0.05 + 0.02 * place) * np.sin(2 * np.pi * pitch * time)
        samples = (tone + self.rng.normal(0, 0.02, len(time))).astype(np.float32)
        if kind[1] == ".mp4":
            _film(path, samples, rate)
        else:
            soundfile.write(path, samples, rate, subtype="PCM_16")


def iemocap(
    root: Path,
    labels: Mapping[str, int] | None = None,
    sessions: int = 5,
    *,
    seconds: float = 0.3,
    seed: int = 0,
    quirks: bool = False,
    shared: bool = False,
) -> list[Told]:
    """Write `IEMOCAP_full_release`; its utterances but for those without an agreed emotion (`xxx`).

    Args:
        labels: how many of each of IEMOCAP's own labels, `IEMOCAP_FEW` by default. Sessions and speakers share them
            evenly: each speaker has every label that occurs as often as there are speakers.
        sessions: how many, of two speakers each.
    """
    draw, record = random.Random(seed), _Recorder(seconds, seed, shared)
    sentences = _sentences("en", draw)
    turns: list[list[tuple[str, str]]] = [[] for _ in range(sessions)]
    spread = [label for label, many in (IEMOCAP_FEW if labels is None else labels).items() for _ in range(many)]
    for place, label in enumerate(spread):
        turns[place // 2 % sessions].append(("FM"[place % 2], label))
    told: list[Told] = []
    for session, spoken in enumerate(turns, 1):
        draw.shuffle(spoken)
        dialogs = [f"Ses{session:02}{wearer}_{dialog}" for dialog in IEMOCAP_DIALOGS for wearer in "FM"]
        dialogs = dialogs[: max(1, len(spoken) // 5)]
        for number, dialog in enumerate(dialogs):
            folder = f"Session{session}/sentences/wav/{dialog}"
            os.makedirs(root / folder)
            lines, blocks, clock, uttered = [], [], 6.2901, {"F": 0, "M": 0}
            for letter, label in spoken[number :: len(dialogs)]:
                key = f"{dialog}_{letter}{uttered[letter]:03}"
                audio = f"{folder}/{key}.wav"
                uttered[letter] += 1
                text, emotion = draw.choice(sentences), IEMOCAP[label][0]
                if label != "xxx":
                    text = _tagged(text, len(told)) if quirks else text
                    told.append(Told(key, audio, text, emotion, key[:5] + letter, key[:5], "", "en"))
                record.write(os.path.join(root, audio), emotion)
                lines.append(f"{key} [{clock:08.4f}-{clock + seconds:08.4f}]: {text}\n")
                blocks.append(
                    f"[{clock:.4f} - {clock + seconds:.4f}]\t{key}\t{label}\t[2.5000, 3.0000, 3.6667]\n"
                    f"C-E2:\t{emotion.capitalize() or 'Other'};\t()\nC-E3:\tNeutral;\t()\n"
                    f"C-E4:\tSadness; Anger;\t(hurt [a bit])\nC-{letter}1:\tAnger;\t(frustrated)\n"
                    f"A-E3:\tval 3; act 2; dom  2;\t()\nA-{letter}1:\tval 2; act 4; dom  {draw.randint(1, 5)};\t()\n\n"
                )
                clock += seconds + draw.random()
            if quirks:
                lines[1:1] = ["M: sorry\n", f"{dialog}_MXX0 [006.3000-006.4000]: Hm.\n"]
                lines.append(f"{dialog}_FXX0 [{clock:08.4f}-{clock + 1:08.4f}]: [GARBAGE]\n")
            transcript = "".join(lines)
            # Unlike the transcripts, the evaluations are in the order of the speakers.
            blocks.sort(key=lambda block: block.split("\t")[1])
            labelled = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n" + "".join(blocks)
            if quirks and session == 1:
                transcript = transcript.replace("\n", "\r\n") if number == 1 else transcript
                labelled = labelled.replace("\n", "\r\n") if number == 0 else labelled
            _put(root / f"Session{session}/dialog/transcriptions/{dialog}.txt", transcript, "cp1252")
            _put(root / f"Session{session}/dialog/EmoEvaluation/{dialog}.txt", labelled)
        if quirks:
            first, parent = f"{dialogs[0]}_F000", root / f"Session{session}"
            other = parent / "dialog/EmoEvaluation"
            _put(other / f"Attribute/{dialogs[0]}_e3_atr.txt", f"{first} :act 3; :val 2; :dom  2; ()\n")
            _put(other / f"Categorical/{dialogs[0]}_e2_cat.txt", f"{first} :Anger; ()\n")
            _put(other / f"Self-evaluation/{dialogs[0]}_f1_cat.txt", f"[6.2901 - 8.2357]\t{first}\tfru\t[1, 1, 1]\n")
            _put(parent / f"dialog/avi/DivX/{dialogs[0]}.avi", "RIFF")
            _put(parent / f"dialog/wav/{dialogs[0]}.txt", "The whole dialog.\n")
            record.write(str(parent / f"dialog/wav/{dialogs[0]}.wav"), "other")
            _put(parent / f"sentences/MOCAP_head/{dialogs[0]}/{first}.txt", "Frame# Time pitch roll\n1 6.2901 0 0\n")
    if quirks:
        _put(root / "Documentation/IEMOCAP_DATABASE.txt", "READ ME\n")
        _litter(root)
    return told


def esd(
    root: Path,
    speakers: Sequence[str] = ESD_FEW,
    sentences: int = 10,
    nested: bool = False,
    *,
    seconds: float = 0.3,
    seed: int = 0,
    quirks: bool = False,
    shared: bool = False,
) -> list[Told]:
    """Write the Emotional Speech Dataset; its utterances.

    As in the release, speakers of a language say the same sentences in all five emotions.

    Args:
        speakers: 0001 to 0010 speak Mandarin, 0011 to 0020 English.
        sentences: how many in each emotion, 3 to 350, shared over the three official splits as in the release.
        nested: with folders `train`, `test` and `evaluation` in each emotion's.
    """
    draw, record = random.Random(seed), _Recorder(seconds, seed, shared)
    texts = {language: _sentences(language, draw) for language in PARTS}
    many = {split: max(1, round(sentences * ESD_SPLITS[split][2] / 350)) for split in ("val", "test")}
    many["train"] = sentences - sum(many.values())
    told = []
    for place, speaker in enumerate(speakers):
        language, lines = "zh" if speaker <= "0010" else "en", []
        for block, (name, (emotion, chinese)) in enumerate(ESD_EMOTIONS.items()):
            word = {1: chinese, 4: name.lower()}.get(place, name) if quirks else name
            for split, (side, start, _) in ESD_SPLITS.items():
                folder = f"{speaker}/{name}/{side}" if nested else f"{speaker}/{name}"
                os.makedirs(root / folder, exist_ok=True)
                for number in range(start, start + many[split]):
                    key, text = f"{speaker}_{block * 350 + number:06}", texts[language][number]
                    audio = f"{folder}/{key}.wav"
                    record.write(os.path.join(root, audio), emotion)
                    lines.append(f"{key}\t{text}\t{word}")
                    told.append(Told(key, audio, text, emotion, speaker, "", split, language))
        encoding, end = ESD_FILES[place] if quirks and place < len(ESD_FILES) else ("utf-8", "\n")
        _put(root / speaker / f"{speaker}.txt", "".join(line + end for line in lines), encoding)
    if quirks:
        _put(root / "ReadMe.txt", "Read me first.\n")
        os.makedirs(root / "extra/Neutral")
        record.write(str(root / "extra/Neutral/extra_000001.wav"), "other")
        _litter(root)
    return told


def meld(
    root: Path,
    counts: tuple[int, int, int] = (42, 21, 21),
    video: bool = False,
    nested: bool = False,
    *,
    seconds: float = 0.3,
    seed: int = 0,
    quirks: bool = False,
    shared: bool = False,
) -> list[Told]:
    """Write MELD; its utterances but for `dia125_utt3` of train (no recording) and `dia110_utt7` of dev (no file).

    Args:
        counts: rows of train, dev and test, the two above among them. All seven emotions are as frequent.
        video: films (.mp4) as in the release rather than sound alone (.wav).
        nested: clips in `train/train_splits` rather than `train_splits`, and so on.
    """
    draw, record, suffix = random.Random(seed), _Recorder(seconds, seed, shared), ".mp4" if video else ".wav"
    sentences, told = _sentences("en", draw), []
    for (split, (name, folder, bad)), rows in zip(MELD_SPLITS.items(), counts, strict=True):
        folder = f"{name}/{folder}" if nested else folder
        os.makedirs(root / folder)
        clips = ((dialog, place) for dialog in count() for place in range(draw.randint(5, 12)))
        chosen = list(islice((clip for clip in clips if clip != bad), rows - (bad is not None)))
        words = [MELD_EMOTIONS[place % 7] for place in range(rows)]
        draw.shuffle(words)
        strange = iter(MELD_TEXTS.items() if quirks else ())
        table = io.StringIO()
        lines = csv.writer(table)
        lines.writerow(MELD_COLUMNS.split(","))
        for number, (clip, word) in enumerate(zip(sorted([*chosen, *([bad] if bad else [])]), words, strict=True), 1):
            plain, speaker = draw.choice(sentences), draw.choice(MELD_SPEAKERS)
            key, (raw, text) = f"dia{clip[0]}_utt{clip[1]}", (plain, plain)
            audio, emotion = f"{folder}/{key}{suffix}", "happiness" if word == "joy" else word
            if clip != bad:
                raw, text = next(strange, (plain, plain))
                record.write(os.path.join(root, audio), emotion)
                told.append(Told(f"{split}_{key}", audio, text, emotion, speaker, "", split, "en"))
            elif split == "train":
                _put(root / audio, "garbage \x00\xff" * 100, "latin-1")
            sentiment = {"joy": "positive", "neutral": "neutral", "surprise": "positive"}.get(word, "negative")
            season, episode, start = draw.randint(1, 9), draw.randint(1, 24), f"00:{clip[0] % 60:02}:{clip[1]:02}"
            times = f"{start},059", f"{start},{59 + round(1000 * min(seconds, 0.9)):03}"
            lines.writerow([number, raw, speaker, word, sentiment, *clip, season, episode, *times])
        _put(root / f"{name}_sent_emo.csv", table.getvalue(), "utf-8-sig" if quirks and name == "dev" else "utf-8")
        if quirks and split == "test":
            record.write(str(root / folder / f"final_videos_testdia0_utt0{suffix}"), "other")
    if quirks:
        _put(root / "README.txt", "Read me first.\n")
        _litter(root)
    return told


def emodb(
    root: Path,
    speakers: Sequence[str] = EMODB_SPEAKERS,
    each: int = 3,
    *,
    seconds: float = 0.3,
    seed: int = 0,
    quirks: bool = False,
    shared: bool = False,
) -> list[Told]:
    """Write EMO-DB; its utterances.

    Args:
        speakers: of two digits each.
        each: how many utterances of each speaker in each of seven emotions, up to 40; sentences differ up to ten.
    """
    draw, record, told = random.Random(seed), _Recorder(seconds, seed, shared), []
    os.makedirs(root / "wav")
    for speaker in speakers:
        for letter, emotion in EMODB_EMOTIONS.items():
            codes, version = draw.sample(list(EMODB_TEXTS), len(EMODB_TEXTS)), draw.randint(0, 2)
            for place in range(each):
                code = codes[place % len(codes)]
                key = f"{speaker}{code}{letter}{'abcdef'[version + place // len(codes)]}"
                audio = f"wav/{key}.wav"
                record.write(os.path.join(root, audio), emotion)
                told.append(Told(key, audio, EMODB_TEXTS[code], emotion, speaker, "", "", "de"))
    if quirks:
        for folder in ("lablaut", "silb"):
            _put(root / f"{folder}/{told[0].id}.{folder}", "signal 03a01Fa\n0.118750 0 DE6R (Straße)\n", "latin-1")
        _put(root / "erkennung.txt", "Satz\tErkannt\tNatürlich\r\n03a01Fa\t90,00\t0,85\r\n", "latin-1")
        _litter(root)
    return told


def _sentences(language: str, draw: random.Random) -> list[str]:
    """More than a thousand different sentences in random order."""
    sentences = ["".join(parts) for parts in product(*(part.split("|") for part in PARTS[language]))]
    draw.shuffle(sentences)
    return sentences


def _tagged(text: str, number: int) -> str:
    """The transcript of the utterance with that number in a release with quirks."""
    strange = ["I left it in the café.", "[LAUGHTER]", f"[LAUGHTER] {text}", f"Well,[BREATHING] {text}"]
    return strange[number] if number < len(strange) else f"{text} [LAUGHTER]" if number % 7 == 0 else text


def _put(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write bytes, so that line ends stay; folders are made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def _litter(root: Path) -> None:
    """What macOS leaves in all folders: `.DS_Store`, and `._<name>` beside the first eight entries."""
    for folder, folders, files in list(os.walk(root)):
        for name in (".DS_Store", *(f"._{name}" for name in sorted([*folders, *files])[:8])):
            Path(folder, name).write_bytes(
                b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02\xb0\xff\xfe\n\t\x81"
            )


def _film(path: str, samples: np.ndarray, rate: int) -> None:
    """An mp4 of one grey picture and an AAC track of `samples` (float32 in -1 to 1, of shape (time,))."""
    with av.open(path, "w") as container:
        picture, sound = container.add_stream("mpeg4", rate=25), container.add_stream("aac", rate=rate)
        picture.width, picture.height, picture.pix_fmt, sound.layout = 32, 32, "yuv420p", "mono"
        image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux([*picture.encode(image), *picture.encode(), *sound.encode(frame), *sound.encode()])
