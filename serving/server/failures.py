"""Failures of requests: gRPC status codes, and the HTTP status that TF Serving maps each to."""

import grpc

_MAX_CHARS = 1024
_TRUNCATED = "...TRUNCATED"
_GRAPH_ERROR_HEADING = "Graph execution error:"
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
# The mapping of TF Serving's util/net_http. Other codes become 500.
_HTTP = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class RequestFailed(Exception):
    """A request has failed; the message is sent to the client.

    Attributes:
        code: The gRPC status.
        http_status: The HTTP status.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, http_status: int | None = None):
        """Truncates the message as TF Serving does; the HTTP status follows the code by default."""
        if len(message) > _MAX_CHARS:
            message = message[:_MAX_CHARS] + _TRUNCATED
        super().__init__(message)
        self.code = code
        self.http_status = http_status or _HTTP.get(code, 500)


def invalid(message: str) -> RequestFailed:
    """Returns the failure of a request with an invalid argument."""
    return RequestFailed(grpc.StatusCode.INVALID_ARGUMENT, message)


def client_left() -> RequestFailed:
    """Returns the failure of a request whose client has left, which is no fault of the server."""
    return RequestFailed(grpc.StatusCode.CANCELLED, "The client has gone")


def deadline_passed() -> RequestFailed:
    """Returns the failure of a request whose deadline has passed."""
    return RequestFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline passed")


def operation_failed(code: int, message: str) -> RequestFailed:
    """Returns the failure of an operation of the graph, with the first line of its message.

    The other lines describe the graph, which clients must not see.
    """
    lines = [line for line in message.splitlines() if line and line != _GRAPH_ERROR_HEADING]
    return RequestFailed(
        _GRPC_CODES.get(code, grpc.StatusCode.INTERNAL), (lines or ["the model failed"])[0]
    )
