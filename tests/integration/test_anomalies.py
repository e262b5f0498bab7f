"""TFDV's findings on real records reach the data gate."""

import pytest

from sigline.schemas import tf_example

pytestmark = [pytest.mark.tfx, pytest.mark.slow]


def test_records_that_break_the_schema_become_sentences(tmp_path, scene_records):
    from sigline import quiet

    quiet.import_tfx()
    import dataclasses

    import tensorflow_data_validation as tfdv
    from tfx.types import artifact_utils
    from tfx.types.standard_artifacts import ExampleAnomalies

    from sigline.components.validate import component, gate
    from sigline.schemas import artifacts

    # Over a hundred records, which TFDV wants before it judges images.
    broken = [
        dataclasses.replace(item, image=b"no image", width=0) if index % 10 == 0 else item
        for index, item in enumerate(scene_records * 2)
    ]
    shard = str(tmp_path / "data.gz")
    tf_example.write_shard(shard, [tf_example.encode(item) for item in broken])
    schema = tfdv.load_schema_text(str(artifacts.SCHEMA))
    options = tfdv.StatsOptions(schema=schema, enable_semantic_domain_stats=True)
    statistics = tfdv.generate_statistics_from_tfrecord(shard, stats_options=options)
    anomalies = tfdv.validate_statistics(statistics, schema)
    folder = tmp_path / "anomalies" / "Split-train"
    folder.mkdir(parents=True)
    (folder / "SchemaDiff.pb").write_bytes(anomalies.SerializeToString())
    artifact = ExampleAnomalies()
    artifact.uri = str(tmp_path / "anomalies")
    artifact.split_names = artifact_utils.encode_split_names(["train"])
    counts = {
        "input": 200,
        "written": 200,
        "rejected": 0,
        "rejected_by_reason": {},
        "splits": {"train": 180, "eval": 20},
    }
    problems = gate.data_problems(
        gate.Described(counts, {}), component._read_anomalies(artifact), gate.DataGate()
    )
    assert len(problems) == 2
    assert "feature image: Low supported image fraction" in problems[0]
    assert "feature width: Out-of-range values" in problems[1]
