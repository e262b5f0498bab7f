"""What a cluster gives the tasks, as environments say it."""

import pytest

from sigline.pipeline import environment
from sigline.pipeline.kubeflow import settings


def test_own_resources_are_added_to_those_of_all():
    found = settings.read(
        {
            "image": "a/b:1",
            "resources": {
                "default": {"cpu": 2, "memory": "8Gi"},
                "Trainer": {
                    "cpu": 8,
                    "accelerator": "google.com/tpu",
                    "accelerators": 4,
                    "node_selector": {"cloud.google.com/gke-tpu-topology": "2x2"},
                },
            },
        }
    )
    trainer, other = found.resources_of("Trainer"), found.resources_of("CheckData")
    assert (trainer.cpu, trainer.memory, trainer.accelerators) == ("8", "8Gi", 4)
    assert (other.cpu, other.accelerator) == ("2", "")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, "no `kubeflow` section"),
        ({}, "Missing key kubeflow.image"),
        ({"image": ""}, "kubeflow.image must name"),
        (
            {"image": "a", "imagee": "b"},
            "Unknown key kubeflow.imagee. .* Did you mean kubeflow.image",
        ),
        ({"image": "a", "retries": "many"}, "kubeflow.retries must be a whole number"),
        ({"image": "a", "retries": -1}, "must not be negative"),
        ({"image": "a", "secrets": {"KEY": "name"}}, "must be SECRET/KEY"),
        ({"image": "a", "resources": {"Trainer": {"cpu": "many"}}}, "cpu must be"),
        ({"image": "a", "resources": {"Trainer": {"memory": "8"}}}, "memory must be"),
        ({"image": "a", "resources": ["x"]}, "kubeflow.resources must be keys and values"),
        (
            {"image": "a", "resources": {"Trainer": {"gpu": 1}}},
            "Unknown key kubeflow.resources.Trainer.gpu",
        ),
        ({"image": "a", "resources": {"Trainer": {"accelerators": 1}}}, "given together"),
    ],
)
def test_wrong_sections_are_named(section, message):
    with pytest.raises(ValueError, match=message):
        settings.read(section)


@pytest.mark.parametrize("name", ["kubeflow", "vertex", "flink", "spark", "dataflow"])
def test_packaged_environments_have_a_section_that_can_be_read(name):
    assert settings.read(environment.load(name).kubeflow).image
