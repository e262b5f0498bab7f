"""Unknown names lead to the known one that was meant."""

import pytest

from sigline.schemas import strict, suggestions
from sigline.trainer import config

KEYS = strict.keys(config.TrainConfig)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rate", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("optim.weight_decay", "optimizer.weight_decay"),
        ("Weight_Decay", "optimizer.weight_decay"),
        ("warmup", "optimizer.warmup_steps"),
        ("batch_size", "global_batch_size"),
        ("num_steps", "steps"),
        ("stepz", "steps"),
        ("image_size", "image.size"),
        ("vocab_size", "text.vocabulary_size"),
        ("text.vocab_size", "text.vocabulary_size"),
        ("image.depht", "image.depth"),
        ("text.depht", "text.depth"),
        ("presicion", "precision"),
        ("xyzzy", None),
    ],
)
def test_keys_of_a_configuration(name, meant):
    assert suggestions.nearest(name, KEYS) == meant


def test_a_sentence_ends_with_the_name():
    assert suggestions.did_you_mean("siglip_dem", ["siglip_demo", "lit_b16"]) == (
        " Did you mean siglip_demo?"
    )
    assert suggestions.did_you_mean("xyzzy", ["siglip_demo"]) == ""
    assert suggestions.did_you_mean("xyzzy", []) == ""
