"""The demo: generated data through the whole pipeline, then questions to the served model."""

import dataclasses
import io
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sigline import quiet
from sigline.commands.ask import readable
from sigline.components.scenes import generate, grammar
from sigline.pipeline import environment as environments
from sigline.schemas import ownership, progress, record
from sigline.serving.checks import processes

COUNT = 4000
SEED = 0
FAULTS = {
    generate.CORRUPT: 0.01,
    generate.EXACT_DUPLICATE: 0.01,
    generate.REENCODED_DUPLICATE: 0.01,
    generate.EMPTY_TEXT: 0.005,
    generate.WRONG_EXTENSION: 0.01,
}
_NUM_QUERIES = 6
_TOP = 6
_TILE = 96
_FONT_SIZE = 13
_COMMAND = "sigline demo"
_SHEET = "contact_sheet.png"


def run(output: Path, *, shuffle_captions: bool = False) -> int:
    """Runs the demo in a folder and returns the exit code; finished steps are reused.

    Args:
        output: Folder for data, artifacts, checkpoints and the published model.
        shuffle_captions: Whether captions are shuffled between images, so that the gate must
            refuse the model.
    """
    started = time.monotonic()
    faults = FAULTS | ({generate.SHUFFLED_CAPTIONS: 1.0} if shuffle_captions else {})
    data = output / "data"
    ownership.OutputFolder(output, _COMMAND).check([_SHEET])
    # What serves imports TensorFlow beside this process, which imports TFX on one core.
    processes.prepare()
    with progress.part("generate scenes"):
        generate.write_scenes(data, count=COUNT, seed=SEED, faults=faults)
    seconds = {"generate scenes": time.monotonic() - started}
    quiet.import_tfx()
    from sigline.pipeline import local_run

    seconds["import TFX"] = time.monotonic() - started - seconds["generate scenes"]
    environment = dataclasses.replace(
        environments.load("local"),
        root=str(output),
        input_base=str(data),
        serving_dir=str(output / "serving"),
    )
    return local_run.guarded(lambda: _run_and_ask(environment, seconds, started))


def _run_and_ask(
    environment: environments.Environment, seconds: dict[str, float], started: float
) -> int:
    from sigline.pipeline import local_run

    outcome = local_run.run(environment)
    assert outcome is not None  # Only TFX's command line compiles without running.
    extra = []
    if outcome.released:
        serving_start = time.monotonic()
        with progress.part("serve and ask"):
            sheet = _serve_and_ask(environment, outcome)
        extra.append(("contact sheet", str(sheet)))
        seconds["serve and ask"] = time.monotonic() - serving_start
    seconds["total"] = time.monotonic() - started
    extra += [(f"seconds: {name}", f"{spent:.1f}") for name, spent in seconds.items()]
    return local_run.print_outcome(outcome, extra)


def _serve_and_ask(environment: environments.Environment, outcome) -> Path:
    from sigline.serving.checks.infra_check import running_server
    from sigline.serving.client import Client

    examples = next(node for node in outcome.nodes if node.name == "IngestExamples").outputs
    records = _eval_records(examples["examples"])
    folder = Path(environment.root) / "images"
    paths = _write_images(records, folder)
    with running_server(environment.serving_dir) as address:
        client = Client(address)
        pictures = _Pictures(client, list(paths))
        print(f"\nServed on {address}. Three questions:\n")
        trained = next(
            item for item in records if item.label and item.source == generate.TRAIN_SOURCE
        )
        held_out = next(item for item in records if item.source == generate.HELD_OUT_SOURCE)
        for item in (trained, held_out):
            _ask_image(client, item)
        queries = queries_for(records)
        _ask_text(pictures, queries[0])
        root = ownership.OutputFolder(environment.root, _COMMAND)
        root.check([_SHEET])
        sheet = Path(environment.root) / _SHEET
        _contact_sheet(pictures, queries, paths).save(sheet)
        root.record([_SHEET])
        client.close()
    return sheet


def queries_for(records: Sequence[record.ImageTextRecord]) -> list[str]:
    """Returns the queries of the contact sheet: the most frequent caption of each kind.

    A query that no picture matches would show a row of wrong pictures, however good the model is.

    Args:
        records: The pictures to search.
    """
    counts = {
        source: Counter(text for item in records if item.source == source for text in item.text)
        for source in (generate.TRAIN_SOURCE, generate.HELD_OUT_SOURCE)
    }
    queries: list[str] = []
    for source, kind in _KINDS:
        known = [text for text in counts[source] if kind(text) and text not in queries]
        # By frequency; ties in alphabetical order, so that the result is deterministic.
        queries += sorted(known, key=lambda text: (-counts[source][text], text))[:1]
    return queries[:_NUM_QUERIES]


def _has(*words: str) -> Callable[[str], bool]:
    """Returns a test of plain captions: that they have one of `words`, or just colour and shape."""

    def holds(text: str) -> bool:
        if not text.startswith("a "):
            return False
        return any(f" {word} " in text for word in words) if words else len(text.split()) == 3

    return holds


# Sources and kinds of caption of the queries: colour and shape, size, and positions.
_KINDS = (
    (generate.TRAIN_SOURCE, _has()),
    (generate.TRAIN_SOURCE, _has("large")),
    (generate.TRAIN_SOURCE, _has("small")),
    (generate.TRAIN_SOURCE, _has("above", "below")),
    (generate.TRAIN_SOURCE, _has("left", "right")),
    (generate.HELD_OUT_SOURCE, _has()),
)


def _eval_records(examples_dir: str) -> list[record.ImageTextRecord]:
    from sigline.schemas import tf_example
    from sigline.trainer.inputs import shards

    paths = shards.shard_files(Path(examples_dir) / f"Split-{record.EVAL_SPLIT}")
    return [tf_example.decode(item) for path in paths for item in tf_example.read_shard(path)]


def _write_images(
    records: Sequence[record.ImageTextRecord], folder: Path
) -> dict[Path, record.ImageTextRecord]:
    paths = {}
    scratch = folder / f".tmp-{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        for item in records:
            suffix = "png" if item.image.startswith(b"\x89PNG") else "jpg"
            name = f"{item.source}-{item.key}.{suffix}"
            (scratch / name).write_bytes(item.image)
            paths[folder / name] = item
        # The user may have a folder of this name, which must not be overwritten.
        ownership.OutputFolder(folder, _COMMAND).place(scratch)
    finally:
        shutil.rmtree(scratch)
    return paths


def _ask_image(client, item: record.ImageTextRecord) -> None:
    color, shape = grammar.COMBINATIONS[item.label[0]]
    others = [c for c in grammar.COMBINATIONS if c[0] == color or c[1] == shape][:4]
    texts = sorted({f"a {color} {shape}", *(f"a {c} {s}" for c, s in others)})
    probabilities = client.compare(item.image, texts)
    print(f"Which text fits the image of {item.text[0]!r} (source {item.source})?")
    for index in (-probabilities).argsort(kind="stable"):
        print(f"  {readable(probabilities[index])}  {texts[index]}")


class _Pictures:
    """Pictures that are embedded once, for several queries."""

    def __init__(self, client, paths: list[Path]):
        self._client, self._paths = client, paths
        self._vectors, _ = client.embed_images([path.read_bytes() for path in paths])

    def __len__(self) -> int:
        return len(self._paths)

    def search(self, query: str, top: int) -> list[tuple[Path, float]]:
        """Returns the pictures that fit a text best, with their cosine similarities."""
        scores = self._vectors @ self._client.embed_texts([query])[0]
        best = (-scores).argsort(kind="stable")[:top]
        return [(self._paths[index], float(scores[index])) for index in best]


def _ask_text(pictures: _Pictures, query: str) -> None:
    print(f"Which of {len(pictures)} images fits {query!r} best?")
    for path, score in pictures.search(query, top=3):
        print(f"  {score:7.4f}  {path}")


def fits(query: str, item: record.ImageTextRecord) -> bool:
    """Returns whether a caption of a picture contains the query."""
    return any(query.removeprefix("a ") in caption for caption in item.text)


def _contact_sheet(
    pictures: _Pictures, queries: Sequence[str], paths: dict[Path, record.ImageTextRecord]
) -> Image.Image:
    """Draws a row per query: the text and its best matches, framed green where a caption agrees."""
    row_height = _TILE + 2 * _FONT_SIZE
    sheet = Image.new("RGB", (_TOP * (_TILE + 8) + 8, len(queries) * row_height + 8), "white")
    drawing = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for row, query in enumerate(queries):
        top = row * row_height + 4
        drawing.text((8, top), query, fill="black", font=font)
        for column, (path, _) in enumerate(pictures.search(query, top=_TOP)):
            item = paths[path]
            agrees = fits(query, item)
            image = Image.open(io.BytesIO(item.image)).convert("RGB").resize((_TILE, _TILE))
            left, upper = 8 + column * (_TILE + 8), top + _FONT_SIZE + 6
            frame = "#2a9d50" if agrees else "#d62828"
            box = (left - 3, upper - 3, left + _TILE + 2, upper + _TILE + 2)
            drawing.rectangle(box, fill=frame)
            sheet.paste(image, (left, upper))
    return sheet
