import numpy as np
import tensorflow as tf

from sigline.trainer import config
from sigline.trainer.training import progress


def _events(folder):
    (path,) = folder.glob("events.*")
    return [
        (event.step, value)
        for item in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        if (event := tf.compat.v1.Event.FromString(item))
        for value in event.summary.value
    ]


def test_events_hold_scalars_pictures_and_texts(tmp_path):
    settings = config.tiny(config.load_recipe("siglip_demo"))
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    with progress.Report(settings, first_step=0, log_dir=tmp_path, silent=True) as report:
        report.show_batch(1, tf.constant(pixels), ["a cat", "a dog"])
        # Embeddings show nothing.
        report.show_batch(2, tf.zeros((10, 4)), [])
        report.show(3, {"loss": 1.5, "images_per_second": 1.0, "data_wait_fraction": 0.0})
    events = {value.tag: (step, value) for step, value in _events(tmp_path)}
    assert set(events) == {
        "batch/images",
        "batch/texts",
        "loss",
        "images_per_second",
        "data_wait_fraction",
    }
    step, images = events["batch/images"]
    width, height, *encoded = images.tensor.string_val
    assert (step, width, height, len(encoded)) == (1, b"8", b"8", 8)
    np.testing.assert_array_equal(tf.io.decode_png(encoded[3]), pixels[3])
    assert events["batch/texts"][1].tensor.string_val[0] == b"0. a cat\n1. a dog"
    assert events["loss"][0] == 3


def test_line_has_the_extremes_of_attention_where_it_is_monitored():
    values = {"loss": 1.5, "images_per_second": 80.4, "data_wait_fraction": 0.125}
    assert progress._line(values) == "loss 1.500, 80 images/s, data wait 12%"
    extremes = {"attention/max_logit": 51.26, "attention/min_entropy_share": 0.043}
    assert progress._line(values | extremes).endswith(
        "data wait 12%, attention logits up to 51.3, entropy from 4%"
    )
