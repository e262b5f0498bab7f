"""The data and settings that a model is judged by."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sigline.components.evaluate.corruptions import Corruption
from sigline.schemas.labels import LabelSet

CANDIDATE, BASELINE, TEACHER = "Candidate", "Baseline", "Teacher"


@dataclass(frozen=True)
class Inputs:
    """The inputs of an evaluation; folders may be on any file system that Beam reaches.

    Attributes:
        split_dir: Folder of the TFRecord shards to judge by.
        model_dir: The candidate's SavedModel.
        cache_dir: Folder that keeps embeddings.
        baseline_dir: The last blessed model's SavedModel; None for the first model.
        teacher_dir: SavedModel of a teacher that the candidate is to agree with; none by default.
        train_dirs: Folders of TFRecord shards that were trained on, to look for leaks; none by
            default.
        support_dir: Folder of labelled TFRecord shards that probes learn from; none by default.
        corruptions: What is done to images to see how robust the model is; nothing by default.
        logs_dir: Folder of the training's TensorBoard files, for the report; none by default.
        parity_file: What the trainer made of records of the split; None to compare nothing.
        labels: Classes by the name of their prompts, besides those that the candidate holds.
        captioned: Whether records have captions of their own to be retrieved; prompts are none.
    """

    split_dir: str
    model_dir: str
    cache_dir: str
    baseline_dir: str | None = None
    teacher_dir: str | None = None
    train_dirs: tuple[str, ...] = ()
    support_dir: str | None = None
    corruptions: tuple[Corruption, ...] = ()
    logs_dir: str | None = None
    parity_file: str | None = None
    labels: Mapping[str, LabelSet] = field(default_factory=dict)
    captioned: bool = True

    def judged(self) -> dict[str, str]:
        """Returns the folders of the models that are measured, by role."""
        folders = {CANDIDATE: self.model_dir}
        return folders | ({BASELINE: self.baseline_dir} if self.baseline_dir else {})

    def models(self) -> dict[str, str]:
        """Returns the folders of all models, by role."""
        return self.judged() | ({TEACHER: self.teacher_dir} if self.teacher_dir else {})
