"""What compressed data may stand for: bounds that hold before memory is taken.

A few kilobytes of Parquet or Arrow can stand for gigabytes. What is small when it is written out is
always read; more must stand in a file that is not much smaller, as pictures and numbers do.
"""

import pyarrow as pa

# Bytes that are read whatever they take in the file, how many times as large more may be, and the
# most that is read at all.
FREE_BYTES, MOST_TIMES, MOST_BYTES = 2**26, 100, 2**30
# Bytes of a row: pictures, texts and all that is beside them.
ROW_BYTES = 2**28


class TooLarge(pa.ArrowInvalid):
    """What stands in a file would take more memory than it may; the message says how much."""


def check(what: str, written_out: int, in_file: int) -> None:
    """Refuses what is far larger in memory than in a file.

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
