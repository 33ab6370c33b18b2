"""The page around the figures: escaped, self-contained, empty parts left out."""

from tamis.reports import page


def test_page_loads_nothing_from_elsewhere() -> None:
    text = page.page(title="run", subtitle="s", sections=[page.code("x = 1")])

    assert "http" not in text
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text


def test_page_escapes_what_came_from_data() -> None:
    text = page.table(["value"], [["<img src=x>"]]) + page.cards(
        [page.Card(name="<b>", value="&", note="")]
    )

    assert "<img" not in text
    assert "&lt;img src=x&gt;" in text
    assert "&lt;b&gt;" in text


def test_section_without_content_leaves_no_heading() -> None:
    assert page.section("Slices", page.table(["a"], [])) == ""
    assert "<h2>Slices</h2>" in page.section("Slices", page.table(["a"], [["1"]]))
