"""`sigline index`, `sigline search` and `sigline ui`: build an index of images and search it."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.commands import ask
from sigline.commands.dataclass_options import add_options, from_arguments
from sigline.schemas import ownership, progress, retrieval, signatures

# Pictures that the page shows before the first query.
_EXAMPLES = 12
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def add_parser(commands) -> None:
    """Adds the commands."""
    index = commands.add_parser("index", help="embed examples and make an index of their images")
    index.add_argument("--model", type=Path, required=True, help="folder of the SavedModel")
    index.add_argument("--data", type=Path, required=True, help="folder with manifest.json")
    index.add_argument("--output", type=Path, required=True, help="folder of the index to write")
    index.add_argument(
        "--corpus", type=Path, help="folder that keeps the embeddings; OUTPUT.corpus by default"
    )
    add_options(
        index,
        "sigline.components.index.options.IndexConfig",
        kind={"choices": retrieval.KINDS},
        splits={"option": "--split"},
    )
    index.add_argument(
        "--beam-arg", action="append", default=[], metavar="ARG", help="argument of the Beam runner"
    )
    index.set_defaults(run=_index)

    search = commands.add_parser("search", help="search an index by a text or an image")
    search.add_argument("text", nargs="?", metavar="TEXT")
    search.add_argument("--image", type=Path, help="JPEG or PNG to search by instead of a text")
    where = search.add_mutually_exclusive_group(required=True)
    where.add_argument("--index", type=Path, help="folder of an index")
    where.add_argument("--target", help="HOST:PORT of gRPC or http://HOST:PORT of REST")
    search.add_argument(
        "--model-name", default=retrieval.DEFAULT_NAME, help="name of a served index"
    )
    ask.add_access(search)
    search.add_argument("--model", type=Path, help="the index's model; needed by the kind faiss")
    search.add_argument("--top", type=int, default=10, help="matches to print")
    search.add_argument("--json", action="store_true", help="print a JSON object for each match")
    search.set_defaults(run=_search)

    page = commands.add_parser("ui", help="show a page to search an index with")
    page.add_argument("--index", type=Path, required=True, help="folder of an index")
    page.add_argument("--model", type=Path, help="the index's model; needed by the kind faiss")
    page.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; by default only this machine"
    )
    page.add_argument(
        "--allow-host",
        action="append",
        default=[],
        help="host name by which browsers may address the page",
    )
    page.add_argument("--port", type=int, default=8600, help="0 takes a free one")
    page.add_argument("--top", type=int, default=24, help="matches to show")
    page.add_argument(
        "--threshold", type=float, default=0.25, help="probability below which nothing fits"
    )
    page.set_defaults(run=_ui)


def _index(arguments: argparse.Namespace) -> int:
    from sigline.components.index.options import IndexConfig
    from sigline.schemas import record

    config = from_arguments(IndexConfig, arguments)
    checks.check_folder(arguments.model, "--model", holds="saved_model.pb")
    checks.check_folder(arguments.data, "--data", holds=record.MANIFEST_FILE)
    checks.check_absent(arguments.output, "--output")
    corpus = arguments.corpus or arguments.output.with_name(f"{arguments.output.name}.corpus")
    _check_corpus(corpus)
    quiet.import_tensorflow()
    import apache_beam as beam

    from sigline.components.index import build, faiss_index, transforms

    if config.kind == retrieval.FAISS:
        faiss_index.module()
    embed = transforms.EmbedCorpus(
        str(arguments.data),
        str(arguments.model),
        str(corpus),
        splits=config.splits,
        thumbnails=config.thumbnails,
    )
    runner = [x for x in arguments.beam_arg if x.startswith("--runner")]
    argv = arguments.beam_arg if runner else ["--runner=FnApiRunner", *arguments.beam_arg]
    with progress.part("embed the images"), beam.Pipeline(argv=argv) as pipeline:
        _ = pipeline | embed
    try:
        with progress.part("build the index"):
            about = build.build([str(corpus)], str(arguments.model), arguments.output, config)
    except build.IndexRefused as error:
        print(f"sigline: {error}", file=sys.stderr)
        return 1
    print(
        f"Wrote an index of {about['records']} images to {arguments.output}; "
        f"{about['unreadable']} could not be read; recall@10 of {about['queries']} captions "
        f"{about['recall']:.4f}"
    )
    return 0


def _check_corpus(folder: Path) -> None:
    """Checks that a folder's manifest, which is replaced, is one of embeddings."""
    from sigline.components.index import corpus

    path = folder / corpus.MANIFEST_FILE
    if path.exists():
        try:
            own = {"format", "shards"} <= set(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            own = False
        if not own:
            raise ownership.not_own(path, "sigline index", "--corpus")


def _search(arguments: argparse.Namespace) -> int:
    if (arguments.text is None) == (arguments.image is None):
        received = "both" if arguments.image is not None else "neither"
        raise ValueError(f"Give either TEXT or --image FILE. Received: {received}")
    checks.check_file(arguments.image, "--image")
    _check_opened(arguments)
    from sigline.serving.client.transport import RequestError

    try:
        index = _opened(arguments)
        if arguments.image is not None:
            matches = index.by_image(arguments.image.read_bytes(), top=arguments.top)
        else:
            matches = index.by_text(arguments.text, top=arguments.top)
    except RequestError as error:
        print(f"sigline: {error}", file=sys.stderr)
        return 1
    for match in matches:
        if arguments.json:
            print(json.dumps(asdict(match), ensure_ascii=False))
        else:
            caption = f"  {match.text[0]}" if match.text else ""
            print(f"{match.score:8.4f}  {match.source}/{match.key}{caption}")
    return 0


def _check_opened(arguments: argparse.Namespace) -> None:
    """Checks the arguments of a search without importing TensorFlow."""
    if arguments.top < 1:
        raise ValueError(f"--top must be at least 1. Received: --top {arguments.top}")
    checks.check_folder(arguments.index, "--index")
    if arguments.index is not None:
        about = arguments.index / signatures.ASSETS_DIR / retrieval.INDEX_FILE
        if not about.is_file():
            raise ValueError(
                "There is no index: --index must be the folder of one. "
                f"Received: --index {arguments.index}"
            )
    checks.check_folder(arguments.model, "--model", holds="saved_model.pb")


def _opened(arguments: argparse.Namespace):
    if arguments.target is not None:
        from sigline.serving.client.search import ServedIndex

        options = ask.options(arguments)
        return ServedIndex(arguments.target, arguments.model_name, **options)
    quiet.import_tensorflow()
    from sigline.components.index.search import LocalIndex

    return LocalIndex(arguments.index, arguments.model)


def _ui(arguments: argparse.Namespace) -> int:
    _check_opened(arguments)
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold must be 0 to 1. Received: --threshold {arguments.threshold}")
    quiet.import_tensorflow()
    try:
        from aiohttp import web
    except ImportError:
        raise ValueError("The page needs aiohttp; install sigline[ui].") from None
    from sigline.components.index.search import LocalIndex
    from sigline.serving.search_page import search_page

    with progress.part("load the index"):
        index = LocalIndex(arguments.index, arguments.model)
    about = index.about
    page = search_page.Page(
        index=index,
        thumbnail=index.gallery.thumbnail if about["thumbnails"] else None,
        about=f"{about['records']} images, model {about[retrieval.MODEL_DIGEST][:12]}",
        top=min(arguments.top, index.most),
        hosts=frozenset({*_LOCAL_HOSTS, arguments.host, *arguments.allow_host}),
        probability=index.probability,
        threshold=arguments.threshold,
        examples=tuple(index.examples(_EXAMPLES)),
    )
    web.run_app(
        search_page.application(page),
        host=arguments.host,
        port=arguments.port,
        print=lambda text: print(text, flush=True) if "Running on" in text else None,
    )
    return 0
