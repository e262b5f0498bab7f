"""`sigline ask`: what it says of how sure it is, and of what it passed over."""

import argparse

import numpy as np
import pytest

from sigline import cli
from sigline.commands import ask
from sigline.schemas import signatures
from sigline.serving.client import Client, RequestError, image_files, passed_over
from sigline.serving.client.transport import Options

PNG = b"\x89PNG"


class Server:
    """Answers `similarity` with given logits, through a sigmoid or a softmax."""

    def __init__(self, logits, *, softmax=False):
        self._logits, self._softmax = np.array([logits], np.float32), softmax

    def predict(self, signature, inputs):
        assert signature == signatures.SIMILARITY
        raised = np.exp(self._logits)
        share = raised / raised.sum(axis=1, keepdims=True)
        probabilities = share if self._softmax else raised / (1 + raised)
        return {signatures.LOGITS: self._logits, signatures.PROBABILITIES: probabilities}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    return path


def _compare(server, picture, texts, threshold=0.05):
    arguments = argparse.Namespace(image=picture, texts=texts, threshold=threshold)
    ask._compare(server, arguments)


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (1.0, "  1.0000"),
        (0.41994, "  0.4199"),
        (0.0001, "  0.0001"),
        (0.00009, " 9.0e-05"),
        (3.2e-12, " 3.2e-12"),
        (0.0, "  0.0000"),
    ],
)
def test_small_probabilities_are_readable(probability, text):
    assert ask.readable(probability) == text


def test_texts_come_with_their_probabilities_and_nothing_is_said_where_one_fits(picture, capsys):
    _compare(Server([-12.0, 0.0]), picture, ["a dog", "a cat"])
    out, err = capsys.readouterr()
    # 1 / (1 + e^12) = 6.144e-6.
    assert out == "  0.5000  a cat\n 6.1e-06  a dog\n"
    assert err == ""


def test_it_says_when_no_text_fits(picture, capsys):
    _compare(Server([-12.0, -5.0]), picture, ["a dog", "a cat"])
    # 1 / (1 + e^5) = 0.00669.
    assert capsys.readouterr().err == (
        "No text fits: the best has a probability of 0.0067, below 0.05 (--threshold).\n"
    )
    _compare(Server([-12.0, -5.0]), picture, ["a dog", "a cat"], threshold=0.001)
    assert capsys.readouterr().err == ""


def test_a_softmax_says_nothing_of_whether_a_text_fits(picture, capsys):
    texts = [f"text {i}" for i in range(40)]
    _compare(Server([0.0] * 40, softmax=True), picture, texts)
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "  0.0250  text 0"
    assert err == ""


class Embedder(Client):
    """Reads what begins as a PNG does; the vector is the number behind it."""

    def __init__(self):
        """Opens no connection."""

    def predict(self, signature, inputs):
        if signature == signatures.EMBED_TEXT:
            return {signatures.EMBEDDING: np.ones((1, 1), np.float32)}
        images = inputs[signatures.IMAGE_BYTES]
        valid = np.array([image.startswith(PNG) for image in images], bool)
        vectors = [
            [float(x[4:] or 0) if good else 0] for x, good in zip(images, valid, strict=True)
        ]
        return {
            signatures.EMBEDDING: np.array(vectors, np.float32).reshape(-1, 1),
            signatures.VALID: valid,
        }


@pytest.fixture
def folder(tmp_path):
    """Two pictures among all that is none."""
    (tmp_path / "a.png").write_bytes(PNG + b"0.5")
    (tmp_path / "b.JPG").write_bytes(PNG + b"0.9")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "README").write_text("x")
    return tmp_path


def test_what_is_no_picture_costs_only_itself(folder):
    files = image_files(folder)
    # One that goes while the others are embedded.
    matches, unreadable = Embedder().search("a", [*files, folder / "went.png"], top=9)
    assert [match.path.name for match in matches] == ["b.JPG", "a.png", "linked.png"]
    assert [path.name for path in unreadable] == ["broken.png", "went.png"]


def test_what_is_passed_over_is_told_by_kind(folder, capsys):
    assert passed_over(folder) == {
        "files without an ending": ["README"],
        "folders": ["deep", "x.png"],
        "links that lead nowhere": ["gone.png"],
        "files that end in .txt": ["notes.txt"],
    }
    for number in range(6):
        (folder / f"{number}.csv").write_text("x")
    ask._print_skipped(folder, [folder / "broken.png"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"skipped, no image that the model reads: {folder / 'broken.png'}"
    assert "skipped, links that lead nowhere: gone.png" in lines
    assert "skipped, files that end in .csv: 0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 1 more" in lines


def test_embeddings_of_a_folder_leave_out_what_is_no_picture(folder):
    arguments = argparse.Namespace(texts=None, images=folder, output=folder / "out.npz")
    ask._embed_into_file(Embedder(), arguments)
    stored = np.load(folder / "out.npz")
    assert stored["name"].tolist() == ["a.png", "b.JPG", "linked.png"]
    np.testing.assert_allclose(stored["embedding"][:, 0], [0.5, 0.9, 0.5], rtol=1e-6)


def test_a_server_that_is_away_is_waited_for_as_long_as_asked(picture, capsys, monkeypatch):
    pauses = []
    monkeypatch.setattr(ask.time, "sleep", pauses.append)
    calls = []

    def _ask(client, arguments):
        calls.append(client)
        if len(calls) < 3:
            raise RequestError("away", "UNAVAILABLE")

    arguments = cli._parser().parse_args(["ask", "--image", str(picture), "--wait", "60", "a"])
    assert ask._run_with_client(arguments, _ask) == 0
    assert len(calls) == 3
    arguments.wait = 0.0
    calls.clear()
    assert ask._run_with_client(arguments, _ask) == 1
    assert "away" in capsys.readouterr().err
    assert len(calls) == 1


@pytest.mark.parametrize("threshold", ["-0.1", "1.1", "nan"])
def test_thresholds_are_probabilities(picture, capsys, threshold):
    arguments = ["ask", "--image", str(picture), "a", f"--threshold={threshold}"]
    assert cli.main(arguments) == 2
    assert "--threshold must be 0 to 1" in capsys.readouterr().err


def test_grid_is_asked_for_by_the_signature_of_images():
    options = Options(grid=7)
    for name in ("embed_image", "embed_image_safe", "similarity", "classify", "class_logits"):
        assert options.request(name, {}).model_spec.signature_name == f"{name}_g7"
        assert Options().request(name, {}).model_spec.signature_name == name
    # Texts have no grid, and what names one already stays as it is.
    for name in ("embed_text", "classify_g4"):
        assert options.request(name, {}).model_spec.signature_name == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "--image", "PICTURE", "--grid", "0"], "--grid must be at least 1"),
        (
            ["embed", "--texts", "PICTURE", "--grid", "4", "--output", "o.npz"],
            "--grid is for images. Received: --texts and --grid 4",
        ),
    ],
)
def test_wrong_grids_are_refused(picture, capsys, arguments, message):
    assert cli.main([str(picture) if x == "PICTURE" else x for x in arguments]) == 2
    assert message in capsys.readouterr().err
