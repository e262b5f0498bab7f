"""Trees of classes, and label sets that hold one."""

import json

import pytest

from sigline.schemas import class_tree
from sigline.schemas.labels import LabelSet

NAMES = ("animal", "plant", "dog", "cat", "tree", "poodle", "beagle")
PARENTS = (-1, -1, 0, 0, 1, 2, 2)


def test_level_is_the_number_of_classes_above():
    assert class_tree.levels(PARENTS) == (0, 0, 1, 1, 1, 2, 2)
    # A class may come before the one above it.
    assert class_tree.levels((2, -1, 1)) == (2, 0, 1)
    assert class_tree.levels(()) == ()
    chain = tuple(range(-1, 4_999))
    class_tree.check(chain, num_classes=5_000)
    assert class_tree.levels(chain)[-1] == 4_999


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([-1, 0], "one entry for each class.*Received: 2 parents, 3 classes"),
        ([-1, 0, 3], r"class ids below 3, or -1 at the top. Received: parents\[2\]=3"),
        ([-1, 0, -2], r"parents\[2\]=-2"),
        ([-1, 0, True], r"whole numbers. Received: parents\[2\]=True"),
        ([-1, 0, "b"], r"whole numbers. Received: parents\[2\]='b'"),
        ([-1, 0, 1.0], r"whole numbers. Received: parents\[2\]=1.0"),
        ([-1, 1, 0], "not round in a circle. Received: 1 -> 1"),
        ([2, -1, 0], "not round in a circle. Received: 0 -> 2 -> 0"),
        ("012", "must be a list of class ids. Received: parents='012'"),
    ],
)
def test_what_is_no_tree_is_refused(parents, message):
    with pytest.raises(ValueError, match=message):
        LabelSet.from_json(json.dumps({"names": ["a", "b", "c"], "parents": parents}))


def test_circle_of_many_classes_is_shown_in_part():
    parents = tuple((i + 1) % 50 for i in range(50))
    with pytest.raises(ValueError, match=r"Received: 0 -> 1 -> .* -> 9 -> \.\.\.$"):
        class_tree.check(parents, num_classes=50)


def test_label_set_keeps_its_tree_and_without_one_its_text():
    labels = LabelSet(NAMES, parents=PARENTS)
    assert LabelSet.from_json(labels.to_json()) == labels
    # Digests of models hold this text.
    flat = json.loads(LabelSet(("a",)).to_json())
    assert flat == {"names": ["a"], "templates": ["a photo of {}"]}
