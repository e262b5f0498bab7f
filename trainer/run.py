"""A training run from its inputs to the exported model, the same however it is started."""

import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sigline.schemas import digests, progress
from sigline.schemas.labels import LabelSet
from sigline.trainer import config as trainer_config
from sigline.trainer.config import TrainConfig
from sigline.trainer.config.objectives import check_tree
from sigline.trainer.export import saved_model
from sigline.trainer.inputs import shards
from sigline.trainer.training import loop
from sigline.trainer.weights import inheritance
from sigline.trainer.weights.model_weights import Weights
from sigline.trainer.weights.weight_folders import CONFIG_FILE


def code_digest() -> str:
    """Returns the digest of the code that trains."""
    return digests.source_digest(Path(__file__).parent.parent, ("schemas", "trainer"))


@dataclass(frozen=True)
class Job:
    """What a run is made of.

    Attributes:
        config: The configuration.
        folders: Folder with the training shards, or several to mix.
        vocabulary: A serialized SentencePiece model; None for a model of images alone, or for that
            of the weights, which it is in any case if `config.pretrained` names the token table.
        code_digest: Of the code that trains.
        weights: What the parameters that `config.pretrained` names start from.
        teachers: Weights of the frozen models that objectives ask, by name.
        labels: Classes for `classify`, and for teachers that tell classes by their texts; their
            tree for an objective that learns it.
    """

    config: TrainConfig
    folders: shards.Folders
    vocabulary: bytes | None
    code_digest: str
    weights: Weights | None = None
    teachers: Mapping[str, Weights] = field(default_factory=dict)
    labels: LabelSet | None = None

    def __post_init__(self) -> None:
        vocabulary = inheritance.vocabulary(self.config, self.weights, self.vocabulary)
        object.__setattr__(self, "vocabulary", vocabulary)
        classes, labels = self.config.image.classes, self.labels
        if classes is not None and labels is not None and len(labels.names) != classes:
            raise ValueError(
                "The label set must have as many classes as the model's head. "
                f"Received: classes={len(labels.names)}, image.classes={classes}"
            )
        check_tree(self.config.objectives, labels)

    @property
    def tokenizer(self) -> Mapping[str, bytes]:
        """Files of the tokenizer that the weights brought; see `model_weights.Weights`."""
        return inheritance.tokenizer(self.config, self.weights)

    @functools.cached_property
    def provenance(self) -> dict[str, str]:
        """What the exported model says of its making."""
        provenance = {
            "data_digest": shards.data_digest(self.folders),
            "code_digest": self.code_digest,
        }
        if self.weights is not None:
            provenance["weights_digest"] = self.weights.digest()
        for name, teacher in self.teachers.items():
            provenance[f"teacher_digest/{name}"] = teacher.digest()
        return provenance

    @property
    def identity(self) -> str:
        """A text that two runs share only if one may go on from the other's checkpoints.

        Neither the code is in it, which may be changed meanwhile, nor how the run goes
        (`RunConfig`).
        """
        identity: dict[str, Any] = {k: v for k, v in self.provenance.items() if k != "code_digest"}
        identity["config"] = self.config.identity()
        identity["vocabulary"] = hashlib.sha256(self.vocabulary or b"").hexdigest()
        headless = [x for x in self.teachers.values() if x.config.image.classes is None]
        if headless and self.labels is not None:
            # Teachers without a head classify by the texts of the label set.
            identity["labels"] = self.labels.to_json()
        if self.config.class_loss == "semantic" and self.labels is not None:
            identity["parents"] = digests.json_digest(self.labels.parents)
        return json.dumps(identity, sort_keys=True)

    def is_of(self, claim: str, description: str | Path) -> bool:
        """Returns whether this run may go on from checkpoints.

        Args:
            claim: The `identity` of the run that wrote them.
            description: The folder beside them that says what they belong to; it need not exist.
        """
        if claim == self.identity:
            return True
        stored = Path(description) / CONFIG_FILE
        theirs = json.loads(claim)
        if not stored.is_file() or not isinstance(theirs, dict):
            return False
        text = stored.read_text().removesuffix("\n")
        held = trainer_config.from_json(text)
        if theirs.get("config") not in held.earlier_digests(text):
            return False
        theirs["config"] = held.identity()
        ours = json.loads(self.identity)
        # The digests of weights and teachers cover their configurations, whose form has changed
        # too.
        others = {x for x in ours if x == "weights_digest" or x.startswith("teacher_digest/")}
        is_same = theirs | {name: ours[name] for name in others & theirs.keys()} == ours
        if is_same and others:
            names = ", ".join(sorted(others))
            print(
                f"An earlier version began this run, whose {names} cannot be compared with those "
                "of today. Make sure that the weights and teachers are those that it began with.",
                file=sys.stderr,
            )
        return is_same

    @property
    def key(self) -> str:
        """Names the run, its code too."""
        return digests.json_digest([self.identity, self.code_digest])[:16]

    def run(
        self, work_dir: str | Path, model_dir: str | Path
    ) -> tuple[loop.TrainResult, dict[str, Any] | None]:
        """Trains, or finishes an interrupted run, and exports.

        Args:
            work_dir: Folder for `checkpoints` and, with TensorBoard events, `logs`.
            model_dir: Where the SavedModel goes.

        Returns:
            The result, and the model's metadata; None of a worker that does not write.
        """
        work_dir = Path(work_dir)
        progress.note("reading the data and making the model")
        result = loop.train(
            self.config,
            split_dir=self.folders,
            vocabulary=self.vocabulary,
            checkpoint_dir=work_dir / "checkpoints",
            log_dir=work_dir / "logs",
            weights=self.weights,
            teachers=self.teachers,
            labels=self.labels,
        )
        if not result.is_chief:
            return result, None
        provenance = self.provenance | {"initial_digest": result.initial_digest}
        progress.note("")
        with progress.part("export the model"):
            metadata = saved_model.export(
                model_dir,
                result.model,
                config=self.config,
                vocabulary=self.vocabulary,
                labels=self.labels,
                provenance=provenance,
                tokenizer=self.tokenizer,
            )
        return result, metadata
