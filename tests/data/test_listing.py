"""Tables to predict on: read as manifests are, what is wrong with one row said in its entry."""

from pathlib import Path

import pytest

from fourm_ser.data.listing import read_listing
from fourm_ser.errors import InputError

BOTH = ("text", "audio")


def listing(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_names_are_cleaned_whatever_stands_between_cells(tmp_path: Path, sign: str) -> None:
    content = 'id,audio,text,start\n u1\u00a0, a.wav ," Oh, no; yes",0.5\ne\u0301,b.wav,NA,\n'.replace(",", sign)
    content = content.replace(f"Oh{sign}", "Oh,")
    found = read_listing(listing(tmp_path / "m.csv", content), BOTH)
    assert [entry.error for entry in found] == [None, None]
    assert [(entry.id, entry.item.audio, entry.item.text) for entry in found] == [
        ("u1", str(tmp_path.resolve() / "a.wav"), " Oh, no; yes"),
        ("é", str(tmp_path.resolve() / "b.wav"), "NA"),
    ]
    assert found[0].item.start == 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,audio\nu1,a.wav\n u1,b.wav\n", "row 3 repeats the id u1"),
        ("id,audio\nu1,a.wav\n\u00a0,b.wav\n", "id is empty in row 3"),
        ("id,audio,Audio\nu1,a.wav,b.wav\n", "names a column twice"),
        ("id,audio\nu1,a.wav,b\n", "row 2 has another number of cells"),
        ('id,audio\nu1,"a.wav\n', "row 2: "),
        ("id|audio\nu1|a.wav\n", "has no column id, audio. Required: id, audio; found: id|audio. Between columns"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_its_row(tmp_path: Path, content: str, said: str) -> None:
    path = listing(tmp_path / "m.csv", content)
    with pytest.raises(InputError) as caught:
        read_listing(path, ("audio",))
    assert str(caught.value).startswith(f"manifest={path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("audio", "start", "said"),
    [
        (r"wav\a.wav", "", "backslashes"),
        ("~/a.wav", "", "~ stands for nobody's home"),
        (" \u00a0", "", "audio is empty"),
        ("a.wav", '"1,5"', "start=1,5 is no number of seconds. Write 1.5 instead of 1,5."),
    ],
)
def test_a_row_that_says_something_else_has_its_reason_and_the_others_are_taken(
    tmp_path: Path, audio: str, start: str, said: str
) -> None:
    path = listing(tmp_path / "m.csv", f"id,audio,start\nu1,a.wav,\nu2,{audio},{start}\nu3,c.wav,1\n")
    errors = [entry.error for entry in read_listing(path, ("audio",))]
    assert errors[0] is None
    assert errors[2] is None
    assert said in str(errors[1])
