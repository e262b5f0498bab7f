"""gRPC requests by h2load (Debian's nghttp2-client), which takes less of the cores than Python."""

import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import grpc

# Before each message: whether it is compressed, and its length.
_PREFIX = struct.Struct(">?I")


def is_installed() -> bool:
    """Returns whether there is an h2load."""
    return shutil.which("h2load") is not None


def ask(
    address: str, method: str, message: bytes, concurrency: int, seconds: float
) -> tuple[list[float], float]:
    """Asks in a closed loop over one connection.

    Args:
        address: Host and port.
        method: Path of the gRPC method.
        message: The serialized request, each time the same.
        concurrency: Requests at a time.
        seconds: For how long.

    Returns:
        How long each request that was answered took, and the time from the first request to the
        last answer, in seconds.

    Raises:
        RuntimeError: If a request failed, or had no message for an answer.
    """
    with grpc.insecure_channel(address) as channel:
        answer = len(channel.unary_unary(method)(message, timeout=300.0))
    with tempfile.TemporaryDirectory() as scratch:
        body, log = Path(scratch) / "body", Path(scratch) / "log"
        body.write_bytes(_PREFIX.pack(False, len(message)) + message)
        command = ["h2load", "-c", "1", "-m", str(concurrency), "-D", str(round(seconds))]
        command += ["-d", str(body), "--log-file", str(log), "-N", "300"]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        command += [f"http://{address}{method}"]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        rows = [[int(x) for x in line.split("\t")] for line in log.read_text().splitlines()]
    # Start and length, in microseconds; what is not answered at the end has the status -1.
    answered = [(begin, taken) for begin, status, taken, *_ in rows if status == 200]
    # A failed call has HTTP's status 200 too, but no message.
    data = re.search(r"\((\d+)\) data", ended.stdout)
    least = len(answered) * (_PREFIX.size + answer)
    if not answered or data is None or int(data[1]) < least:
        raise RuntimeError(f"h2load reports requests without an answer: {ended.stdout}")
    took = max(sum(x) for x in answered) - min(begin for begin, _ in answered)
    return [taken / 1e6 for _, taken in answered], took / 1e6
