from xml.etree import ElementTree

from sigline.components.evaluate import summary
from sigline.components.evaluate.gate import Check, Verdict
from sigline.components.evaluate.results import Result

PASSED = Check("acc", "at least", 0.95, 0.9, passed=True)
FAILED = Check("a|b", "at most", 0.2, 0.1, passed=False, note="difference +0.1 to +0.2")
VERDICT = Verdict((PASSED, FAILED))


def test_table_has_failures_first():
    lines = summary.table(VERDICT).splitlines()
    assert lines[0].split() == ["metric", "value", "rule", "limit"]
    assert lines[1].split() == ["FAIL", "a|b", "0.2", "at", "most", "0.1"]
    assert lines[2].startswith("pass  acc     0.95")


def test_junit_has_a_case_for_each_check():
    root = ElementTree.fromstring(summary.junit(VERDICT, seconds=1.5))
    (suite,) = root
    assert (root.tag, suite.get("tests"), suite.get("failures")) == ("testsuites", "2", "1")
    assert suite.get("time") == "1.500"
    good, bad = suite
    assert good.get("name") == "acc at least"
    assert good.find("failure") is None
    assert bad.find("failure").get("message") == FAILED.describe()


def test_junit_is_xml_whatever_a_source_is_called():
    check = Check("acc/source=a\x01<b>", "at least", 0.1, 0.5, passed=False)
    root = ElementTree.fromstring(summary.junit(Verdict((check,)), seconds=1.0))
    assert root[0][0].get("name") == "acc/source=a?<b> at least"


def test_markdown_says_what_failed_and_by_how_much():
    results = {
        "zero_shot_accuracy": Result(0.9, 0.8, 0.95, 50, 0.1, 0.8, 0.1, 0.02, 0.2),
        "image_to_text_recall@1": Result(0.5, 0.4, 0.6, 50),
    }
    text = summary.markdown(VERDICT, results, title="candidate")
    assert text.startswith("## candidate: not blessed\n\n- a\\|b fails: 0.2, at most: 0.1")
    assert "| FAIL | a\\|b | 0.2 | at most | 0.1 | difference +0.1 to +0.2 |" in text
    assert "| zero_shot_accuracy | 0.9 (0.8 to 0.95) | 0.1 | 0.8 | +0.1 (+0.02 to +0.2) |" in text
    assert "| image_to_text_recall@1 | 0.5 (0.4 to 0.6) |  |  |  |" in text


def test_blessing_lists_no_reasons():
    text = summary.markdown(Verdict((PASSED,)), {}, title="candidate")
    assert text.startswith("## candidate: blessed\n\n| |")
