"""The trainer as TFX's own Trainer calls it."""

import pytest

from sigline import quiet

quiet.import_tfx()

from sigline.trainer import config  # noqa: E402

pytestmark = [pytest.mark.tfx]


@pytest.fixture
def fn_args(split_dir, vocabulary, tmp_path, monkeypatch):
    """What TFX hands over, and the recipe at a size for tests."""
    from tfx.components.trainer.fn_args_utils import FnArgs

    tiny = config.tiny(config.load_recipe("siglip_demo"))
    monkeypatch.setattr(config, "load_recipe", lambda name: tiny)
    (tmp_path / "sentencepiece.model").write_bytes(vocabulary)
    return FnArgs(
        train_files=[f"{split_dir}/*"],
        train_steps=3,
        serving_model_dir=str(tmp_path / "model" / "Format-Serving"),
        model_run_dir=str(tmp_path / "run"),
        custom_config={
            "recipe": "siglip_demo",
            "vocabulary": str(tmp_path / "sentencepiece.model"),
            "overrides": ["image.depth=1", "text.depth=1", "steps=100"],
        },
    )


def test_run_fn_trains_and_exports_where_tfx_wants_it(fn_args, tmp_path):
    import tensorflow as tf

    from sigline.pipeline.run_fn import run_fn

    run_fn(fn_args)
    loaded = tf.saved_model.load(fn_args.serving_model_dir)
    assert "embed_image" in loaded.signatures
    assert tf.train.latest_checkpoint(tmp_path / "run" / "checkpoints").endswith("ckpt-3")
    assert list((tmp_path / "run" / "logs").glob("events.*"))


def test_splits_are_mixed_in_their_order(fn_args, tmp_path, monkeypatch):
    from sigline.pipeline import run_fn

    seen = []
    monkeypatch.setattr(run_fn.Job, "run", lambda job, *_: seen.append(job.folders))
    fn_args.train_files = ["data/Split-web/*", "data/Split-clean/*"]
    run_fn.run_fn(fn_args)
    assert seen == [["data/Split-web", "data/Split-clean"]]


@pytest.mark.parametrize("change", [{"recipy": "x"}, {"recipe": None}])
def test_mistake_in_the_custom_config_is_one_clear_message(fn_args, change):
    from sigline.pipeline.run_fn import run_fn

    merged = fn_args.custom_config | change
    fn_args.custom_config = {name: value for name, value in merged.items() if value is not None}
    with pytest.raises(ValueError, match="custom_config must have a recipe, and may have overrid"):
        run_fn(fn_args)
