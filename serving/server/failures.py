"""What a request can fail with: a gRPC status, and the HTTP status that TF Serving gives it."""

import grpc

_MAX_CHARS = 1024
_TRUNCATED = "...TRUNCATED"
_GRAPH_ERROR_HEADING = "Graph execution error:"
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
# TF Serving, util/net_http; anything else is 500.
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
    """A request that is not answered; the message is for the client.

    Attributes:
        code: The gRPC status.
        http_status: The HTTP status.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, http_status: int | None = None):
        """Cuts the message as TF Serving does; the HTTP status is by default that of the code."""
        if len(message) > _MAX_CHARS:
            message = message[:_MAX_CHARS] + _TRUNCATED
        super().__init__(message)
        self.code = code
        self.http_status = http_status or _HTTP.get(code, 500)


def invalid(message: str) -> RequestFailed:
    """Returns the failure of a request that is wrong in itself."""
    return RequestFailed(grpc.StatusCode.INVALID_ARGUMENT, message)


def client_left() -> RequestFailed:
    """Returns what becomes of a request whose client has left: no failure of the server."""
    return RequestFailed(grpc.StatusCode.CANCELLED, "The client has gone")


def late() -> RequestFailed:
    """Returns the failure of a request whose deadline has passed."""
    return RequestFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline passed")


def of_operation(code: int, message: str) -> RequestFailed:
    """Returns the failure of an operation of the graph, with the line that says what is wrong.

    The other lines would show the graph to the client.
    """
    lines = [line for line in message.splitlines() if line and line != _GRAPH_ERROR_HEADING]
    return RequestFailed(
        _GRPC_CODES.get(code, grpc.StatusCode.INTERNAL), (lines or ["the model failed"])[0]
    )
