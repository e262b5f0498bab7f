"""The sentence beside a verdict; its figures are worked out by hand."""

import pytest

from sigline.schemas import strength


def _metrics(**values):
    return {
        name.replace("_at_", "@"): dict(zip(("value", "chance", "baseline"), item, strict=False))
        for name, item in values.items()
    }


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (
            _metrics(image_to_text_recall_at_1=(0.068, 0.003, 0.2), zero_shot_accuracy=(0.9, 0.01)),
            "far above chance, below 35% of what the last model reached: "
            "image to text recall@1 6.8% where chance has 0.3%",
        ),
        (
            _metrics(zero_shot_accuracy=(0.30, 0.10)),
            "3.0 times chance, no last model to compare with: "
            "zero-shot accuracy 30.0% where chance has 10.0%",
        ),
        (
            _metrics(zero_shot_accuracy=(0.12, 0.10, 0.11)),
            "hardly above chance, no worse than the last model: "
            "zero-shot accuracy 12.0% where chance has 10.0%",
        ),
        (
            _metrics(text_to_image_recall_at_1=(0.002, 0.003, 0.002)),
            "not above chance, no worse than the last model: "
            "text to image recall@1 0.2% where chance has 0.3%",
        ),
        (
            _metrics(zero_shot_accuracy=(0.5,)),
            "no last model to compare with: zero-shot accuracy 50.0%",
        ),
        # The one that is nearest to chance counts, not the best.
        (
            _metrics(zero_shot_accuracy=(0.9, 0.01), text_to_image_recall_at_1=(0.09, 0.03, 0.1)),
            "3.0 times chance, below 91% of what the last model reached: "
            "text to image recall@1 9.0% where chance has 3.0%",
        ),
        ({}, ""),
        ({"zero_shot_accuracy": {"value": None}}, ""),
        ({"leaked_share": {"value": 0.0}}, ""),
    ],
)
def test_sentences(metrics, expected):
    assert strength.sentence(metrics) == expected
