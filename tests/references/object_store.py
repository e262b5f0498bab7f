"""An object store in memory that TensorFlow and Beam both reach, as both reach `gs://`."""

import tensorflow as tf
from apache_beam.io.filesystem import FileMetadata, FileSystem

gfile = tf.io.gfile


class Store(FileSystem):
    """TensorFlow's file system `ram://` as one of Beam; its folders are names alone."""

    @classmethod
    def scheme(cls):
        return "ram"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        gfile.makedirs(path)

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        # TensorFlow's lists what begins with a folder's name.
        for path in objects(dir_or_prefix.rstrip("/").rpartition("/")[0]):
            if path.startswith(dir_or_prefix):
                yield self.metadata(path)

    def create(self, path, mime_type="", compression_type="auto"):
        gfile.makedirs(path.rpartition("/")[0])
        return gfile.GFile(path, "wb")

    def open(self, path, mime_type="", compression_type="auto"):
        if not self.exists(path):
            raise FileNotFoundError(path)
        return gfile.GFile(path, "rb")

    def exists(self, path):
        return gfile.exists(path) and not gfile.isdir(path)

    def delete(self, paths):
        for path in paths:
            gfile.remove(path)

    def copy(self, source_file_names, destination_file_names):
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            gfile.copy(source, target, overwrite=True)

    def rename(self, source_file_names, destination_file_names):
        self.copy(source_file_names, destination_file_names)
        self.delete(source_file_names)

    def size(self, path):
        return gfile.stat(path).length

    def last_updated(self, path):
        return 0.0

    def checksum(self, path):
        return ""

    def metadata(self, path):
        return FileMetadata(path, self.size(path))


def objects(folder: str) -> list[str]:
    """Returns the paths of all objects whose names begin with a folder's."""
    return sorted(
        "/".join([base.rstrip("/"), name])
        for base, _, names in gfile.walk(folder)
        for name in names
    )


def put(folder: str, files: dict[str, bytes]) -> None:
    """Writes objects by their names below a folder."""
    store = Store(None)
    for name, content in files.items():
        with store.create(f"{folder}/{name}") as handle:
            handle.write(content)


def get(folder: str) -> dict[str, bytes]:
    """Returns the objects below a folder by their names."""
    found = {}
    for path in objects(folder):
        with gfile.GFile(path, "rb") as handle:
            found[path.removeprefix(f"{folder}/")] = handle.read()
    return found
