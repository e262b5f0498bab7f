from sigline.schemas import versions


def test_versions_are_those_that_tf_serving_finds(tmp_path):
    for name in ("1", "00000123", "9" * 20, "x", "1.0", "-1", ".withdrawn-7", "\u0663"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("no folder")
    found = versions.directories(tmp_path)
    assert found == {1: tmp_path / "1", 123: tmp_path / "00000123"}
    assert versions.list_versions(tmp_path) == [1, 123]
    assert versions.list_versions(tmp_path / "nothing") == []
