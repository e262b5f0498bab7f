"""Reads pairs from a table of file URLs with img2dataset, as `benchmarks/ingest.py` asks for."""

import sys

import img2dataset

SCALED = {
    "image_size": 256,
    "resize_mode": "keep_ratio_largest",
    "resize_only_if_bigger": True,
    "encode_quality": 95,
}
KEPT = {"resize_mode": "no", "skip_reencode": True}


def main() -> None:
    """Runs it in one process with as many threads as files need."""
    table, output, mode = sys.argv[1:]
    img2dataset.download(
        url_list=table,
        input_format="csv",
        url_col="url",
        caption_col="caption",
        output_folder=output,
        output_format="webdataset",
        number_sample_per_shard=512,
        processes_count=1,
        thread_count=2,
        **(SCALED if mode == "scaled" else KEPT),
    )


if __name__ == "__main__":
    main()
