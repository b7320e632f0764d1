"""What the tests of whole runs share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """They take longer than these runs train."""
    from fourm_ser.runs import evaluation, results

    with pytest.MonkeyPatch.context() as patched:
        for module in (evaluation, results):
            patched.setattr(module, "save_figure", lambda figure, path: None)
        yield
