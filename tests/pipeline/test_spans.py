import pytest

from sigline.pipeline import environment

pytestmark = pytest.mark.tfx


def _folders(base, *names):
    for name in names:
        (base / name).mkdir(parents=True)
        (base / name / "pairs.tar").write_bytes(b"x")


def _resolve(pattern, span=None):
    from sigline.pipeline import spans

    return spans.resolve(str(pattern), span)


def test_folder_without_spans_is_taken_as_it_is(tmp_path):
    assert _resolve(tmp_path / "data") == (str(tmp_path / "data"), 0, 0)


def test_newest_span_is_taken_unless_one_is_named(tmp_path):
    _folders(tmp_path, "span-2", "span-10", "span-9", "other")
    assert _resolve(tmp_path / "span-{SPAN}") == (str(tmp_path / "span-10"), 10, 0)
    assert _resolve(tmp_path / "span-{SPAN}", 2) == (str(tmp_path / "span-2"), 2, 0)


def test_newest_version_is_taken(tmp_path):
    _folders(tmp_path, "s1/v1", "s1/v2", "s2/v7", "s2/v11")
    pattern = tmp_path / "s{SPAN}" / "v{VERSION}"
    assert _resolve(pattern) == (str(tmp_path / "s2" / "v11"), 2, 11)
    assert _resolve(pattern, 1) == (str(tmp_path / "s1" / "v2"), 1, 2)


@pytest.mark.parametrize("span", [None, 5])
def test_missing_span_is_refused(tmp_path, span):
    (tmp_path / "span-1").mkdir()
    with pytest.raises(ValueError, match=r"input_base must lead to .*span.* with files in it"):
        _resolve(tmp_path / "span-{SPAN}", span)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("window: 0\n", "window must be at least 1"),
        ("window: 2\n", "needs {SPAN}"),
        ("span: 2\n", "needs {SPAN}"),
        ("window: true\n", "window must be a whole number"),
        ("input_base: data/{SPAN}\nwindow: 2\nembed_images: true\n", "embeds one span"),
    ],
)
def test_wrong_environment_is_refused(tmp_path, text, message):
    values = {"pipeline_name": "p", "root": "r", "input_base": "data", "recipe": "siglip_demo"}
    lines = "".join(f"{k}: {v}\n" for k, v in values.items() if f"{k}:" not in text)
    path = tmp_path / "e.yaml"
    path.write_text(lines + text)
    with pytest.raises(ValueError, match=message):
        environment.load(path)
