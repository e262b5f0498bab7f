"""The page that links the reports of a run."""

from sigline.schemas import run_reports


def test_a_report_below_a_root_leads_to_the_page(tmp_path):
    artifact = tmp_path / "artifacts" / "EvaluateModel" / "evaluation" / "11"
    artifact.mkdir(parents=True)
    assert run_reports.address(str(artifact)) == ""
    (tmp_path / "metadata.sqlite").write_bytes(b"")
    address = run_reports.address(str(artifact))
    assert (artifact / address).resolve() == tmp_path / "reports.html"
    assert run_reports.address("gs://bucket/artifacts/EvaluateModel/evaluation/11") == ""


def test_the_page_has_its_date_and_links():
    page = run_reports.page(
        "demo <1>", "2026-11-30 03:00 UTC", ["Blessed; 3 < 4."], [("data report", "a/b&c.html")]
    )
    assert "<h1>demo &lt;1&gt;</h1>" in page
    assert "2026-11-30 03:00 UTC" in page
    assert "<p>Blessed; 3 &lt; 4.</p>" in page
    assert '<a href="a/b&amp;c.html">data report</a>' in page
