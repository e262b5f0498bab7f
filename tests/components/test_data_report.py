import html.parser

import jinja2
import pytest
from html_pages import HOSTILE, Tags, paths, without

from sigline.components.validate import report
from sigline.components.validate.gate import Described

COUNTS = {
    "input": 1234,
    "written": 1200,
    "rejected": 34,
    "rejected_by_reason": {"corrupt_image": 30, "duplicate": 4},
    "splits": {"train": 1100, "eval": 100},
}
PROFILE = {
    "train": {"words": {"8-15": 1000, "16-31": 90, "0": 10}, "language": {"en": 1100}},
    "eval": {"words": {"8-15": 100}, "language": {"en": 90, "de": 10}},
}
SAMPLES = {
    "train": [
        {"key": "a", "source": "web", "text": ["<b>a dog</b>"], "image": "QUJD", "other": None}
    ],
    "duplicate": [
        {
            "key": "half \ud800",
            "shard": "x.tar",
            "position": [0, 5],
            "detail": "the picture is that of 'a'",
            "image": "QUJD",
            "other": "REVG",
        }
    ],
}


class _Parser(html.parser.HTMLParser):
    """Checks that what is opened is closed, and collects pictures and text."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert not {"src", "href"} & set(attributes) or attributes["src"].startswith("data:")
        assert tag != "script"
        if tag == "img":
            self.images.append(attributes["src"])
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _parse(page):
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_report_shows_numbers_reasons_and_pictures():
    found = _parse(report.page(Described(COUNTS, PROFILE), SAMPLES, []))
    for expected in ("1,234", "1,200", "corrupt_image", "found nothing wrong", "8-15", "de"):
        assert expected in found.text
    assert found.images == ["data:image/jpeg;base64,QUJD"] * 2 + ["data:image/jpeg;base64,REVG"]
    # What the source says is text, and can be written.
    assert "<b>a dog</b>" in found.text
    assert report.page(Described(COUNTS, PROFILE), SAMPLES, []).encode()


def test_report_lists_the_gates_problems():
    found = _parse(
        report.page(Described(COUNTS, PROFILE), SAMPLES, ["split train holds 3 <records>"])
    )
    assert "stopped the pipeline" in found.text
    assert "split train holds 3 <records>" in found.text


def test_report_of_nothing_is_a_page():
    counts = COUNTS | {"input": 0, "written": 0, "rejected": 0, "rejected_by_reason": {}}
    found = _parse(report.page(Described(counts | {"splits": {}}, {}), {}, []))
    assert "Nothing." in found.text


def test_many_values_are_added_up():
    profile = {"train": {"source": {f"source{i}": i + 1 for i in range(30)}}}
    found = _parse(report.page(Described(COUNTS, profile), {}, []))
    assert "10 others" in found.text
    assert "source29" in found.text
    assert "source0" not in found.text


def test_values_sort_by_size():
    values = sorted(["16-31", "2-3", "0", "1", "1.41", "en", "a-b"], key=report._in_order)
    assert values == ["0", "1", "1.41", "2-3", "16-31", "a-b", "en"]


def test_what_was_left_out_of_pairs_is_shown_if_anything_was():
    left_out = {"labels_in_meta": 3, "captions_missing": 4567}
    data = Described(COUNTS | {"remarks": left_out}, PROFILE)
    text = _parse(report.page(data, SAMPLES, [])).text
    assert (
        "What was left out of pairsnumber04,567captions_missing4,567labels_in_meta3"
        in text.replace("\n", "")
    )
    for counts in (COUNTS, COUNTS | {"remarks": {}}):
        page = report.page(Described(counts, PROFILE), SAMPLES, [])
        assert "left out" not in page


def test_captions_have_a_direction_of_their_own_and_bars_have_axes():
    samples = {"train": [{"image": "", "text": ["שלום <b>"], "source": "a", "key": "1"}]}
    page = report.page(
        Described(COUNTS, PROFILE), samples, [], date="2026-11-30", reports="../reports.html"
    )
    assert "<bdi>שלום &lt;b&gt;</bdi>" in page
    assert "Checked on 2026-11-30" in page
    assert 'href="../reports.html"' in page
    assert "<span>0%</span><span>50%</span><span>100%</span>" in page
    assert "% of train" in page


def _report_of(text):
    """Returns data and samples with a text in every place, made from the place's name."""
    group = {
        "folder": text("folder"),
        "suffix": text("suffix"),
        "reason": text("reason of passed over"),
        "names": [text("file"), text("other file")],
        "count": 3,
        "counted": True,
    }
    files = {"total": 5, "read": 2, "passed_over": 3}
    counts = COUNTS | {
        "rejected_by_reason": {text("reason"): 34},
        "remarks": {text("remark"): 3},
        "passed_over": {"files": files, "members": files, "groups": [group]},
    }
    profile = {"train": {text("feature"): {text("value"): 10}}}
    rejected = {
        "key": text("rejected key"),
        "shard": text("shard"),
        "position": [0, 5],
        "detail": text("detail"),
        "image": text("image"),
        "other": text("other"),
    }
    kept = {
        "key": text("key"),
        "source": text("source"),
        "text": [text("caption"), text("other caption")],
        "image": "QUJD",
    }
    samples = {"eval": [kept], next(iter(counts["rejected_by_reason"])): [rejected]}
    more = {
        "problems": [text("problem")],
        "warnings": [text("warning")],
        "date": text("date"),
        "reports": text("../reports.html#"),
    }
    return Described(counts, profile), samples, more


def _page_of(text):
    data, samples, more = _report_of(text)
    return report.page(data, samples, **more)


def test_every_text_of_the_data_is_escaped():
    places = []

    def hostile(place):
        places.append(f"{place} {HOSTILE}")
        return places[-1]

    page = _page_of(hostile)
    assert "<script" not in page
    parser = Tags(page)
    # Nothing that the texts hold is a tag or an attribute, and none of them is lost.
    assert parser.tags == Tags(_page_of(str)).tags
    assert len(places) == len(set(places))
    pictures = {f"data:image/jpeg;base64,{place} {HOSTILE}" for place in ("image", "other")}
    assert pictures | {f"../reports.html# {HOSTILE}"} <= parser.values
    only_values = {f"{place} {HOSTILE}" for place in ("image", "other", "../reports.html#")}
    assert [text for text in places if text not in parser.text and text not in only_values] == []


@pytest.mark.parametrize("address", ["javascript:alert(1)", " JavaScript:alert(1)//"])
def test_an_address_that_runs_something_is_no_link(address):
    page = report.page(Described(COUNTS, PROFILE), SAMPLES, [], reports=address)
    assert "href" not in page
    assert "model report, model card and all else" in page


def test_what_is_missing_is_an_error():
    data, samples, more = _report_of(str)
    content = report.content(data, samples) | more
    assert report.TEMPLATE.render(content) == _page_of(str)
    every = list(paths(content))
    assert ("features", 0, "rows", 0, "bars", 0, "share") in every
    for path in every:
        with pytest.raises(jinja2.UndefinedError):
            report.TEMPLATE.render(without(content, path))
