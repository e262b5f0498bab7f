"""The contact sheet asks for what there are pictures of."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sigline import demo
from sigline.components.scenes import generate, grammar


@pytest.fixture(scope="module")
def records(scene_records):
    """Five hundred scenes, a tenth of them of combinations that training never shows."""
    made = []
    for index in range(500):
        rng = np.random.default_rng(index)
        held_out = index % 10 == 0
        source = generate.HELD_OUT_SOURCE if held_out else generate.TRAIN_SOURCE
        captions = grammar.sample_scene(rng, held_out=held_out).captions()
        made.append(replace(scene_records[0], key=str(index), source=source, text=captions))
    return made


def test_every_query_has_right_pictures(records):
    queries = demo.queries_for(records)
    assert len(queries) == len(set(queries)) == 6
    for query in queries:
        assert any(demo.fits(query, item) for item in records), query


def test_queries_are_of_all_kinds(records):
    plain, large, small, above, beside, held_out = demo.queries_for(records)
    assert tuple(plain.split()[1:]) in grammar.SEEN
    assert tuple(held_out.split()[1:]) in grammar.HELD_OUT
    assert large.startswith("a large ")
    assert small.startswith("a small ")
    assert re.search(" (above|below) ", above)
    assert re.search(" (left|right) of ", beside)


def test_the_same_pictures_are_asked_for_the_same(records):
    assert demo.queries_for(records[::-1]) == demo.queries_for(records)


def test_the_readme_names_a_picture_of_what_it_asks_for():
    readme = (Path(demo.__file__).parent.parent / "README.md").read_text()
    key, text = re.search(r'--image runs/demo/images/scenes-(\d+)\.png "([^"]+)"', readme).groups()
    pair = generate._make_pair(demo.SEED, int(key), held_out=False)
    assert text in pair.captions
