"""HTML pages that need nothing beside them: one look, no Markdown left in words, no zero with a sign."""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

CODE = re.compile(r"`([^`]+)`")
STRONG = re.compile(r"\*\*([^*]+)\*\*")
ZERO = re.compile(r"(?<![\w.,])[-\u2212](0\.0+)(?![\d.])")  # what rounding made of a small negative number


def render(template: str, **values: Any) -> str:
    """A page from a template of this package, such as `report/report.html.j2`."""
    environment = Environment(
        loader=PackageLoader("fourm_ser", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["words"] = in_words
    return ZERO.sub(r"\1", environment.get_template(template).render(**values))


def in_words(text: str) -> Markup:
    """A sentence in HTML, with what stands between backticks as code and between double stars as strong."""
    marked = CODE.sub(r"<code>\1</code>", str(escape(text)))
    return Markup(STRONG.sub(r"<strong>\1</strong>", marked))
