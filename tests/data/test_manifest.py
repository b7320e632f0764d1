"""The manifest: what a table must look like, and what is said of one that does not."""

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fourm_ser.data.manifest import EMOTIONS, order_emotions, read_manifest, write_manifest
from fourm_ser.errors import InputError

HEADER = "id,audio,text,emotion,speaker"
ROW = {"id": "u1", "audio": "u1.wav", "text": "Well.", "emotion": "anger", "speaker": "S1"}


def table(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return path


def rows(path: Path, *changes: Mapping[str, str]) -> Path:
    """A manifest of as many good rows as there are `changes`, each changed so."""
    good = [{**ROW, "id": f"u{place}", "audio": f"u{place}.wav"} for place in range(2, len(changes) + 2)]
    made = [{**row, **change} for row, change in zip(good, changes, strict=True)]
    pd.DataFrame(made).fillna("").to_csv(path, index=False)
    return path


def refusal(path: Path) -> str:
    """What is said of the manifest; always with its path."""
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    start = generator.uniform(0, 100, 6)
    texts = ["Well.", "", 'He said "no", twice.', "two\nlines", "NA", "Ça, où? 你好 🙂"]
    frame = pd.DataFrame(
        {
            "id": [f"u{place}" for place in range(6)],
            "audio": [str(tmp_path / "a folder" / f"{place}.wav") for place in range(6)],
            "text": texts,
            "emotion": ["anger", "NA", "null", "nan", "None", "neutral"],
            "speaker": list("abcdef"),
            "session": ["1", "01", "", "1.0", "NA", "x"],
            "split": ["train"] * 6,
            "language": ["en", "", "NA", "no", "de", "fr"],
            "start": [math.nan if place == 2 else start[place] for place in range(6)],
            "end": [math.nan if place in (2, 3) else start[place] + 1 / 3 for place in range(6)],
            "duration": [math.nan] * 5 + [2.5],
        }
    )
    write_manifest(frame.assign(row=0, digest="left out"), tmp_path / "new" / "manifest.csv")
    read = read_manifest(tmp_path / "new" / "manifest.csv")
    assert read["row"].tolist() == [2, 3, 4, 5, 6, 7]
    assert [*read.columns] == [*frame.columns, "row"]
    for column in frame.columns:
        if frame[column].dtype == float:
            np.testing.assert_array_equal(read[column], frame[column])
        else:
            assert read[column].tolist() == frame[column].tolist()
    write_manifest(read, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "new" / "manifest.csv").read_bytes()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["manifest.csv"]


def test_optional_columns_may_be_missing_and_others_are_left_out(tmp_path: Path) -> None:
    read = read_manifest(table(tmp_path / "m.csv", "5,S1,anger,,u.wav,u1", header="age,speaker,emotion,text,audio,id"))
    assert read.to_dict("records") == [
        {
            **ROW,
            "text": "",
            "audio": str(tmp_path.resolve() / "u.wav"),
            "session": "",
            "split": "",
            "language": "",
            "start": pytest.approx(math.nan, nan_ok=True),
            "end": pytest.approx(math.nan, nan_ok=True),
            "duration": pytest.approx(math.nan, nan_ok=True),
            "row": 2,
        }
    ]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    for column in ROW:
        row = {name: cell for name, cell in ROW.items() if name != column}
        path = table(tmp_path / "m.csv", ",".join(row.values()), header=",".join(row))
        assert f"no column {column}." in refusal(path)


def test_all_missing_columns_are_named_and_those_found(tmp_path: Path) -> None:
    message = refusal(table(tmp_path / "m.csv", "u1,a.wav,hi", header="id,file,text"))
    assert "no column audio, emotion, speaker." in message
    assert "found: id, file, text" in message


def test_a_duplicate_id_is_named_with_its_rows(tmp_path: Path) -> None:
    message = refusal(rows(tmp_path / "m.csv", {}, {"id": "twin"}, {}, {"id": "twin"}, {}))
    assert "the id twin" in message
    assert "rows 3, 5." in message


def test_an_empty_cell_is_named_with_its_row(tmp_path: Path) -> None:
    for column, cell in product(("id", "audio", "emotion", "speaker"), ("", "  ")):
        assert f"{column} is empty in row 4." in refusal(rows(tmp_path / "m.csv", {}, {}, {column: cell}, {}))


def test_an_empty_transcript_is_allowed(tmp_path: Path) -> None:
    assert read_manifest(rows(tmp_path / "m.csv", {}, {"text": ""}))["text"].tolist() == ["Well.", ""]


def test_of_many_rows_the_first_five_are_named(tmp_path: Path) -> None:
    assert "rows 2, 3, 4, 5, 6 and 4 more" in refusal(rows(tmp_path / "m.csv", *[{"emotion": ""}] * 9))


def test_what_is_not_a_number_of_seconds_is_named_with_its_row(tmp_path: Path) -> None:
    for column, cell in product(("start", "end", "duration"), ("1,5", "soon", "-0.1", "nan", "0:12", "inf")):
        path = rows(tmp_path / "m.csv", {column: "0.5"}, {column: cell})
        assert f"{column} is not a number of seconds in row 3." in refusal(path), cell


def test_an_end_that_is_not_after_the_start_is_named_with_its_row(tmp_path: Path) -> None:
    good = [{"start": "1", "end": "2"}, {"start": "1"}, {"end": "1"}]
    for start, end in (("2.0", "1.5"), ("2.0", "2.0"), ("", "0")):
        path = rows(tmp_path / "m.csv", *good, {"start": start, "end": end})
        assert "end is not after start in row 5." in refusal(path), (start, end)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    plain = table(tmp_path / "m.csv", "é,a.wav,où,anger,S")
    expected = read_manifest(plain)
    plain.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    pd.testing.assert_frame_equal(read_manifest(plain), expected)
    assert expected["id"].tolist() == ["é"]


def test_what_is_not_utf_8_is_refused_far_into_the_file_too(tmp_path: Path) -> None:
    lines = [f"u{place},{place}.wav,hello there,anger,S" for place in range(20_000)]
    path = table(tmp_path / "m.csv", *lines)
    path.write_bytes(path.read_bytes() + "last,a.wav,où,anger,S\n".encode("latin-1"))
    assert "not UTF-8" in refusal(path)


def test_audio_is_relative_to_the_manifests_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus").mkdir()
    rows(tmp_path / "corpus" / "m.csv", {"audio": "wav/a.wav"}, {"audio": "/elsewhere/b.wav"})
    monkeypatch.chdir(tmp_path)
    read = read_manifest(Path("corpus/m.csv"))
    assert read["audio"].tolist() == [str(tmp_path.resolve() / "corpus" / "wav" / "a.wav"), "/elsewhere/b.wav"]


def test_audio_is_relative_to_the_audio_root_where_one_is_given(tmp_path: Path) -> None:
    path = rows(tmp_path / "m.csv", {"audio": "wav/a.wav"}, {"audio": "/elsewhere/b.wav"})
    read = read_manifest(path, tmp_path / "root")
    assert read["audio"].tolist() == [str(tmp_path.resolve() / "root" / "wav" / "a.wav"), "/elsewhere/b.wav"]


def test_a_manifest_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no such manifest" in refusal(tmp_path / "nowhere.csv")
    assert "no such manifest" in refusal(tmp_path)


def test_a_manifest_without_rows_is_refused(tmp_path: Path) -> None:
    for content in ("", "\n\n", f"{HEADER}\n"):
        (tmp_path / "m.csv").write_text(content)
        refusal(tmp_path / "m.csv")


def test_a_comma_that_is_not_quoted_is_refused_in_every_row_alike_too(tmp_path: Path) -> None:
    for first in ("Well, no", "Well"):
        path = table(tmp_path / "m.csv", f"u1,1.wav,{first},anger,S1", "u2,2.wav,Oh, no,anger,S1")
        assert "another number of cells than the header" in refusal(path)


def test_rows_are_counted_as_a_spreadsheet_shows_them(tmp_path: Path) -> None:
    read = read_manifest(table(tmp_path / "m.csv", 'u1,1.wav,"two\nlines",anger,S1', "u2,2.wav,Oh,anger,S1"))
    assert read["row"].tolist() == [2, 3]


def test_an_empty_line_counts_as_a_row_but_is_none(tmp_path: Path) -> None:
    read = read_manifest(table(tmp_path / "m.csv", "u1,1.wav,Well,anger,S1", "", "u2,2.wav,Oh,anger,S1", ""))
    assert read["id"].tolist() == ["u1", "u2"]
    assert read["row"].tolist() == [2, 4]


def test_emotions_have_one_order_whatever_order_they_come_in() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        chosen = generator.permutation(len(EMOTIONS))[: generator.integers(1, len(EMOTIONS))]
        shuffled = [EMOTIONS[place] for place in chosen]
        assert order_emotions(shuffled * 2) == [EMOTIONS[place] for place in sorted(chosen)]


def test_emotions_that_are_not_known_follow_in_alphabetical_order() -> None:
    assert order_emotions(["zeal", "neutral", "awe", "anger", "zeal"]) == ["anger", "neutral", "awe", "zeal"]
    assert EMOTIONS[:4] == ("anger", "happiness", "sadness", "neutral")


def test_names_lose_blanks_around_them_and_have_one_unicode_form(tmp_path: Path) -> None:
    columns = ["emotion", "speaker", "session", "split", "language"]
    names = ["anné", " anné", "anné\u00a0", "\ufeffanne\u0301 ", "anné\t"]
    read = read_manifest(rows(tmp_path / "m.csv", *(dict.fromkeys(columns, name) for name in names)))
    assert read[columns].to_numpy().tolist() == [["anné"] * 5] * 5


def test_ids_that_differ_by_blanks_or_form_alone_are_one_id(tmp_path: Path) -> None:
    message = refusal(rows(tmp_path / "m.csv", {"id": "é"}, {}, {"id": " é"}, {"id": "e\u0301"}))
    assert "the id é stands in rows 2, 4, 5." in message


def test_blanks_around_paths_and_seconds_do_not_count(tmp_path: Path) -> None:
    read = read_manifest(rows(tmp_path / "m.csv", {"audio": " a.wav\u00a0", "start": " 0.5\u00a0", "end": "1 "}))
    assert read[["audio", "start", "end"]].to_numpy().tolist() == [[str(tmp_path.resolve() / "a.wav"), 0.5, 1.0]]


def test_a_manifest_with_another_delimiter_is_the_same_manifest(tmp_path: Path) -> None:
    path = rows(tmp_path / "m.csv", {"start": "0.5"}, {"text": 'Oh, "no"; really\t?'}, {})
    expected = read_manifest(path)
    pd.read_csv(path, dtype=str, keep_default_na=False).to_csv(path, sep=";", index=False)
    pd.testing.assert_frame_equal(read_manifest(path), expected)


def test_a_decimal_comma_is_named_with_what_to_write(tmp_path: Path) -> None:
    path = table(tmp_path / "m.csv", "u1;a.wav;;anger;S;0,5", header=f"{HEADER},start".replace(",", ";"))
    assert "start is not a number of seconds in row 2. Write 0.5 instead of 0,5." in refusal(path)


def test_what_is_no_path_is_named_with_its_rows(tmp_path: Path) -> None:
    audio = "~/u1.wav"
    message = refusal(rows(tmp_path / "m.csv", {}, {"audio": audio}, {}, {"audio": audio}))
    assert f"rows 3, 5: audio={audio}: " in message


def test_a_row_that_is_shifted_is_named(tmp_path: Path) -> None:
    good = [{"emotion": "anger", "speaker": "anna", "session": "1"}, {"emotion": "neutral", "speaker": "ben"}] * 2
    shifted = {"text": "it is", "emotion": " on the table", "speaker": "neutral", "session": "anna"}
    assert "row 4 seems to be shifted" in refusal(rows(tmp_path / "m.csv", *good[:2], shifted, *good[2:]))


def test_labels_that_are_numbers_are_in_the_order_of_numbers() -> None:
    assert order_emotions(["10", "2", "anger", "1"]) == ["anger", "1", "2", "10"]
