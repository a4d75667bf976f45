"""The browser that tests look at pages with."""

from pathlib import Path

import pytest

from tests.server.browser import PageLeft, browser

pytestmark = pytest.mark.integration
LEAVES_ONCE = """
sessionStorage.left ? 'arrived' : new Promise(() => { sessionStorage.left = 'yes'; location.reload() })
"""


def test_a_look_at_a_page_that_is_just_left_is_one_at_the_next(tmp_path: Path):
    (tmp_path / "page.html").write_text("a page")
    with browser(tmp_path / "profile") as page:
        page.open((tmp_path / "page.html").as_uri())
        page.wait_for("a page")
        assert page.look(LEAVES_ONCE) == "arrived"
        page.evaluate("sessionStorage.clear()")
        with pytest.raises(PageLeft):
            page.evaluate(LEAVES_ONCE)
        page.wait_for("a page")
