"""The file of what predictions are made of: an embedding a row, in NumPy's .npz, without pickle."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fourm_ser.errors import printable
from fourm_ser.files import whole
from fourm_ser.prediction.predictor import Moment, Predictor
from fourm_ser.prediction.table_file import explained


@contextmanager
def embedding_file(path: Path, predictor: Predictor) -> Iterator[Callable[[str, Moment], None]]:
    """A file of embeddings that appears whole when the block ends: yields what takes the next row.

    Its rows are those of the table, in order, also those without a prediction; they are held in memory until then. All
    of it is read by `numpy.load(path)`:

    - `embedding` (rows, dim) float32: the fused vector of each; NaN where there is no prediction.
    - `probabilities` (rows, classes) float32, in the order of `emotions`; NaN where there is no prediction.
    - `id` (rows,), `start` and `end` (rows,) float64, in seconds: NaN where there is no recording.
    - `emotions` (classes,): the classes.

    Args:
        path: The file.
        predictor: What predicts, made with `embeddings=True`.

    Raises:
        InputError: it cannot be written.
    """
    rows: list[tuple[str, float, float]] = []
    vectors: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    no_vector = np.full(predictor.dim, np.nan, dtype=np.float32)
    no_shares = np.full(len(predictor.emotions), np.nan, dtype=np.float32)

    def keep(name: str, moment: Moment) -> None:
        found = moment.prediction
        rows.append((printable(name), moment.start, moment.end))
        vectors.append(no_vector if found is None or found.embedding is None else found.embedding)
        told = no_shares if found is None else np.array(list(found.probabilities.values()), dtype=np.float32)
        shares.append(told)

    yield keep
    names, starts, ends = zip(*rows, strict=True) if rows else ((), (), ())
    arrays = {
        "embedding": np.array(vectors, dtype=np.float32).reshape(len(rows), predictor.dim),
        "probabilities": np.array(shares, dtype=np.float32).reshape(len(rows), len(predictor.emotions)),
        "id": np.array(names, dtype=str),
        "start": np.array(starts, dtype=np.float64),
        "end": np.array(ends, dtype=np.float64),
        "emotions": np.array(predictor.emotions, dtype=str),
    }
    with explained(path, "embeddings"), whole(path) as temporary:
        np.savez(temporary, allow_pickle=False, **arrays)
