"""Server reflection, with which tools such as grpcurl list services and their messages.

The packages that fit TensorFlow's protobuf have only `grpc.reflection.v1alpha`. Its messages are,
field by field, those of `grpc.reflection.v1`, which newer tools try first.
"""

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection as v1alpha
from grpc_reflection.v1alpha import reflection_pb2

_ALPHA, _STABLE = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_FILE = "grpc/reflection/v1/reflection.proto"
SERVICES = (f"{_STABLE}.ServerReflection", v1alpha.SERVICE_NAME)


def answers(services: Sequence[str]) -> Callable[[bytes], bytes]:
    """Returns a function that answers a message of `ServerReflectionInfo`.

    It lists the services, reflection included, and describes their messages.
    """
    _register_stable_file()
    servicer: Any = v1alpha.ReflectionServicer((*services, *SERVICES))

    def _answer(message: bytes) -> bytes:
        request = reflection_pb2.ServerReflectionRequest.FromString(message)
        (response,) = servicer.ServerReflectionInfo(iter([request]), None)
        return response.SerializeToString()

    return _answer


def _register_stable_file() -> None:
    """Adds a file for `grpc.reflection.v1` to the descriptor pool, which clients may read.

    The installed package has only `v1alpha`; the messages of both are the same.
    """
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_FILE)
        return
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = _FILE, _STABLE
    # Every reference to a message by its full name must be moved to the new package.
    named: list[tuple[Any, str]] = [
        (field, "type_name") for message in file.message_type for field in message.field
    ]
    methods = [method for service in file.service for method in service.method]
    named += [(method, name) for method in methods for name in ("input_type", "output_type")]
    for item, name in named:
        if item.HasField(name):
            setattr(item, name, getattr(item, name).replace(f".{_ALPHA}.", f".{_STABLE}."))
    pool.AddSerializedFile(file.SerializeToString())
