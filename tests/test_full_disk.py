"""Commands on a disk that is full: a sentence, nothing half, and the same command goes on later."""

import errno
import shutil
import subprocess

import pytest
import tensorflow as tf

from sigline import cli
from sigline.schemas import full_disk
from sigline.trainer.models import two_tower
from sigline.trainer.weights import weight_folders
from sigline.trainer.weights.model_weights import Weights


class _Disk:
    """A file system of its own in memory, of a size that can change."""

    def __init__(self, folder):
        self.folder = folder

    def resize(self, kibibytes, *more):
        options = ["-o", ",".join([*more, f"size={kibibytes}k"]), "tmpfs", str(self.folder)]
        return subprocess.run(["mount", "-t", "tmpfs", *options], check=False, stderr=-1)


@pytest.fixture
def disk(tmp_path):
    found = _Disk(tmp_path / "disk")
    found.folder.mkdir()
    made = found.resize(64)
    if made.returncode:
        pytest.skip(f"cannot mount a file system of a small size: {made.stderr.decode().strip()}")
    yield found
    subprocess.run(["umount", "--lazy", str(found.folder)], check=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, contract_config, vocabulary):
    folder = tmp_path_factory.mktemp("weights") / "weights"
    model = two_tower.build(contract_config)
    values = {name: value.numpy() for name, value in two_tower.named_variables(model).items()}
    weight_folders.save(folder, Weights(contract_config, values, vocabulary))
    return folder


def _commands(folder, examples, weights, contract_base, vocabulary_file):
    tiny = [
        "steps=2",
        "global_batch_size=16",
        "run.jit_compile=false",
        "image.depth=1",
        "text.depth=1",
    ]
    tiny = [f"--set={item}" for item in tiny]
    return {
        "scenes": ["data", "scenes", "--output", folder / "scenes", "--count", "100"],
        "select": [
            *("data", "select", "--data", examples, "--output", folder / "selected"),
            *("--model", contract_base / "3", "--similarity-fraction", "0.5"),
        ],
        "embed": [
            *("data", "embed", "--data", examples, "--output", folder / "embedded"),
            *("--weights", weights),
        ],
        "train": [
            *("train", "--recipe", "siglip_demo", "--data", examples / "Split-train"),
            *("--vocabulary", vocabulary_file, "--output", folder / "run", *tiny),
        ],
        "export": ["export", "--weights", weights, "--output", folder / "model"],
        "import": ["weights", "import", weights, "--output", folder / "weights"],
        "weights": ["weights", "export", weights, "--output", folder / "theirs"],
        "index": [
            *("index", "--model", contract_base / "3", "--data", examples),
            *("--output", folder / "index", "--split", "train", "--min-recall", "0.01"),
        ],
    }


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("scenes", 100),
        ("select", 4),
        ("embed", 200),
        ("train", 200),
        ("export", 400),
        ("import", 200),
        ("weights", 200),
        ("index", 300),
    ],
)
def test_command_on_a_full_disk_says_so_and_completes_once_there_is_room(
    disk, examples, weights, contract_base, vocabulary, tmp_path, name, size, capsys
):
    (tmp_path / "vocabulary.model").write_bytes(vocabulary)
    command = _commands(
        disk.folder,
        examples,
        weights,
        contract_base,
        tmp_path / "vocabulary.model",
    )[name]
    output = disk.folder / command[command.index("--output") + 1]
    disk.resize(size, "remount")
    assert cli.main([str(item) for item in command]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("sigline: ")
    assert str(disk.folder) in said
    assert said.endswith("is full. Make room and run the same command again.")
    assert name == "train" or not output.exists()
    assert not [path for path in disk.folder.rglob(".tmp-*")]
    disk.resize(64 * 1024, "remount")
    assert cli.main([str(item) for item in command]) == 0
    assert output.is_dir()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "The disk of /a/b is full."),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "The disk is full."),
        (
            shutil.Error([("x", "y", "[Errno 28] No space left on device: '/a/y'")]),
            "The disk is full.",
        ),
        (
            tf.errors.ResourceExhaustedError(None, None, "/a/b.gz; No space left on device"),
            "The disk of /a/b.gz is full.",
        ),
        (RuntimeError("Error when executing query: database or disk is full"), "The disk is full."),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), None),
        (RuntimeError("The queue is full."), None),
    ],
)
def test_errors_of_full_disks_are_one_sentence(error, said):
    expected = said and f"{said} {full_disk.ADVICE}"
    assert full_disk.sentence(error) == expected
    wrapped = RuntimeError("[while running 'Ingest']")
    wrapped.__cause__ = error
    assert full_disk.sentence(wrapped) == expected
