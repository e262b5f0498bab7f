import dataclasses

import pytest

from sigline.schemas.labels import LabelSet
from sigline.trainer import config
from sigline.trainer.run import Job
from sigline.trainer.weights.model_weights import Weights

LABELS = LabelSet(("a", "b", "c"))


@pytest.fixture
def job(split_dir):
    """A student of images alone with three classes, and a teacher with a head."""
    settings = config.tiny(config.load_recipe("distill_vit_s16"))
    settings = config.override(settings, ["image.classes=3"])
    return Job(settings, split_dir, None, "code", teachers={"vit": Weights(settings, {})})


def test_label_set_of_another_size_is_refused_before_anything_is_trained(job):
    with pytest.raises(ValueError, match=r"classes=2, image.classes=3"):
        dataclasses.replace(job, labels=LabelSet(("a", "b")))


def test_labels_are_part_of_a_run_only_if_a_teacher_reads_them(job):
    # They name the head's classes in the exported model, which can be changed later.
    assert dataclasses.replace(job, labels=LABELS).identity == job.identity
    reads = config.tiny(config.load_recipe("siglip_demo"))
    texts = dataclasses.replace(job, teachers={"vit": Weights(reads, {})})
    assert dataclasses.replace(texts, labels=LABELS).identity != texts.identity


def test_run_is_named_by_all_that_it_is_made_of(job):
    other = dataclasses.replace(job.config, seed=1)
    taught = {"vit": Weights(other, {})}
    changed = [
        dataclasses.replace(job, config=other),
        dataclasses.replace(job, teachers=taught),
        dataclasses.replace(job, vocabulary=b"v"),
        dataclasses.replace(job, weights=Weights(other, {})),
    ]
    assert len({x.identity for x in [job, *changed]}) == 5
    newer = dataclasses.replace(job, code_digest="newer")
    assert newer.identity == job.identity
    assert newer.key != job.key
    assert taught["vit"].digest() == changed[1].provenance["teacher_digest/vit"]
