"""The approximate index for large corpora, by FAISS: an inverted file over k-means cells.

Images and texts lie in different cones of the space, so an index that is tuned by images may lose
what texts ask for (clip-retrieval#76): the cells that a query visits are as many as queries by
texts need.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

# Smaller corpora are searched exhaustively; an inverted file would not be faster.
_FEW = 4096
_CELLS_PER_ROOT = 4
_SEED = 0


def build(vectors: np.ndarray) -> Any:
    """Returns an index of unit vectors by their cosine.

    Args:
        vectors: Shape `(rows, dim)`, float32.

    Raises:
        ValueError: If FAISS is not installed.
    """
    faiss = module()
    rows, dim = vectors.shape
    vectors = np.ascontiguousarray(vectors, np.float32)
    if rows < _FEW:
        index = faiss.IndexFlatIP(dim)
    else:
        cells = int(_CELLS_PER_ROOT * rows**0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = _SEED
        threads = faiss.omp_get_max_threads()
        # With several threads the order of sums, and so the result, changes between runs.
        faiss.omp_set_num_threads(1)
        try:
            index.train(vectors)
        finally:
            faiss.omp_set_num_threads(threads)
    index.add(vectors)
    return index


def tune(index: Any, recall: Callable[[], float], least: float) -> float:
    """Has queries visit as many cells as they need; returns the recall that is reached.

    Args:
        index: What `build` returned.
        recall: Returns the recall of the index as it is.
        least: The recall to reach; it is 1 if all cells are visited.
    """
    cells = getattr(index, "nlist", 1)
    visited = min(cells, 8)
    while True:
        if cells > 1:
            index.nprobe = visited
        reached = recall()
        if reached >= least or visited >= cells:
            return reached
        visited = min(cells, 2 * visited)


def search(index: Any, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores and rows of the best matches, each `(queries, top)`, the best first."""
    scores, rows = index.search(np.ascontiguousarray(queries, np.float32), top)
    return scores, rows


def write(index: Any, path: str) -> None:
    """Writes an index."""
    module().write_index(index, path)


def read(path: str) -> Any:
    """Reads an index that `write` wrote; only one whose digest is known to be right."""
    return module().read_index(path)


def module() -> Any:
    """Returns FAISS.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "An index of the kind faiss needs FAISS; install sigline[faiss]."
        ) from None
    return faiss
