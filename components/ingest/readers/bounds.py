"""Bounds on what compressed data expands to, checked before memory is allocated.

A few kilobytes of Parquet or Arrow can stand for gigabytes. What is small when it is written out is
always read; more must stand in a file that is not much smaller, as pictures and numbers do.
"""

import pyarrow as pa

# Up to FREE_BYTES are always read. More must not exceed MOST_TIMES its size in the file, nor
# MOST_BYTES: a limit on the ratio alone would refuse small columns of equal values.
FREE_BYTES, MOST_TIMES, MOST_BYTES = 2**26, 100, 2**30
# Maximum size of a row in bytes, with its pictures, texts and other columns.
ROW_BYTES = 2**28


class TooLarge(pa.ArrowInvalid):
    """Content that would take more memory than allowed; the message says how much."""


def check(what: str, written_out: int, in_file: int) -> None:
    """Refuses content that is far larger in memory than in its file.

    Args:
        what: Names it in the message.
        written_out: Bytes in memory.
        in_file: Bytes in the file.

    Raises:
        TooLarge: If it is.
    """
    most = max(FREE_BYTES, min(MOST_BYTES, MOST_TIMES * in_file))
    if written_out > most:
        raise TooLarge(f"{what} of {in_file} bytes stands for {written_out}, of at most {most}")
