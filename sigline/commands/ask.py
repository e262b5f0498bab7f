"""`sigline ask` and `sigline embed`: send requests to sigline's server or TF Serving."""

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

# Most skipped files of a kind that are named.
_MAX_NAMED = 5
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
        help=".npz file to write, with `embedding` and, for images, `name`",
    )
    _add_server(embed)
    embed.set_defaults(run=_embed)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", default="127.0.0.1:8500", help="HOST:PORT of gRPC or http://HOST:PORT of REST"
    )
    parser.add_argument("--model-name", default="sigline")
    parser.add_argument(
        "--grid",
        type=int,
        metavar="N",
        help="see images as N x N patches: one of the grids of a FlexiViT, by default its own",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="time to wait for a server to start",
    )
    add_access(parser)


def add_access(parser: argparse.ArgumentParser) -> None:
    """Adds options for an API key and certificates; see `options`."""
    parser.add_argument("--api-key-file", type=Path, help="file with the API key to send")
    add_options(parser, "sigline.serving.client.transport.ClientTls", prefix="tls_")


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a client: its API key and certificates.

    Raises:
        ValueError: If the key file does not hold one key, or a certificate lacks its key.
    """
    from sigline.serving.client.transport import ClientTls

    client_options: dict[str, Any] = {}
    if arguments.api_key_file is not None:
        lines = [x.strip() for x in arguments.api_key_file.read_text().splitlines() if x.strip()]
        if len(lines) != 1:
            raise ValueError(
                f"--api-key-file must hold one key. Received: {arguments.api_key_file} with "
                f"{len(lines)} lines"
            )
        client_options["api_key"] = lines[0]
    files = arguments.tls_ca, arguments.tls_certificate, arguments.tls_key
    if bool(files[1]) != bool(files[2]):
        raise ValueError(
            "--tls-certificate and --tls-key must be given together. "
            f"Received: --tls-certificate {files[1]}, --tls-key {files[2]}"
        )
    if any(files):
        client_options["tls"] = from_arguments(ClientTls, arguments, prefix="tls_")
    return client_options


def _ask(arguments: argparse.Namespace) -> int:
    images: Path | None = arguments.images
    if (arguments.image is None) == (images is None):
        raise ValueError(
            "Give either --image FILE [TEXT ...] or --images FOLDER TEXT. "
            f"Received: {'both' if arguments.image else 'neither'}"
        )
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
        return _run_with_client(arguments, _search)
    return _run_with_client(arguments, _compare if arguments.texts else _classify)


def _run_with_client(
    arguments: argparse.Namespace, ask: Callable[[Any, argparse.Namespace], None]
) -> int:
    """Sends requests to a server, after waiting for it if need be; returns the exit code."""
    from sigline.serving import client as serving_client

    if arguments.grid is not None and arguments.grid < 1:
        raise ValueError(f"--grid must be at least 1. Received: --grid {arguments.grid}")
    client = serving_client.Client(
        arguments.target,
        model_name=arguments.model_name,
        grid=arguments.grid,
        **options(arguments),
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
        if arguments.grid is not None and f"_g{arguments.grid}" in str(error):
            print(
                "The model has not been trained at that grid: --grid must be one of `image.grids` "
                "of its recipe.",
                file=sys.stderr,
            )
        return 1
    finally:
        client.close()


def _compare(client, arguments: argparse.Namespace) -> None:
    probabilities, is_sure = _probabilities(client, [arguments.image.read_bytes()], arguments.texts)
    for index in (-probabilities[0]).argsort(kind="stable"):
        print(f"{readable(probabilities[0, index])}  {arguments.texts[index]}")
    if is_sure:
        _print_doubt("No text fits", float(probabilities[0].max()), arguments.threshold)


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
    _print_skipped(arguments.images, unreadable)
    if not matches:
        print("sigline: the model reads none of the images.", file=sys.stderr)
        return
    # Scores are cosines: they rank images, but do not say whether the best one fits.
    probabilities, is_sure = _probabilities(client, [matches[0].path.read_bytes()], [text])
    if is_sure:
        _print_doubt("No image fits", float(probabilities[0, 0]), arguments.threshold)


def _probabilities(
    client, images: Sequence[bytes], texts: Sequence[str]
) -> "tuple[np.ndarray, bool]":
    """Returns probabilities `(images, texts)`, and whether they are independent of each other.

    Only sigmoid probabilities can say that nothing fits. Those of a softmax add up to one, even if
    no text fits.
    """
    import numpy as np

    inputs = {signatures.IMAGE_BYTES: list(images), signatures.TEXT: list(texts)}
    answer = client.predict(signatures.SIMILARITY, inputs)
    probabilities = np.asarray(answer[signatures.PROBABILITIES], np.float64)
    logits = np.asarray(answer[signatures.LOGITS], np.float64)
    sigmoid = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return probabilities, bool(np.allclose(sigmoid, probabilities, atol=1e-4))


def readable(probability: float) -> str:
    """Formats a probability in eight characters; small ones with an exponent."""
    if probability == 0 or probability >= 1e-4:
        return f"{probability:8.4f}"
    return f"{probability:8.1e}"


def _print_doubt(message: str, best: float, threshold: float) -> None:
    """Prints that nothing fits, if the best probability is below the threshold."""
    if best < threshold:
        print(
            f"{message}: the best has a probability of {readable(best).strip()}, "
            f"below {threshold:g} (--threshold).",
            file=sys.stderr,
        )


def _embed(arguments: argparse.Namespace) -> int:
    if arguments.output.suffix != ".npz":
        raise ValueError(f"--output must end in .npz. Received: --output {arguments.output}")
    if arguments.texts is not None and arguments.grid is not None:
        raise ValueError(f"--grid is for images. Received: --texts and --grid {arguments.grid}")
    checks.check_file(arguments.texts, "--texts")
    checks.check_folder(arguments.images, "--images")
    _check_output(arguments.output)
    return _run_with_client(arguments, _embed_into_file)


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
        _print_skipped(arguments.images, unreadable)
    print(f"Wrote {len(vectors)} embeddings of {vectors.shape[1]} numbers to {arguments.output}")


def _mark(path: Path) -> None:
    """Marks an archive as written by this command, in its comment, for `_check_output`."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = _comment(archive)


def _check_output(path: Path) -> None:
    """Checks that a file may be overwritten: this command wrote it, and it was not changed."""
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
    """Returns the mark of an archive: the command, and a digest of the archive's content."""
    content = [[item.filename, item.file_size, item.CRC] for item in archive.infolist()]
    return f"Written by {_EMBED}; {digests.json_digest(content)}".encode()


def _lines(path: Path) -> list[str]:
    """Returns the lines of a UTF-8 file, split at newlines only, as editors do."""
    lines = path.read_bytes().decode().removesuffix("\n").split("\n")
    if lines == [""]:
        raise ValueError(f"--texts must hold a text a line. Received: {path}, which is empty")
    return [line.removesuffix("\r") for line in lines]


def _embed_files(client, folder: Path) -> "tuple[list[str], np.ndarray, list[Path]]":
    import numpy as np

    from sigline.serving import client as serving_client

    names, vectors, unreadable = [], [], []
    batches = client.embed_files(serving_client.image_files(folder))
    for decoded, rows, undecodable in batches:
        names += [path.name for path in decoded]
        vectors.append(rows)
        unreadable += undecodable
    return names, np.concatenate(vectors), unreadable


def _print_skipped(folder: Path, unreadable: list[Path]) -> None:
    """Prints which files of a folder were skipped: each unreadable image, others by kind."""
    from sigline.serving import client as serving_client

    for path in unreadable:
        print(f"skipped, no image that the model reads: {path}", file=sys.stderr)
    for kind, names in serving_client.passed_over(folder).items():
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        print(f"skipped, {kind}: {', '.join(names[:_MAX_NAMED])}{more}", file=sys.stderr)
