"""Pages: words without Markdown, zeros without signs."""

import pytest

from fourm_ser.pages import ZERO, in_words


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("-0.000", "0.000"),
        ("(-0.00 to 0.10)", "(0.00 to 0.10)"),
        ("\u22120.0", "0.0"),
        ("-0.001", "-0.001"),
        ("-0.0005", "-0.0005"),
        ("2026-0.0", "2026-0.0"),
        ("1e-0.0", "1e-0.0"),
        ("+0.00", "+0.00"),
        ("-10.00", "-10.00"),
    ],
)
def test_a_zero_has_no_sign(written: str, shown: str) -> None:
    assert ZERO.sub(r"\1", written) == shown


def test_words_are_html_and_nothing_else_of_them_is() -> None:
    assert in_words("`cka` of <b> & **more**") == "<code>cka</code> of &lt;b&gt; &amp; <strong>more</strong>"
