"""Cells of the column audio: which file is meant, and what is said of one that is no path here."""

import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from fourm_ser.data.paths import locate
from fourm_ser.errors import InputError

Form = Literal["NFC", "NFD"]
FORMS: tuple[Form, ...] = ("NFC", "NFD")


def test_what_is_no_path_here_is_named_unless_there_is_such_a_file(tmp_path: Path) -> None:
    def refusal(audio: str) -> str:
        with pytest.raises(InputError) as caught:
            locate(tmp_path, audio)
        return str(caught.value)

    for audio, said in (
        (r"wav\u1.wav", "backslashes part no folders here. Write wav/u1.wav."),
        (r"C:\corpus\u1.wav", "is a path of Windows"),
        ("C:/corpus/u1.wav", "is a path of Windows"),
        (r"\\server\u1.wav", "Write //server/u1.wav."),
        ("~/corpus/u1.wav", "~ stands for nobody's home"),
        ("~anna/u1.wav", "~ stands for nobody's home"),
        ("https://host/u1.wav", "is an address"),
        ("file:///u1.wav", "is an address"),
        ("wav\\é.wav", "Write wav/é.wav."),
    ):
        message = refusal(audio)
        assert message.startswith(f"audio={audio}: ")
        assert said in message
        place = tmp_path / audio
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        assert locate(tmp_path, audio) == str(place)


def test_a_path_is_taken_whether_or_not_there_is_a_file(tmp_path: Path) -> None:
    for audio in ("wav/u1.wav", "u:1.wav", "a~b.wav", "../u1.wav", "/elsewhere/u1.wav", "wav/où.wav"):
        assert locate(tmp_path, audio) == str(tmp_path / audio)


@pytest.mark.parametrize("kept", FORMS)
@pytest.mark.parametrize("written", FORMS)
def test_the_file_is_found_in_either_unicode_form(tmp_path: Path, kept: Form, written: Form) -> None:
    name = "anné/où.wav"
    place = tmp_path / unicodedata.normalize(kept, name)
    place.parent.mkdir()
    place.touch()
    found = Path(locate(tmp_path, unicodedata.normalize(written, name)))
    assert found.is_file()
    assert found.samefile(place)
