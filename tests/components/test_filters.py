import io

import numpy as np
import pytest
from PIL import Image

from sigline.components.ingest import filters, fingerprints
from sigline.components.ingest.filters import Caption, FilterConfig
from sigline.components.ingest.reasons import Refusal


def _kept(text, language="und", **options):
    return filters.kept_captions([Caption(text, language)], FilterConfig(**options))


def _reason(text, language="und", **options):
    with pytest.raises(Refusal) as caught:
        _kept(text, language, **options)
    return caught.value.reason


def test_nothing_is_left_out_by_default():
    assert _kept("IMG_1.jpg") == [Caption("IMG_1.jpg", "und")]


@pytest.mark.parametrize(
    "text",
    [
        "IMG_1234.JPG",
        "DSC00042",
        "dscn 0012",
        "photo (3)",
        "Screenshot 2024-05-01",
        "a-file.webp",
        "PXL_20230101",
        "untitled 2",
    ],
)
def test_names_of_files_are_told(text):
    assert _reason(text, file_names=True) == "file_name_text"


@pytest.mark.parametrize(
    "text", ["image of a dog", "a photo of 3 cats", "the file dog.jpg shows a dog", "dsc", "2024"]
)
def test_captions_with_such_words_are_no_names_of_files(text):
    assert _kept(text, file_names=True)


@pytest.mark.parametrize(
    "text",
    [
        "Click here to enlarge",
        "Click to enlarge this picture",
        "No image available",
        "Image not available",
        "stock photo",
        "All rights reserved. Somebody 2020",
        "https://example.org/a.html",
        "Pin this",
    ],
)
def test_boilerplate_is_told(text):
    assert _reason(text, boilerplate=True) == "boilerplate_text"


@pytest.mark.parametrize("text", ["a logo of a bank", "no image of the war was taken", "the image"])
def test_captions_with_such_words_are_no_boilerplate(text):
    assert _kept(text, boilerplate=True)


def test_addresses_that_run_into_each_other_cost_no_power_of_time():
    text = "http://a" * 500 + " and words"
    assert _kept(text, boilerplate=True)


def test_own_patterns_match_whole_captions():
    assert _reason("Buy now!", patterns=("buy now.?",)) == "boilerplate_text"
    assert _kept("buy now and here", patterns=("buy now.?",))


def test_datacomps_basic_rules():
    basic = {"languages": ("en",), "language_confidence": 0.0, "min_words": 3, "min_chars": 6}
    assert _kept("a large red house by the river", **basic)
    assert _reason("red house", **basic) == "text_too_short"
    assert _reason("a b c", **basic) == "text_too_short"
    assert _reason("ein altes rotes Haus am Fluss", **basic) == "other_language"


def test_language_of_the_source_counts_and_others_are_identified():
    assert _kept("ein Haus", "en-GB", languages=("en",)) == [Caption("ein Haus", "en-GB")]
    assert _reason("a house", "de", languages=("en",)) == "other_language"
    text = "a photograph of the old house by the river in the morning"
    assert _kept(text, languages=("en",)) == [Caption(text, "en")]


def test_language_that_is_in_doubt_stays_unknown():
    assert _kept("a dog", languages=("en",)) == [Caption("a dog", "und")]


def test_other_captions_stay():
    captions = [Caption("IMG_1.jpg", "und"), Caption("a dog on the beach", "und")]
    config = FilterConfig(file_names=True, min_words=2)
    assert filters.kept_captions(captions, config) == captions[1:]


def test_first_reason_is_that_of_the_pair():
    captions = [Caption("IMG_1.jpg", "und"), Caption("dog", "und")]
    with pytest.raises(Refusal) as caught:
        filters.kept_captions(captions, FilterConfig(file_names=True, min_words=1, min_chars=5))
    assert caught.value.reason == "file_name_text"


def test_html_and_invisible_characters_are_taken_out():
    config = FilterConfig(clean_text=True)
    assert filters.clean("a<br/>b &lt;3 &amp;\u200b c\ufeff", config) == "a b <3 & c"
    assert filters.clean("a<br/>b", FilterConfig()) == "a<br/>b"
    # What languages need to be written is no invisible character.
    assert filters.clean("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", config).count("\u200c")


def test_tags_without_an_end_cost_no_square_of_time():
    text = "<" * 200_000
    assert filters.clean(text, FilterConfig(clean_text=True)) == text


def test_tokens_are_counted_by_the_vocabulary(tmp_path, vocabulary):
    path = tmp_path / "vocabulary.model"
    path.write_bytes(vocabulary)
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    text = "a small red circle left of a large blue square"
    number = len(pieces.encode(text))
    options = {"vocabulary": str(path)}
    assert _kept(text, max_tokens=number, **options)
    assert _reason(text, max_tokens=number - 1, **options) == "too_many_tokens"


def _plain(pixels):
    return fingerprints.views(Image.fromarray(pixels), mirrored=False)[0]


def test_pictures_of_one_color_are_blank():
    config = FilterConfig(min_deviation=2.0)
    noise = np.random.default_rng(0).integers(0, 3, (64, 64, 3), np.uint8)
    with pytest.raises(Refusal) as caught:
        filters.check_picture(_plain(noise + 100), config)
    assert caught.value.reason == "blank_image"
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:, 1] = 40
    filters.check_picture(_plain(half), config)


@pytest.mark.parametrize("value", [0.5, "0.5", 0, -1])
def test_scores_within_bounds_pass(value):
    config = FilterConfig(scores={"punsafe": {"max": 0.5}})
    assert filters.scored(b"", ["a"], {"punsafe": value}, config) == {"punsafe": value}


@pytest.mark.parametrize("value", [0.51, "high", None, True, [0.1], float("nan")])
def test_scores_out_of_bounds_are_refused(value):
    config = FilterConfig(scores={"punsafe": {"max": 0.5}})
    with pytest.raises(Refusal) as caught:
        filters.scored(b"", ["a"], {"punsafe": value}, config)
    assert caught.value.reason == "score_out_of_range"


def test_scorers_add_columns_that_can_be_bounded():
    config = FilterConfig(scorers=("statistics:mean",))
    with pytest.raises(Refusal) as caught:
        filters.scored(b"", ["a"], {}, config)
    assert caught.value.reason == "scorer_failed"
    assert "statistics:mean" in str(caught.value)


def test_scorer_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_scorer.py").write_text(
        "def score(image, texts, metadata):\n    return {'words': len(texts[0].split())}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = FilterConfig(scorers=("own_scorer:score",), scores={"words": {"min": 2}})
    assert filters.scored(b"", ["a dog"], {"x": 1}, config) == {"x": 1, "words": 2.0}
    with pytest.raises(Refusal, match=r"words is 1\.0"):
        filters.scored(b"", ["dog"], {}, config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patterns": ("(",)}, "must be regular expressions"),
        ({"scores": {"a": {"least": 1}}}, "must give min, max or both"),
        ({"scores": {"a": 1}}, "must give min, max or both"),
        ({"max_tokens": 5}, "must be given together"),
        ({"max_repeats": 0}, "at least 1"),
        ({"min_words": "three"}, "filters.min_words must be a number"),
        ({"scorers": ("nowhere:f",)}, "module:function"),
        ({"scorers": ("statistics",)}, "module:function"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FilterConfig(**options)


def test_blank_png_of_any_mode_is_blank():
    buffer = io.BytesIO()
    Image.new("L", (30, 30), 255).save(buffer, "PNG")
    from sigline.components.ingest import images

    checked = images.check_image(buffer.getvalue(), images.ImageLimits())
    with pytest.raises(Refusal):
        filters.check_picture(checked.views[0], FilterConfig(min_deviation=0.5))
