"""The page: escaped, self-contained, well-formed."""

import html.parser
import re

import numpy as np

from keras_smat import FewShotReport
from keras_smat import FewShotResult
from keras_smat import plots
from keras_smat.html_page import HtmlPage
from keras_smat.html_page import to_svg

VOID = {"meta", "link", "br", "path", "use", "image", "rect"}


class Reader(html.parser.HTMLParser):
    """Checks that tags nest, and collects what could ask for a resource."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.ids, self.cells = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data-src", "action"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        before = list(self.open)
        self.handle_starttag(tag, attributes)
        self.open = before

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def assert_self_contained(text):
    """No address but data and fragments, neither in HTML nor in CSS."""
    reader = Reader(text)
    for address in reader.addresses:
        assert address.startswith(("data:", "#")), address
    assert len(reader.ids) == len(set(reader.ids))
    for word in ("http://", "https://", "@import", "//cdn"):
        assert word not in text
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.strip("'\"").startswith("#")
    assert "default-src 'none'" in text
    return reader


def picture():
    images = np.zeros((2, 4, 4, 3), "uint8")
    labels = np.array([0, 1])
    return plots.episode_picture(images, labels, images, labels, labels)


def test_everything_on_one_page():
    evil = '<script>alert("&")</script>'
    page = HtmlPage(evil, evil)
    page.section(evil)
    page.paragraph(evil)
    page.note(evil)
    page.bullets([evil])
    page.folded(evil, lambda: page.preformatted(evil))
    page.table([evil, "n"], [[evil, (evil, 0.5)], ["b", None]], caption=evil)
    for _ in range(2):  # Ids of equal figures must differ.
        page.figure(picture(), f'"{evil}"')
    page.figure(plots.differences([0.1], [0.2], [evil]), "x")
    text = page.render()
    reader = assert_self_contained(text)
    assert text.count("<script>") == 1 and "alert(" in text
    assert reader.cells[0] == evil
    assert any(a.startswith("data:image/png") for a in reader.addresses)


def test_table_cells_carry_what_they_sort_by():
    page = HtmlPage("t")
    page.table(
        ["set", "accuracy"],
        [["a", ("81.2 ± 0.9", 81.25)], ["b", 3]],
        footer=[["mean", (None, float("nan"))]],
    )
    text = page.render()
    assert '<td class="n" data-v="81.25">81.2 ± 0.9</td>' in text
    assert '<td class="n" data-v="3.0">3</td>' in text
    assert "<tfoot><tr><td>mean</td><td></td></tr></tfoot>" in text
    assert '<th class="n" scope="col">' in text


def test_svg_takes_the_ink_of_the_page_and_is_reproducible():
    figure = plots.differences([0.1], [0.2], ["name"]).figure
    svg = to_svg(figure)
    assert svg == to_svg(figure)
    assert plots.INK not in svg and "currentColor" in svg
    assert svg.startswith("<svg viewBox=") and svg.endswith("</svg>")
    assert ">name</text>" in svg
    assert "<style" not in svg and "<metadata" not in svg


def test_report_as_html(tmp_path):
    results = {
        "birds": FewShotResult([0.8, 0.6, 1.0]),
        "signs": FewShotResult([0.5]),
        "cars": FewShotResult([0.25, 0.75]),
    }
    protocol = {"learner": "SMAT", "sets": {"birds": {"seed": 7}}}
    path = tmp_path / "report.html"
    FewShotReport(results, protocol, ["birds", "cars"]).save(path)
    text = path.read_text("utf-8")
    reader = assert_self_contained(text)
    cells = reader.cells[: 3 * 3]
    assert cells[0::3] == ["birds", "cars", "signs"]
    assert cells[1::3] == ["in domain", "in domain", "out of domain"]
    assert cells[2::3] == ["80.0 ± 22.6", "50.0 ± 49.0", "50.0 ± nan"]
    assert "ID average" in reader.cells and "OOD average" in reader.cells
    assert '"seed": 7' in text
    FewShotReport(results, {}).save(path)
    assert "average" not in assert_self_contained(path.read_text()).cells
