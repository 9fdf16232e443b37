"""The page: complete by itself, escaped, and right for sweeps with little in them."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.findings import headline
from llava_mini.sweep.html import page
from llava_mini.sweep.plots import draw_all

SweepFolder = Callable[..., Path]
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Reader(HTMLParser):
    """Collects tags and text, and checks that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(folder: Path) -> Reader:
    return Reader(page(folder.name, analyze(folder), {}))


def test_the_page_needs_nothing_beside_itself(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1")
    analysis = analyze(folder)
    html = page(folder.name, analysis, draw_all(analysis, folder))
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"base64,[\w+/=]+", "", html))
    tags = Reader(html).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe"}
    pictures = [attributes["src"] or "" for tag, attributes in tags if tag == "img"]
    assert len(pictures) == 3
    assert all(source.startswith("data:image/png;base64,") for source in pictures)


def test_it_says_what_was_measured_and_how(sweep_folder: SweepFolder) -> None:
    text = read(sweep_folder("compressor.C=1,2", "seed=0,1,2")).text
    for expected in (
        "a sweep", "9 of 9 runs finished", "3 seeds (0, 1, 2)", "360 test questions about 40 scenes",
        "query C=2, N=4", "One change at a time", "Student's t", "Holm's correction", "the mean over the kinds",
        "Where the weights started from: the uncompressed instruction model.",
        "git checkout c0ffee", "llava-mini sweep compressor.C=1,2 seed=0,1,2", "changes that were not committed",
    ):  # fmt: skip
        assert expected in text
    assert "Not in the numbers" not in text


def test_failed_and_interrupted_runs_are_named(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder(
        "compressor.C=1,2", "seed=0,1", failed={"query-C1-N4-s0": "ValueError: <no> & no"}, interrupted=["none-N0-s1"]
    )
    text = read(folder).text
    assert "Not in the numbers: 1 failed and 1 not finished" in text
    assert "query-C1-N4-s0-" in text
    assert "ValueError: <no> & no" in text
    assert "1 of 2" in text


def test_odd_names_are_text_and_no_tags(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("stage.note='<script>alert(1)</script>','\"x\" & y'", name="a <b> & 'c'")
    reader = read(folder)
    assert "note=<script>alert(1)</script>" in reader.text
    assert "a <b> & 'c'" in reader.text
    assert not {tag for tag, _ in reader.tags} & {"script", "b"}


def test_the_headline_is_the_page_s_first_text(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1,2")
    text = read(folder).text
    sentences = headline(analyze(folder))
    places = [text.index(sentence) for sentence in sentences]
    assert places == sorted(places)
    assert places[-1] < text.index("Share of the answers' words")


def test_one_seed_is_said_to_compare_nothing(sweep_folder: SweepFolder) -> None:
    text = read(sweep_folder("compressor.C=1,2")).text
    assert "One seed: differences under about " in text
    assert "Below 3 seeds there are no intervals and no comparisons." in text
    assert "experiments/007-compression" in text
    assert "Student's t" not in text


def test_nothing_finished(sweep_folder: SweepFolder) -> None:
    reader = read(sweep_folder(failed={"none-N0-s0": "no"}, interrupted=["query-C1-N4-s0"]))
    assert "0 of 2 runs finished" in reader.text
    assert "No run is finished" in reader.text
    assert "What the figures mean" not in reader.text
    assert "img" not in {tag for tag, _ in reader.tags}
