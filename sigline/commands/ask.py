"""`sigline ask` and `sigline embed`: ask a server, sigline's own or TF Serving, from a shell."""

import argparse
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigline import arguments as checks
from sigline.commands.dataclass_options import add_options, from_arguments
from sigline.schemas import atomic, digests, ownership, progress, signatures

if TYPE_CHECKING:
    import numpy as np

# Names of a kind that are told.
_NAMED = 5
_PAUSE_SECONDS = 0.5
_EMBED = "sigline embed"


def add_parser(commands) -> None:
    """Adds the commands."""
    ask = commands.add_parser("ask", help="compare an image with texts, or search images by text")
    ask.add_argument("texts", nargs="*", metavar="TEXT")
    ask.add_argument(
        "--image", type=Path, help="image to compare with each text; to classify, without one"
    )
    ask.add_argument("--images", type=Path, help="folder of images to search")
    ask.add_argument("--top", type=int, default=5, help="matches of a search to print")
    ask.add_argument(
        "--threshold", type=float, default=0.25, help="probability below which nothing fits"
    )
    _add_server(ask)
    ask.set_defaults(run=_ask)

    embed = commands.add_parser("embed", help="have a server embed texts or images into a file")
    kind = embed.add_mutually_exclusive_group(required=True)
    kind.add_argument("--texts", type=Path, metavar="FILE", help="UTF-8 file with a text a line")
    kind.add_argument("--images", type=Path, metavar="FOLDER", help="folder of JPEG and PNG files")
    embed.add_argument(
        "--output",
        type=Path,
        required=True,
        help=".npz to write: `embedding`; of images, `name`",
    )
    _add_server(embed)
    embed.set_defaults(run=_embed)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", default="127.0.0.1:8500", help="HOST:PORT of gRPC or http://HOST:PORT of REST"
    )
    parser.add_argument("--model-name", default="sigline")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="for a server that is starting"
    )
    add_access(parser)


def add_access(parser: argparse.ArgumentParser) -> None:
    """Adds what a server may ask for; see `options`."""
    parser.add_argument("--api-key-file", type=Path, help="file with the API key to send")
    add_options(parser, "sigline.serving.client.transport.ClientTls", prefix="tls_")


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a client: a key and certificates.

    Raises:
        ValueError: If the file of the key does not hold one.
    """
    from sigline.serving.client.transport import ClientTls

    found: dict[str, Any] = {}
    if arguments.api_key_file is not None:
        lines = [x.strip() for x in arguments.api_key_file.read_text().splitlines() if x.strip()]
        if len(lines) != 1:
            raise ValueError(
                f"--api-key-file must hold one key. Received: {arguments.api_key_file} with "
                f"{len(lines)} lines"
            )
        found["api_key"] = lines[0]
    files = arguments.tls_ca, arguments.tls_certificate, arguments.tls_key
    if bool(files[1]) != bool(files[2]):
        raise ValueError("--tls-certificate and --tls-key must be given together.")
    if any(files):
        found["tls"] = from_arguments(ClientTls, arguments, prefix="tls_")
    return found


def _ask(arguments: argparse.Namespace) -> int:
    images: Path | None = arguments.images
    if (arguments.image is None) == (images is None):
        raise ValueError("Give either --image FILE [TEXT ...] or --images FOLDER TEXT.")
    if images is not None and len(arguments.texts) != 1:
        raise ValueError(
            f"A search takes one TEXT; quote it if it has spaces. Received: {arguments.texts}"
        )
    if arguments.top < 1:
        raise ValueError(f"--top must be at least 1. Received: --top {arguments.top}")
    checks.check_file(arguments.image, "--image")
    checks.check_folder(images, "--images")
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold must be 0 to 1. Received: --threshold {arguments.threshold}")
    if images is not None:
        return _answered(arguments, _search)
    return _answered(arguments, _compare if arguments.texts else _classify)


def _answered(arguments: argparse.Namespace, ask: Callable[[Any, argparse.Namespace], None]) -> int:
    """Asks a server, if need be until it is there, and returns the exit code."""
    from sigline.serving import client as serving_client

    client = serving_client.Client(
        arguments.target, model_name=arguments.model_name, **options(arguments)
    )
    end = time.monotonic() + arguments.wait
    try:
        with progress.part(f"ask {arguments.target}"):
            while True:
                try:
                    ask(client, arguments)
                    return 0
                except serving_client.RequestError as error:
                    if error.code != "UNAVAILABLE" or time.monotonic() >= end:
                        raise
                    progress.note("waiting for the server")
                    time.sleep(_PAUSE_SECONDS)
    except serving_client.RequestError as error:
        print(f"sigline: {error}", file=sys.stderr)
        return 1
    finally:
        client.close()


def _compare(client, arguments: argparse.Namespace) -> None:
    probabilities, is_sure = _probabilities(client, [arguments.image.read_bytes()], arguments.texts)
    for index in (-probabilities[0]).argsort(kind="stable"):
        print(f"{readable(probabilities[0, index])}  {arguments.texts[index]}")
    if is_sure:
        _tell_doubt("No text fits", float(probabilities[0].max()), arguments.threshold)


def _classify(client, arguments: argparse.Namespace) -> None:
    inputs = {signatures.IMAGE_BYTES: [arguments.image.read_bytes()]}
    answer = client.predict(signatures.CLASSIFY, inputs)
    (names,), (scores,) = answer[signatures.CLASSES], answer[signatures.SCORES]
    for name, score in zip(names, scores, strict=True):
        print(f"{readable(float(score))}  {name.decode() if isinstance(name, bytes) else name}")


def _search(client, arguments: argparse.Namespace) -> None:
    from sigline.serving import client as serving_client

    (text,) = arguments.texts
    files = serving_client.image_files(arguments.images)
    matches, unreadable = client.search(text, files, top=arguments.top)
    for match in matches:
        print(f"{match.score:8.4f}  {match.path}")
    _tell_skipped(arguments.images, unreadable)
    if not matches:
        print("sigline: the model reads none of the images.", file=sys.stderr)
        return
    # The scores are cosines, which say what fits best, and not whether it fits.
    probabilities, is_sure = _probabilities(client, [matches[0].path.read_bytes()], [text])
    if is_sure:
        _tell_doubt("No image fits", float(probabilities[0, 0]), arguments.threshold)


def _probabilities(
    client, images: Sequence[bytes], texts: Sequence[str]
) -> "tuple[np.ndarray, bool]":
    """Returns probabilities `(images, texts)`, and whether they say that nothing fits.

    Those of a softmax say which text fits best; they add up to one even if none does.
    """
    import numpy as np

    inputs = {signatures.IMAGE_BYTES: list(images), signatures.TEXT: list(texts)}
    answer = client.predict(signatures.SIMILARITY, inputs)
    probabilities = np.asarray(answer[signatures.PROBABILITIES], np.float64)
    logits = np.asarray(answer[signatures.LOGITS], np.float64)
    sigmoid = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return probabilities, bool(np.allclose(sigmoid, probabilities, atol=1e-4))


def readable(probability: float) -> str:
    """Returns a probability of eight characters, with digits that tell small ones apart."""
    if probability == 0 or probability >= 1e-4:
        return f"{probability:8.4f}"
    return f"{probability:8.1e}"


def _tell_doubt(what: str, best: float, threshold: float) -> None:
    if best < threshold:
        print(
            f"{what}: the best has a probability of {readable(best).strip()}, "
            f"below {threshold:g} (--threshold).",
            file=sys.stderr,
        )


def _embed(arguments: argparse.Namespace) -> int:
    if arguments.output.suffix != ".npz":
        raise ValueError(f"--output must end in .npz. Received: --output {arguments.output}")
    checks.check_file(arguments.texts, "--texts")
    checks.check_folder(arguments.images, "--images")
    _check_output(arguments.output)
    return _answered(arguments, _embed_into_file)


def _embed_into_file(client, arguments: argparse.Namespace) -> None:
    import numpy as np

    unreadable: list[Path] = []
    if arguments.texts is not None:
        vectors, names = client.embed_texts(_lines(arguments.texts)), None
    else:
        names, vectors, unreadable = _embed_files(client, arguments.images)
    with atomic.new_file(arguments.output, ".npz") as scratch:
        if names is None:
            np.savez(scratch, embedding=vectors)
        else:
            np.savez(scratch, embedding=vectors, name=np.array(names, str))
        _mark(scratch)
        _check_output(arguments.output)
    if arguments.images is not None:
        _tell_skipped(arguments.images, unreadable)
    print(f"Wrote {len(vectors)} embeddings of {vectors.shape[1]} numbers to {arguments.output}")


def _mark(path: Path) -> None:
    """Writes into an archive, as its comment, by which `_check_output` knows it again."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = _comment(archive)


def _check_output(path: Path) -> None:
    """Refuses to write over a file that this command did not write, or that was changed since."""
    if not (path.exists() or path.is_symlink()):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            own = archive.comment == _comment(archive) and not path.is_symlink()
    except (OSError, zipfile.BadZipFile):
        own = False
    if not own:
        raise ownership.not_own(path, _EMBED)


def _comment(archive: zipfile.ZipFile) -> bytes:
    """Returns who wrote an archive, with the digest of what is in it."""
    content = [[item.filename, item.file_size, item.CRC] for item in archive.infolist()]
    return f"Written by {_EMBED}; {digests.json_digest(content)}".encode()


def _lines(path: Path) -> list[str]:
    """Returns the lines of a UTF-8 file, as editors count them."""
    lines = path.read_bytes().decode().removesuffix("\n").split("\n")
    if lines == [""]:
        raise ValueError(f"--texts must hold a text a line. Received: {path}")
    return [line.removesuffix("\r") for line in lines]


def _embed_files(client, folder: Path) -> "tuple[list[str], np.ndarray, list[Path]]":
    import numpy as np

    from sigline.serving import client as serving_client

    names, vectors, unreadable = [], [], []
    for found, rows, passed_over in client.embed_files(serving_client.image_files(folder)):
        names += [path.name for path in found]
        vectors.append(rows)
        unreadable += passed_over
    return names, np.concatenate(vectors), unreadable


def _tell_skipped(folder: Path, unreadable: list[Path]) -> None:
    """Says what of a folder was passed over: by name what should be images, the rest by kind."""
    from sigline.serving import client as serving_client

    for path in unreadable:
        print(f"skipped, no image that the model reads: {path}", file=sys.stderr)
    for kind, names in serving_client.passed_over(folder).items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        print(f"skipped, {kind}: {', '.join(names[:_NAMED])}{more}", file=sys.stderr)
