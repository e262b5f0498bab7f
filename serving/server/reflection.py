"""Server reflection, by which tools such as grpcurl ask which services there are.

The packages that fit TensorFlow's protobuf have `grpc.reflection.v1alpha` alone. Its messages are,
field by field, those of `grpc.reflection.v1`, which newer tools ask for first.
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
    """Returns what answers a message of `ServerReflectionInfo`.

    It lists services, reflection itself included, and tells their messages.
    """
    _describe()
    servicer: Any = v1alpha.ReflectionServicer((*services, *SERVICES))

    def _answer(message: bytes) -> bytes:
        asked = reflection_pb2.ServerReflectionRequest.FromString(message)
        (found,) = servicer.ServerReflectionInfo(iter([asked]), None)
        return found.SerializeToString()

    return _answer


def _describe() -> None:
    """Adds the file of `grpc.reflection.v1` to the descriptors that clients may read."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_FILE)
        return
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = _FILE, _STABLE
    named: list[tuple[Any, str]] = [
        (field, "type_name") for message in file.message_type for field in message.field
    ]
    methods = [method for service in file.service for method in service.method]
    named += [(method, name) for method in methods for name in ("input_type", "output_type")]
    for item, name in named:
        if item.HasField(name):
            setattr(item, name, getattr(item, name).replace(f".{_ALPHA}.", f".{_STABLE}."))
    pool.AddSerializedFile(file.SerializeToString())
