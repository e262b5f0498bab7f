from sigline.components.ingest import account, reasons
from sigline.components.ingest.sources import PassedOver
from sigline.pipeline.run_report import RunReport, rows


def test_summary_names_what_was_passed_over_by_folder_and_suffix():
    things = [PassedOver(f"cats/{i}.HEIC", reasons.UNKNOWN_FORMAT) for i in range(3)]
    files = account.ledger([*things, PassedOver("README.md", reasons.DOCUMENT)])
    members = account.ledger([PassedOver("a.tar/x/1.jpg", reasons.BROKEN_LINK)])
    counts = {
        "input": 10,
        "rejected": 0,
        "rejected_by_reason": {},
        "splits": {"train": 9, "eval": 1},
        "passed_over": account.summary(files, members, num_files=(20, 16), num_members=(5, 4)),
    }
    training = {
        "steps": 1,
        "global_batch_size": 2,
        "images_per_second": 3.0,
        "data_wait_fraction": 0.0,
    }
    outcome = RunReport(
        (), counts, training, metrics={}, verdict={}, infra={}, published={}, index={}
    )
    shown = rows(outcome)
    start = shown.index(("things passed over", "5, of which 4 may hold pairs"))
    assert shown[start + 1 : start + 4] == [
        ("  unknown_format", "3 cats/*.heic"),
        ("  broken_link", "1 a.tar/x/*.jpg"),
        ("  document", "1 *.md"),
    ]
