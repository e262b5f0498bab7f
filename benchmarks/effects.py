"""Claim: what the methods are for shows on scenes, with three seeds.

1. LiT: with the same few pairs, a text tower that learns to read the image tower of a SigLIP model
   trained on many does better than two towers from scratch.
2. Patience: a small classifier that learns a teacher's classes from images alone, mixed and without
   labels, comes closer to it the longer it learns.
3. Teaching: a small SigLIP does better with a teacher's probabilities of the pairs than without;
   beside its own labels, or in their place; when every caption belongs to its picture, and when a
   third of them belong to others, as on the web.
4. FlexiViT: one model of several grids of patches does much better off the size of a model of one,
   whose kernel and positions are resized; at that one's own size it is behind at as many steps.

Everything is measured on the same new scenes: accuracy among the 36 classes (chance 2.8 %), and for
patience the divergence from the teacher, KL(teacher || student), and the agreement with it. Means
over seeds with 95 % intervals by Student's t; of a comparison, the interval of the paired
difference. What comes out is printed as it is. Every run's outcome is kept below `--work`, in a
folder that this file and the trainer's code name, so that the command goes on where it was stopped.
Writes `effects.json` and `effects.md` below `--output`.
"""

import argparse
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")

import machine
import numpy as np
import tensorflow as tf
from scipy import stats

from sigline.components.scenes import draw, grammar
from sigline.components.vocabulary.vocabulary import train_vocabulary
from sigline.schemas import digests, tf_example
from sigline.schemas.record import ImageTextRecord
from sigline.trainer import config
from sigline.trainer.inputs import preprocess
from sigline.trainer.losses import divergence
from sigline.trainer.models import two_tower
from sigline.trainer.training import loop
from sigline.trainer.weights import model_weights, weight_folders

SEEDS = (0, 1, 2)
TEACHER_STEPS, TEACHER_PAIRS = 1_500, 4_000
FEW_PAIRS, FEW_STEPS = 200, 500
PATIENCE, UNLABELLED = (100, 400, 1_600), 1_000
TAUGHT_PAIRS, TAUGHT_STEPS = 1_000, 1_500
MISMATCHED = {"matched": 0.0, "mismatched": 1 / 3}
# Grids of the flexible model; the other one has the second of them.
GRIDS, GRID_SCENES, GRID_STEPS = (2, 4, 8), 1_000, 750
TESTED = 1_000
_SMALL = {"width": 48, "depth": 2, "mlp_dim": 192, "num_heads": 2}


def records(
    count: int, *, first: int, labelled: bool = False, mismatched: float = 0.0
) -> list[ImageTextRecord]:
    """Returns scenes; other ones for other numbers of the first.

    Args:
        count: Number of scenes.
        first: Seed of the first scene; those of the others follow.
        labelled: Whether all have one object, and so a class.
        mismatched: Share of scenes that have the captions of another one.
    """
    found = []
    for index in range(first, first + count):
        rng = np.random.default_rng(index)
        objects = 0.0 if labelled else 0.3
        scene = grammar.sample_scene(rng, held_out=False, two_objects=objects)
        buffer = io.BytesIO()
        draw.draw_scene(scene, rng).save(buffer, "PNG")
        image, captions = buffer.getvalue(), scene.captions()
        found.append(
            ImageTextRecord(
                key=f"{index:08d}",
                image=image,
                text=captions,
                language=("en",) * len(captions),
                source="scenes",
                width=draw.SIZE,
                height=draw.SIZE,
                image_sha256=hashlib.sha256(image).digest(),
                image_phash=0,
                label=() if scene.label is None else (scene.label,),
            )
        )
    chosen = np.random.default_rng(first).permutation(count)[: round(mismatched * count)]
    donors = [found[index] for index in np.roll(chosen, 1)]
    for index, donor in zip(chosen, donors, strict=True):
        found[index] = dataclasses.replace(
            found[index], text=donor.text, language=donor.language, label=donor.label
        )
    return found


class Bench:
    """Data, teacher and tests that all runs share."""

    def __init__(self, work: Path):
        """Draws the tests and trains the teacher, unless it is there already."""
        self.work = work
        self.labels = grammar.label_set()
        tested = records(TESTED, first=10_000_000, labelled=True)
        self._answers = np.array([item.label[0] for item in tested])
        base = config.load_recipe("siglip_demo")
        self.base = config.override(base, ["run.jit_compile=false", "run.checkpoint_steps=100000"])
        self._pixels = np.stack(
            [
                preprocess.load_image(tf.constant(x.image), base.image, max_pixels=10**6).numpy()
                for x in tested
            ]
        )
        captions = sorted({text for x in records(TEACHER_PAIRS, first=0) for text in x.text})
        self.vocabulary = train_vocabulary(captions, vocabulary_size=base.text.vocabulary_size)
        folder = work / "teacher"
        if not folder.exists():
            settings = dataclasses.replace(self.base, steps=TEACHER_STEPS, seed=100)
            model = self._train(settings, TEACHER_PAIRS, first=0)
            weight_folders.save(
                folder, model_weights.Weights(settings, _values(model), self.vocabulary)
            )
        self.teacher = weight_folders.load(folder)
        settings = dataclasses.replace(self.teacher.config, pretrained=(".*",))
        model = two_tower.build(settings)
        for name, variable in two_tower.named_variables(model).items():
            variable.assign(self.teacher.parameters[name])
        self._teacher_logits = self.logits(model)

    def outcome(self, name: str, run: Callable[[], dict]) -> dict:
        """Returns what a run measured, from an earlier time if it is known."""
        path = self.work / f"{name}.json"
        if not path.exists():
            found = run()
            scratch = path.with_suffix(".tmp")
            scratch.write_text(json.dumps(found))
            scratch.replace(path)
            print(name, found, flush=True)
        return json.loads(path.read_text())

    def train(
        self, settings: config.TrainConfig, pairs: int, *, first: int, **options
    ) -> dict[str, float]:
        """Trains on scenes and returns what the model can do."""
        model = self._train(settings, pairs, first=first, **options)
        logits = self.logits(model)
        found = divergence.kl_divergence(self._teacher_logits, logits)
        agrees = logits.argmax(1) == self._teacher_logits.argmax(1)
        return {
            "accuracy": float((logits.argmax(1) == self._answers).mean()),
            "divergence": float(tf.reduce_mean(found)),
            "agreement": float(agrees.mean()),
        }

    def _train(
        self, settings, pairs: int, *, first: int, mismatched: float = 0.0, **options
    ) -> two_tower.TwoTower:
        folder = self.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "Split-train").mkdir(parents=True)
        scenes = records(pairs, first=first, mismatched=mismatched)
        encoded = [tf_example.encode(item) for item in scenes]
        tf_example.write_shard(str(folder / "Split-train" / "scenes.gz"), encoded)
        result = loop.train(
            settings,
            split_dir=folder / "Split-train",
            vocabulary=self.vocabulary if settings.text else None,
            checkpoint_dir=folder / "checkpoints",
            labels=self.labels,
            **options,
        )
        return result.model

    def logits(self, model: two_tower.TwoTower) -> np.ndarray:
        """Returns logits of the classes of all tested scenes."""
        pixels = preprocess.to_model_range(self._pixels, model.config.image)
        said = model.look(pixels)
        if "classes" in said:
            return said["classes"].numpy()
        tokenizer = preprocess.Tokenizer(self.vocabulary, model.config.text)
        classes = two_tower.embed_classes(
            lambda texts: model.embed_text(tokenizer(texts)), self.labels
        )
        scores = tf.matmul(said[two_tower.EMBEDDING], classes, transpose_b=True)
        return (tf.exp(model.log_temperature.value) * scores).numpy()

    def lit(self, seed: int, *, pretrained: bool) -> dict[str, float]:
        """Trains with few pairs: from scratch, or with the teacher's image tower as it is."""
        settings = dataclasses.replace(self.base, steps=FEW_STEPS, seed=seed)
        options = {}
        if pretrained:
            rates = (("image/.*", None), (".*", 1.0))
            settings = dataclasses.replace(
                settings,
                pretrained=("image/.*",),
                optimizer=dataclasses.replace(settings.optimizer, rates=rates),
            )
            options["weights"] = self.teacher
        return self.train(settings, FEW_PAIRS, first=1_000_000 * (seed + 1), **options)

    def patient(self, seed: int, *, steps: int) -> dict[str, float]:
        """Teaches classes to a small model of images alone."""
        image = dataclasses.replace(
            self.base.image, pool="gap", classes=len(self.labels.names), **_SMALL
        )
        settings = dataclasses.replace(
            self.base,
            steps=steps,
            seed=seed,
            image=image,
            text=None,
            objectives=(config.DistillConfig("teacher"),),
            data=dataclasses.replace(self.base.data, mixup=1.0),
        )
        first = 1_000_000 * (seed + 1)
        return self.train(settings, UNLABELLED, first=first, teachers={"teacher": self.teacher})

    def taught(
        self, seed: int, *, taught: bool, weight: float = 1.0, mismatched: float
    ) -> dict[str, float]:
        """Trains a small SigLIP with and without a teacher, and by the teacher alone."""
        settings = dataclasses.replace(
            self.base,
            steps=TAUGHT_STEPS,
            seed=seed,
            image=dataclasses.replace(self.base.image, **_SMALL),
            text=dataclasses.replace(self.base.text, **_SMALL),
        )
        options = {}
        if taught:
            own = (config.PairsConfig(weight=weight),) if weight else ()
            objectives = (*own, config.DistillConfig("teacher", target="pairs"))
            settings = dataclasses.replace(settings, objectives=objectives)
            options["teachers"] = {"teacher": self.teacher}
        options["mismatched"] = mismatched
        return self.train(settings, TAUGHT_PAIRS, first=1_000_000 * (seed + 1), **options)

    def of_grids(self, seed: int, *, grids: tuple[int, ...]) -> dict[str, float]:
        """Trains a small model on labels, and returns its accuracy at every grid of `GRIDS`.

        Args:
            seed: Of the weights, the order and the scenes.
            grids: Those that steps draw from.
        """
        image = dataclasses.replace(
            self.base.image,
            pool="gap",
            classes=len(self.labels.names),
            patch=self.base.image.size // GRIDS[1],
            grids=grids,
            position_grid=GRIDS[1],
            **_SMALL,
        )
        settings = dataclasses.replace(
            self.base,
            steps=GRID_STEPS,
            seed=seed,
            image=image,
            text=None,
            objectives=(config.ClassifyConfig(unlabelled="skip"),),
        )
        model = self._train(settings, GRID_SCENES, first=1_000_000 * (seed + 1))
        pixels = preprocess.to_model_range(self._pixels, model.config.image)
        right = {
            grid: model.look(pixels, variant=grid)[two_tower.CLASSES].numpy().argmax(1)
            == self._answers
            for grid in GRIDS
        }
        return {f"accuracy@{grid}": float(hits.mean()) for grid, hits in right.items()}


def _source_digest() -> str:
    root = Path(__file__).resolve().parents[1]
    return digests.source_digest(root, ("benchmarks/effects.py", "components/scenes", "trainer"))[
        :16
    ]


def _values(model: two_tower.TwoTower) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in two_tower.named_variables(model).items()}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Returns mean and 95 % interval by Student's t."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def main() -> None:
    """Runs everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/effects"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    source = _source_digest()
    work = arguments.work / source
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work)
    teacher = float((bench._teacher_logits.argmax(1) == bench._answers).mean())
    runs: dict[str, Callable[[int], dict]] = {
        "scratch": functools.partial(bench.lit, pretrained=False),
        "lit": functools.partial(bench.lit, pretrained=True),
    }
    for name, mismatched in MISMATCHED.items():
        runs |= {
            f"alone-{name}": functools.partial(bench.taught, taught=False, mismatched=mismatched),
            f"taught-{name}": functools.partial(bench.taught, taught=True, mismatched=mismatched),
            f"taught-only-{name}": functools.partial(
                bench.taught, taught=True, weight=0.0, mismatched=mismatched
            ),
        }
    for steps in PATIENCE:
        runs[f"patient-{steps}"] = functools.partial(bench.patient, steps=steps)
    runs |= {
        "one-grid": functools.partial(bench.of_grids, grids=GRIDS[1:2]),
        "flexible": functools.partial(bench.of_grids, grids=GRIDS),
    }
    found = {
        name: [bench.outcome(f"{name}-{seed}", functools.partial(run, seed)) for seed in SEEDS]
        for name, run in runs.items()
    }
    results = {
        **machine.describe(),
        "command": "benchmarks/effects.py",
        "versions": machine.versions("tensorflow", "keras"),
        "source": source,
        "seeds": SEEDS,
        "teacher_accuracy": teacher,
        "runs": found,
    }
    machine.write_results(arguments.output, "effects", results, markdown(results))


def markdown(results: dict) -> str:
    """Returns the tables."""
    runs = results["runs"]

    def cell(name: str, key: str, scale: float = 100.0) -> str:
        mean, low, high = (scale * x for x in interval([run[key] for run in runs[name]]))
        digits = 1 if scale == 100.0 else 3
        return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    def difference(better: str, worse: str, key: str = "accuracy") -> str:
        pairs = zip(runs[better], runs[worse], strict=True)
        mean, low, high = (100 * x for x in interval([a[key] - b[key] for a, b in pairs]))
        verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}): {verdict}"

    lines = [
        "# Effects",
        "",
        f"{results['processor']}, {results['date']}; `{results['command']}`; seeds "
        f"{', '.join(map(str, results['seeds']))}. Accuracy in per cent on {TESTED} new scenes; "
        f"the teacher, {TEACHER_STEPS} steps on {TEACHER_PAIRS} pairs, has "
        f"{100 * results['teacher_accuracy']:.1f}. In brackets 95 % intervals.",
        "",
        f"| {FEW_PAIRS} pairs, {FEW_STEPS} steps | accuracy | difference |",
        "|---|---|---|",
        f"| both towers from scratch | {cell('scratch', 'accuracy')} | |",
        f"| LiT: the teacher's image tower, frozen | {cell('lit', 'accuracy')} | "
        f"{difference('lit', 'scratch')} |",
        "",
        f"| classes from a teacher, {UNLABELLED} images | accuracy | agreement | "
        "KL(teacher, student) |",
        "|---|---|---|---|",
    ]
    for steps in PATIENCE:
        name = f"patient-{steps}"
        lines.append(
            f"| {steps} steps | {cell(name, 'accuracy')} | {cell(name, 'agreement')} | "
            f"{cell(name, 'divergence', 1.0)} |"
        )
    steps = list(itertools.pairwise(PATIENCE))
    better = sum(
        long["accuracy"] > short["accuracy"] and long["divergence"] < short["divergence"]
        for a, b in steps
        for short, long in zip(runs[f"patient-{a}"], runs[f"patient-{b}"], strict=True)
    )
    lines += [
        "",
        f"Longer was better, in accuracy and divergence both, in {better} of "
        f"{len(steps) * len(results['seeds'])} comparisons.",
    ]
    variants = {
        "alone": "alone",
        "taught": "with the teacher's probabilities of pairs, too",
        "taught-only": "with these alone (no objective of pairs)",
    }
    for name, mismatched in MISMATCHED.items():
        lines += [
            "",
            f"| small SigLIP, {TAUGHT_PAIRS} pairs, {TAUGHT_STEPS} steps, "
            f"{100 * mismatched:.0f} % with the captions of another scene "
            "| accuracy | difference | agreement | KL(teacher, student) |",
            "|---|---|---|---|---|",
        ]
        for variant, title in variants.items():
            run = f"{variant}-{name}"
            compared = "" if variant == "alone" else difference(run, f"alone-{name}")
            lines.append(
                f"| {title} | {cell(run, 'accuracy')} | {compared} | {cell(run, 'agreement')} | "
                f"{cell(run, 'divergence', 1.0)} |"
            )
    lines += [
        "",
        f"| labels, {GRID_SCENES} scenes, {GRID_STEPS} steps: accuracy at | trained at "
        f"{GRIDS[1]} x {GRIDS[1]} alone | FlexiViT | difference |",
        "|---|---|---|---|",
    ]
    for grid in GRIDS:
        key = f"accuracy@{grid}"
        lines.append(
            f"| {grid} x {grid} patches | {cell('one-grid', key)} | {cell('flexible', key)} | "
            f"{difference('flexible', 'one-grid', key)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
