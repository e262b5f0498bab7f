import html
import io
import os
import re
import shutil
import subprocess

import jinja2
import numpy as np
import pytest
from html_pages import HOSTILE, Tags, paths, without
from PIL import Image

from sigline.components.evaluate import evaluation, findings, plots, report, results
from sigline.components.evaluate.gate import Check, Verdict
from sigline.components.evaluate.predictions import EvalRecord, Predictions
from sigline.components.evaluate.report import Subject
from sigline.components.evaluate.views import Scale, View

NAMES = ("cat", "dog", "bird")
RNG = np.random.default_rng(0)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def view():
    labels = np.arange(60) % 3
    records = tuple(
        EvalRecord(
            key=f"{i:02d}",
            source="ab"[i % 2],
            label=(int(label),),
            text=(f"a {NAMES[label]} <{i}>",),
            language=("en",),
            width=64,
            height=64,
            image_sha256="00",
        )
        for i, label in enumerate(labels)
    )
    classes = _unit(np.eye(3, 8))
    image = _unit(classes[labels] + 0.3 * RNG.standard_normal((60, 8)))
    # Source b is broken.
    image[1::2] = _unit(RNG.standard_normal((30, 8)))
    text = _unit(image + 0.2 * RNG.standard_normal((60, 8)))
    return View(Predictions(records, image, text, text[:0]), {"": classes}, Scale(10.0, -5.0))


@pytest.fixture(scope="module")
def found(view):
    return results.summarize(evaluation.measures(view), None)


@pytest.fixture(scope="module")
def seen(view, found):
    return findings.collect(view, NAMES, found, min_slice_examples=10)


def test_worst_examples_are_furthest_from_their_class(view, seen):
    cosines = view.split.image @ view.classes[""].T
    gaps = cosines.max(axis=1) - cosines[np.arange(60), np.arange(60) % 3]
    worst = np.argsort(-gaps)[:5]
    assert [example.unit for example in seen.worst] == [view.split.units[i] for i in worst]
    first = seen.worst[0]
    assert first.expected == (NAMES[worst[0] % 3],)
    names = [name for name, _ in first.predictions]
    assert names == [NAMES[c] for c in np.argsort(-cosines[worst[0]])]
    assert not first.right


def test_examples_of_retrieval_are_right_or_wrong(seen):
    assert all(example.right and example.rank == 0 for example in seen.right)
    assert all(not example.right and example.rank > 0 for example in seen.wrong)
    assert len(seen.searches) == 4
    assert all(len(images) == 5 for _, images in seen.searches)


def test_worst_slice_is_the_broken_source(seen):
    name, result = seen.worst_slices[0]
    assert name == "zero_shot_accuracy/source=b"
    assert result.examples == 30


def test_reliability_holds_all_pairs(seen):
    assert sum(share for share, _, _ in seen.reliability) == pytest.approx(1.0)


def test_without_labels_the_worst_are_those_found_last(view):
    bare = View(view.split)
    seen = findings.collect(bare, (), {}, min_slice_examples=1)
    ranks = [example.rank for example in seen.worst]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > 0
    assert seen.confusions == ()
    assert seen.reliability == ()


def _png(color):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def page(found, seen):
    failed = Check("zero_shot_accuracy/source=b", "at least", 0.3, 0.5, passed=False)
    verdict = Verdict((Check("zero_shot_accuracy", "at least", 0.6, 0.5, passed=True), failed))
    subject = Subject(
        title="Model report: <tiny>",
        pictures=dict.fromkeys(seen.units(), _png("teal")),
        curves={"loss": [(0, 3.0), (10, 2.0), (20, float("nan"))]},
        data=[("records", "60")],
        lineage=[("data_digest", "abc")],
    )
    return report.page(verdict, found, seen, subject)


def test_verdict_and_reason_come_first(page):
    text = re.sub("<[^>]+>", " ", page.split("</style>")[1])
    verdict = text.index("Not blessed")
    assert verdict < text.index("The five worst examples") < text.index("Metrics")
    assert "zero_shot_accuracy/source=b fails: 0.3, at least: 0.5" in text


def test_page_needs_nothing_else(page):
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert "@import" not in page


def test_text_is_escaped(page):
    assert "Model report: &lt;tiny&gt;" in page
    assert "a cat &lt;0&gt;" in page
    assert "<0>" not in page


def test_baseline_and_significance_are_shown():
    result = results.Result(0.9, 0.8, 0.95, 50, 0.1, 0.8, 0.1, 0.02, 0.2)
    page = report.page(Verdict(()), {"acc": result}, findings.Findings(), Subject("m"))
    assert "<b>+0.1 (+0.02 to +0.2)</b>" in page
    assert "last blessed" in page


def test_curve_without_finite_points_is_left_out():
    assert plots.curve("loss", [(0, float("nan"))]) == ""
    assert "step 3" in plots.curve("loss", [(3, 1.0)])


def _browser():
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.mark.skipif(_browser() is None, reason="no Chromium is installed")
def test_browser_shows_the_page(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page)
    browser = [_browser(), "--headless", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    if os.geteuid() == 0:
        browser.append("--no-sandbox")
    shot = tmp_path / "page.png"
    command = [*browser, "--window-size=1300,1600", f"--screenshot={shot}", path.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    # The verdict's red, and the pictures of the worst examples, are within the first screen.
    assert (pixels == (253, 236, 234)).all(axis=1).sum() > 10_000
    assert (pixels == (0, 128, 128)).all(axis=1).sum() > 5 * 5_000
    dom = subprocess.run(
        [*browser, "--dump-dom", path.as_uri()], check=True, capture_output=True, timeout=120
    )
    assert b"Not blessed" in dom.stdout


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1800, [0, 500, 1000, 1500, 2000]),
        (1.745, 5.17, [1, 2, 3, 4, 5, 6]),
        (-0.003, 0.0021, [-0.004, -0.002, 0, 0.002, 0.004]),
        (7, 7, [7]),
    ],
)
def test_ticks_are_round_and_hold_all_values(low, high, expected):
    assert plots.ticks(low, high) == expected


def test_plots_have_axes_with_ticks_and_titles():
    drawn = plots.curve("loss", [(0, 5.17), (900, 2.0), (1800, 1.745)])
    for text in ("step", "loss", "0", "500", "1000", "1500", "2000", "1", "6"):
        assert f">{text}</text>" in drawn, text
    drawn = plots.reliability([(0.9, 0.1, 0.2), (0.1, 0.8, 0.7)])
    for text in ("probability said", "share that is so", "0%", "25%", "50%", "75%", "100%"):
        assert f">{text}</text>" in drawn, text
    drawn = plots.interval(0.665, 0.627, 0.705, 0.006)
    assert "<title>66.5%, interval 62.7% to 70.5%, chance 0.6%</title>" in drawn
    assert ">100%</text>" in drawn


def test_shares_are_per_cent_and_other_values_are_not():
    found = {
        "image_to_text_recall@1": results.Result(
            0.665, 0.627, 0.705, 555, 0.006, 0.7, -0.035, -0.06, -0.01
        ),
        "zero_shot_calibration_error": results.Result(0.01234, 0.01, 0.02, 100),
    }
    page = report.page(Verdict(()), found, findings.Findings(), Subject("m"))
    for text in ("<b>66.5%</b>", "62.7% to 70.5%", ">0.6%<", ">70.0%<", "-3.5% (-6.0% to -1.0%)"):
        assert text in page, text
    assert "<b>0.01234</b>" in page


def test_texts_of_the_data_have_a_direction_of_their_own(view, found, seen):
    page = report.page(Verdict(()), found, seen, Subject("m"))
    for example in (*seen.worst, *seen.right, *seen.wrong):
        for text in example.expected[:3]:
            assert f"<bdi>{html.escape(text)}</bdi>" in page
    for text, _ in seen.searches:
        assert f"<bdi>{html.escape(text)}</bdi>" in page


def test_a_report_has_a_date_and_a_link_to_the_others():
    subject = Subject("m", date="2026-11-30", reports="../../../../reports.html")
    page = report.page(Verdict(()), {}, findings.Findings(), subject)
    assert "Judged on 2026-11-30" in page
    assert 'href="../../../../reports.html"' in page
    assert "href" not in report.page(Verdict(()), {}, findings.Findings(), Subject("m"))


def test_the_verdict_says_what_it_is_worth():
    found = {"image_to_text_recall@1": results.Result(0.068, 0.05, 0.09, 300, 0.003, 0.2)}
    passed = Check("image_to_text_recall@1", "at least", 0.068, 0.05, True)
    page = report.page(Verdict((passed,)), found, findings.Findings(), Subject("m"))
    assert '<td class="number">6.8%</td><td>at least</td><td class="number">5.0%</td>' in page
    assert "Far above chance, below 35% of what the last model reached" in page


def _report_of(text):
    """Returns the arguments of a report with a text in every place, made from the place's name."""

    def example(name):
        unit = text(f"{name} unit")
        return findings.Example(
            unit, (text(f"{name} expected"),), ((text(f"{name} other"), 0.5),), False, 3
        )

    result = results.Result(0.9, 0.8, 0.95, 50, 0.1, 0.8, 0.1, 0.02, 0.2)
    checks = (
        Check(text("checked metric"), text("rule"), 0.1, 0.2, False, text("note")),
        Check(text("passed metric"), text("passed rule"), 0.3, 0.2, True, text("passed note")),
    )
    seen = findings.Findings(
        worst=(example("worst"),),
        right=(example("right"),),
        wrong=(example("wrong"),),
        searches=((text("search"), ((text("searched unit"), True),)),),
        confusions=((text("confused class"), text("other class"), 4),),
        reliability=((0.9, 0.1, 0.2),),
        worst_slices=((text("accuracy/source="), result),),
    )
    subject = Subject(
        title=text("title"),
        pictures=dict.fromkeys(seen.units(), _png("teal")),
        curves={text("curve"): [(0, 3.0), (10, 2.0)]},
        data=[(text("data name"), text("data value"))],
        lineage=[(text("lineage name"), text("lineage value"))],
        date=text("date"),
        reports=text("../reports.html#"),
    )
    return Verdict(checks), {text("accuracy"): result}, seen, subject


def test_every_text_of_the_data_is_escaped():
    places = []

    def hostile(place):
        places.append(f"{place} {HOSTILE}")
        return places[-1]

    page = report.page(*_report_of(hostile))
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    parser = Tags(page)
    # Nothing that the texts hold is a tag or an attribute, and none of them is lost.
    assert parser.tags == Tags(report.page(*_report_of(str))).tags
    assert len(places) == len(set(places))
    in_values = {f"{name} unit" for name in ("worst", "right", "wrong", "searched")}
    in_values = {f"{place} {HOSTILE}" for place in (*in_values, "../reports.html#")}
    assert in_values <= parser.values
    # The unit of an image of a search stands in no text.
    only_values = {f"{place} {HOSTILE}" for place in ("searched unit", "../reports.html#")}
    assert [text for text in places if text not in parser.text and text not in only_values] == []


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        " JavaScript:alert(1)//",
        "java\nscript:/alert(1)",
        "\x01javascript:alert(1)",
        "data:text/html,x",
        "javascript://host/%0aalert(1)",
    ],
)
def test_an_address_that_runs_something_is_no_link(address):
    page = report.page(Verdict(()), {}, findings.Findings(), Subject("m", reports=address))
    assert "href" not in page
    assert "script:" not in page
    assert "data report, model card and all else of the run" in page


@pytest.mark.parametrize("address", ["../reports.html", "https://host:8/a", "a/b:c", "/x?a&b"])
def test_an_address_of_a_page_is_a_link(address):
    page = report.page(Verdict(()), {}, findings.Findings(), Subject("m", reports=address))
    assert address in Tags(page).values


def test_what_is_missing_is_an_error():
    content = report.content(*_report_of(str))
    assert report.TEMPLATE.render(content) == report.page(*_report_of(str))
    # What a blessed model is worth is not said of one that is not.
    every = [path for path in paths(content) if path != ("verdict", "worth")]
    assert ("metrics", "rows", 0, "significant") in every
    assert ("searches", 0, "images", 0, 0, "address") in every
    for path in every:
        with pytest.raises(jinja2.UndefinedError):
            report.TEMPLATE.render(without(content, path))
