"""Settings of every test session: quiet imports, the order of files, what all tests share."""

import fcntl
import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sigline import quiet

quiet.silence()
# Beam makes thousands of argument parsers, each of which looks for translations of its words.
os.environ.setdefault("LANGUAGE", "C")

NOTO_EMOJI_VARIABLE = "SIGLINE_NOTO_EMOJI"

# Files that take longest, in the order of what they take; they are begun first, so that no worker
# is left alone with one of them at the end.
LONGEST = (
    "integration/test_kubeflow.py",
    "trainer/training/test_loop.py",
    "integration/test_kubeflow_runs.py",
    "trainer/recipes/test_recipes.py",
    "trainer/losses/test_replicas.py",
    "integration/test_kill.py",
    "components/test_ingest_transforms.py",
    "integration/test_gate.py",
    "trainer/losses/test_pair_losses.py",
    "components/evaluate/test_judge.py",
    "integration/test_pipeline.py",
    "trainer/models/test_transformer.py",
    "integration/test_spans.py",
    "integration/test_image_models.py",
    "integration/test_new_project.py",
    "trainer/inputs/test_data.py",
    "serving/test_infra_check.py",
    "trainer/export/test_saved_model.py",
    "pipeline/test_soup_command.py",
    "components/test_curate.py",
    "trainer/objectives/test_classify.py",
    "trainer/objectives/test_seam.py",
    "components/test_ingest_groups.py",
    "trainer/training/test_steps.py",
    "pipeline/test_trainer_task.py",
    "components/test_index.py",
    "components/test_fetch.py",
    "trainer/inputs/test_repairs.py",
    "trainer/objectives/test_distillation.py",
    "components/test_planted_faults.py",
    "test_full_disk.py",
    "trainer/inputs/test_usable.py",
    "serving/test_search.py",
    "trainer/inputs/test_vocabularies.py",
    "components/test_fingerprints.py",
    "serving/test_hostile.py",
    "components/test_embed.py",
    "serving/test_server.py",
    "trainer/training/test_soups.py",
    "trainer/weights/test_big_vision.py",
    "serving/test_cores.py",
    "serving/test_search_page.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names a parameter of many bytes by its argument, as pytest does for objects.

    Compressed bytes hold the time at which they were made, and all workers must give a test the
    same name.
    """
    return argname if isinstance(val, bytes) and len(val) > 16 else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of the longest files first, all of them slow; leaves others as they are."""
    here = Path(__file__).parent
    rank = {here / name: number for number, name in enumerate(LONGEST)}
    for item in items:
        if item.path in rank:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Has all imported that tests of whole pipelines fork, before another test forks less.

    What was imported stays, and graphs are made of many small objects: looking through all of them
    as often as Python does by default takes a twentieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    integration = Path(__file__).parent / "integration"
    if any(integration in item.path.parents for item in session.items):
        from sigline.pipeline.kubeflow import preloading

        preloading.prepare()


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Returns a function that makes a folder once for all workers of pytest-xdist.

    The first worker that asks makes it, others wait for it. Tests read it only.
    """
    base = tmp_path_factory.getbasetemp()
    # The base folders of workers lie in that of the session.
    top = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def _make(name: str, make: Callable[[Path], object]) -> Path:
        folder = top / f"shared-{name}"
        with open(top / f"shared-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                partial = folder.with_name(f"{folder.name}.partial")
                # What a worker leaves that failed here.
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                make(partial)
                partial.rename(folder)
        return folder

    return _make


@pytest.fixture(scope="session")
def noto_emoji() -> Path:
    """The Noto emoji shards: real pictures with names in eleven languages."""
    folder = os.environ.get(NOTO_EMOJI_VARIABLE)
    if not folder:
        pytest.skip(f"${NOTO_EMOJI_VARIABLE} does not name a folder with the Noto emoji shards")
    return Path(folder)


@pytest.fixture(scope="session")
def vocabulary() -> bytes:
    """A vocabulary of the scenes' captions."""
    import scene_data

    return scene_data.vocabulary()


@pytest.fixture(scope="session")
def scene_records():
    """A hundred scenes as records, encoded for TFRecords."""
    import scene_data

    return scene_data.records()


@pytest.fixture(scope="session")
def split_dir(tmp_path_factory, scene_records) -> Path:
    """The scenes as a training split of two shards."""
    import scene_data

    return scene_data.write_split(tmp_path_factory.mktemp("examples"), scene_records)


@pytest.fixture(scope="session")
def examples(tmp_path_factory, split_dir) -> Path:
    """The scenes with a manifest, as ingest writes it."""
    import json
    import shutil

    from sigline.schemas import digests, tf_example

    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(split_dir, folder / "Split-train")
    shards = {
        path.name: {
            "records": sum(1 for _ in tf_example.read_shard(str(path))),
            "sha256": digests.file_digest(path),
        }
        for path in sorted((folder / "Split-train").iterdir())
    }
    splits = {"train": {"shards": shards, "sources": {"scenes": 100}}}
    (folder / "manifest.json").write_text(json.dumps({"splits": splits}))
    return folder


@pytest.fixture(scope="session")
def contract_config():
    """The configuration of the tiny model of the contract."""
    from sigline.trainer import config

    tiny = config.tiny(config.load_recipe("siglip_demo"))
    return config.override(tiny, ["image.depth=1", "text.depth=1"])


@pytest.fixture(scope="session")
def contract_base(make_once, vocabulary, contract_config) -> Path:
    """A folder with version 3 of a tiny model of the contract."""

    def _make(base: Path) -> None:
        from sigline.components.scenes import grammar
        from sigline.trainer.export import saved_model
        from sigline.trainer.models import two_tower

        model, labels = two_tower.build(contract_config), grammar.label_set()
        saved_model.export(
            base / "3", model, config=contract_config, vocabulary=vocabulary, labels=labels
        )

    return make_once("contract", _make)


@pytest.fixture(scope="session")
def model_without_classes(make_once, vocabulary, contract_config) -> Path:
    """The tiny model of the contract without classes."""

    def _make(folder: Path) -> None:
        from sigline.trainer.export import saved_model
        from sigline.trainer.models import two_tower

        model = two_tower.build(contract_config)
        saved_model.export(folder / "model", model, config=contract_config, vocabulary=vocabulary)

    return make_once("without-classes", _make) / "model"
