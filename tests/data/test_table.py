"""Tables that users bring: what is read out of one, and what is said of one that means something else."""

import csv
import io
from itertools import product
from pathlib import Path

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import given, settings

from fourm_ser.data.table import check_delimiter, need_columns, read_table, refuse_shifted
from fourm_ser.errors import InputError

NAMES = ("emotion", "speaker", "session")
CELLS = st.text(st.sampled_from("ab ,;\t|\"\n'é1"), max_size=5)


def refusal(path: Path, content: str | bytes, delimiter: str | None = None) -> str:
    """What is said of a table; one line that begins with its name."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_table(path, "mine.csv", delimiter)
    message = str(caught.value)
    assert message.startswith("mine.csv: ")
    assert "\n" not in message
    return message


@settings(max_examples=60)
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=5),
    sign=st.sampled_from([(",", None), (";", None), ("\t", None), ("\t", "tab"), (";", "semicolon"), ("|", "|")]),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], sign: tuple[str, str | None], end: str, mark: bool
) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=sign[0], lineterminator=end).writerows([["id", "text", "note"], *rows])
    path = tmp_path_factory.mktemp("table") / "m.csv"
    path.write_bytes(stream.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    frame = read_table(path, "m", sign[1])
    assert frame.columns.tolist() == ["id", "text", "note"]
    assert frame.to_numpy().tolist() == rows
    assert all(dtype == "str" for dtype in frame.dtypes)


def test_words_that_look_like_something_else_stay_words(tmp_path: Path) -> None:
    words = ["NA", "null", "nan", "None", "true", "01", "1.0", "1e3", "", "-", "inf"]
    (tmp_path / "m.csv").write_text("\n".join(["id,word", *(f"u,{word}" for word in words)]) + "\n")
    assert read_table(tmp_path / "m.csv", "m")["word"].tolist() == words


def test_a_name_that_stands_twice_in_the_header_is_named(tmp_path: Path) -> None:
    for header in ("id,emotion,emotion", "id,emotion, emotion\u00a0", "id,emotion,Emotion", "é,id,e\u0301"):
        message = refusal(tmp_path / "m.csv", f"{header}\nu1,anger,sadness\n")
        assert "the header names a column twice: " in message
        assert ("emotion" in message) or ("é" in message)


def test_columns_without_a_name_are_called_by_their_place_where_one_is_missed(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(",id,\n0,u1,anger\n")
    frame = read_table(tmp_path / "m.csv", "m.csv")
    assert frame["id"].tolist() == ["u1"]
    with pytest.raises(InputError) as caught:
        need_columns(frame, ("id", "emotion"), "m.csv")
    assert "no column emotion. Required: id, emotion; found: (column 1), id, (column 3)." in str(caught.value)


@pytest.mark.parametrize(
    ("row", "cells", "sign"),
    [("u3,anger", 2, ","), ("u3,anger,anna,", 4, ";"), ("u3,anger,anna,b", 4, ","), ("u3", 1, "\t")],
)
def test_a_row_of_more_or_fewer_cells_is_named_by_its_number(tmp_path: Path, row: str, cells: int, sign: str) -> None:
    lines = ["id,emotion,speaker", 'u1,"two\nlines",ben', "", row, "u4,anger,ben"]
    message = refusal(tmp_path / "m.csv", "\n".join(lines).replace(",", sign))
    assert f"row 4 has another number of cells than the header, the first {cells} instead of 3" in message


def test_of_many_rows_the_first_five_are_named(tmp_path: Path) -> None:
    assert "rows 2, 3, 4, 5, 6 and 4 more have another" in refusal(tmp_path / "m.csv", "id,a\n" + "u\n" * 9)


def test_a_quote_that_does_not_fit_is_named_by_its_row(tmp_path: Path) -> None:
    for line in ('u2,"never closed,anna', 'u2,"closed" too early,anna', 'u2,"not "doubled", no",anna'):
        lines = ["id,text,speaker", 'u0,"two\nlines",ben', "u1,well,ben", line, "u3,well,ben", "u4,well,ben"]
        message = refusal(tmp_path / "m.csv", "\n".join(lines))
        assert "not a readable CSV: row 4: " in message
        assert "quote" in message


def test_quotes_within_a_word_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('id,text\nu1,a 5" disk\nu2,"say ""no"""\n')
    assert read_table(tmp_path / "m.csv", "m")["text"].tolist() == ['a 5" disk', 'say "no"']


def test_what_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16"):
        assert "not UTF-8" in refusal(tmp_path / "m.csv", "id,text\nu1,où\n".encode(encoding))


def test_what_has_no_header_is_refused(tmp_path: Path) -> None:
    for content in ("", "\n", "  \nid,text\n", ",,\nid,text,a\n"):
        assert "row 1 names no columns" in refusal(tmp_path / "m.csv", content)


def test_a_table_with_another_sign_says_what_may_stand_between_cells(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id|text\nu1|a\n")
    with pytest.raises(InputError, match=r"found: id\|text\. Between columns stand commas, semicolons or tabs"):
        need_columns(read_table(tmp_path / "m.csv", "m"), ("id", "text"), "m")
    assert read_table(tmp_path / "m.csv", "m", "|")["text"].tolist() == ["a"]


def test_what_cannot_part_cells_is_refused() -> None:
    def refused(value: object) -> None:
        with pytest.raises(InputError, match=r"data\.delimiter="):
            check_delimiter("data.delimiter", value)

    for value in ("a", "1", '"', " ", "", "\n", "||", "colon", 3, True, ["comma"]):
        refused(value)
    for right in (None, "comma", "semicolon", "tab", ",", ";", "\t", "|"):
        check_delimiter("data.delimiter", right)


# Shifted rows


def sound() -> pd.DataFrame:
    """Three emotions by four speakers of two sessions each."""
    cells = [(e, s, n) for e, s, n in product(["anger", "neutral", "sadness"], ["anna", "ben", "cleo", "dan"], "12")]
    frame = pd.DataFrame(cells, columns=list(NAMES))
    return frame.assign(text=[f"words {place}" for place in range(len(frame))])[["text", *NAMES]]


@pytest.mark.parametrize(("row", "direction"), [(0, "right"), (7, "left"), (23, "right")])
def test_a_shifted_row_is_named_by_its_number(row: int, direction: str) -> None:
    frame = sound()
    refuse_shifted(frame, NAMES, "m.csv")
    cells = frame.to_numpy().tolist()[row]
    frame.loc[row] = ["it is", " on the table", *cells[1:3]] if direction == "right" else [*cells[1:], "x"]
    with pytest.raises(InputError, match=f"^m.csv: row {row + 2} seems to be shifted by a cell: "):
        refuse_shifted(frame, NAMES, "m.csv")


@settings(max_examples=100)
@given(
    st.lists(st.tuples(*[st.sampled_from(["1", "2", "anger", "anna", "", "neutral"])] * 3), min_size=1, max_size=10),
    st.permutations(NAMES),
)
def test_a_table_of_which_every_name_occurs_twice_is_never_refused(
    rows: list[tuple[str, ...]], names: list[str]
) -> None:
    refuse_shifted(pd.DataFrame([*rows, *rows], columns=names, dtype=str), NAMES, "m.csv")


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["1", "2", "3", "4"]), st.sampled_from(["1", "2", "3"])),
        min_size=1,
        max_size=8,
    )
)
def test_columns_that_share_numbers_are_never_refused_where_both_hold_several(rows: list[tuple[str, ...]]) -> None:
    shared = [("a", "1", "1"), ("b", "2", "2")]  # speaker 1 in session 1: the numbers mean different things
    refuse_shifted(pd.DataFrame([*shared, *rows], columns=list(NAMES), dtype=str), NAMES, "m.csv")
