"""The fused embeddings of a finished run's test utterances, and the class vectors that its loss learned with them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from fourm_ser.config import build
from fourm_ser.data.batch import Raw, Source, Stored
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError
from fourm_ser.losses.composite import SumLoss
from fourm_ser.metrics import DistanceRatio
from fourm_ser.model import load_model
from fourm_ser.network import EmotionNetwork


class Embeddings(NamedTuple):
    """A run's test utterances in its embedding.

    Attributes:
        emotions: the classes in the order of their indices.
        rows: (n,) positions of the utterances in the manifest, ascending.
        labels: (n,) class indices.
        vectors: (n, dim), float32, as the fusion gives them.
        class_vectors: (classes, dim) of the loss: centres, or the vectors that a margin compares angles with; None
            where the loss has none for the embedding.
    """

    emotions: list[str]
    rows: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    class_vectors: np.ndarray | None

    @property
    def ratio(self) -> float:
        """The distance ratio of the vectors, which a run records as `test/intra_inter`."""
        metric = DistanceRatio()
        metric.update(torch.from_numpy(self.vectors), torch.from_numpy(self.labels))
        return float(metric.compute())


def read_embeddings(run_dir: Path, cache: Path | None = None) -> Embeddings:
    """The embeddings of a finished run's test utterances, on the processor, in float32.

    Args:
        run_dir: the run directory.
        cache: the folder for what is made once; None for the one that the run names.

    Raises:
        InputError: no finished run, a model that cannot be loaded, or a corpus that is not there any more.
    """
    config = read_config(run_dir)
    cache = Path(config.cache).expanduser() if cache is None else cache
    network, emotions = load_model(run_dir / "model", cache)
    corpus: Corpus = build(config.data, cache=cache)
    data = EmotionDataModule(corpus, pin_memory=False, seed=config.seed)
    data.setup()
    if corpus.emotions != emotions:
        raise InputError(
            f"{run_dir}: the model's classes are {', '.join(emotions)}, the corpus now has "
            f"{', '.join(corpus.emotions)}. Is it the release that the run was trained on?"
        )
    vectors, rows = embed(network, data, config, cache, _left_out(run_dir))
    order = rows.argsort()
    classes, dim = len(emotions), network.fusion.dim
    rows = rows[order]
    return Embeddings(
        emotions, rows, corpus.label[rows], vectors[order], read_class_vectors(run_dir, config, classes, dim)
    )


def read_config(run_dir: Path) -> DictConfig:
    """A run's record.

    Raises:
        InputError: there is none.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"{run_dir}: no config.yaml there. Expected the directory of a finished run.")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


@torch.inference_mode()
def embed(
    network: EmotionNetwork, data: EmotionDataModule, config: DictConfig, cache: Path, frozen: dict[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """The test side through the network.

    Args:
        network: the network, in evaluation mode.
        data: the corpus, split.
        config: the run's record.
        cache: where the embedding store is.
        frozen: fingerprints by modality of the stems that never trained.

    Returns:
        (n, dim) embeddings, and (n,) their positions in the manifest.
    """
    rows = data.corpus.split.test
    readers, keys = data.readers(), data.keys()
    sources: dict[str, Source] = {}
    for modality, encoder in network.by_modality.items():
        sources[modality] = Raw(readers[modality], encoder.frontend)
        if modality in frozen:
            # Features of another precision are other features, as in training.
            fingerprint = frozen[modality] + ("-bf16" if config.encode.precision == "bf16" else "")
            about = {"weights": encoder.weights, "frontend": encoder.frontend.describe(), **encoder.describe()}
            store = FeatureStore(cache / "embeddings", encoder.name, fingerprint, about)
            if not store.missing([keys[modality][row] for row in rows]):
                sources[modality] = Stored(store, keys[modality])
    data.serve(sources, batch_size=32)
    vectors, positions = [], []
    for batch in data.test_dataloader():
        vectors.append(network(batch.text, batch.audio).embedding.float().numpy())
        positions.append(batch.rows.numpy())
    return np.concatenate(vectors), np.concatenate(positions)


def read_class_vectors(run_dir: Path, config: DictConfig, classes: int, dim: int) -> np.ndarray | None:
    """The vectors that a run's loss learned for the classes, at the last stage's best epoch.

    Args:
        run_dir: the run directory.
        config: the run's record.
        classes: number of classes.
        dim: width of the embedding.

    Returns:
        (classes, dim), of the first term of the loss that has vectors for the embedding and a weight other than 0;
        None where no term has.

    Raises:
        InputError: the checkpoint is not there.
    """
    stages = list(config.stage)
    path = run_dir / "stages" / f"{len(stages) - 1}-{stages[-1]}" / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise InputError(f"{path}: no such file. The loss's class vectors are read from the last stage's checkpoint.")
    loss = build(config.loss)
    unused = set(loss.losses) - set(loss.active) if isinstance(loss, SumLoss) else set()
    passed_over = tuple(f"loss.terms.{name}." for name in unused)
    for name, tensor in torch.load(path, map_location="cpu", weights_only=True)["state_dict"].items():
        is_of_loss = name.startswith("loss.") and not name.startswith(passed_over)
        if is_of_loss and "embedding" in name.split(".") and tensor.shape == (classes, dim):
            return tensor.float().numpy()
    return None


def _left_out(run_dir: Path) -> dict[str, str]:
    """Fingerprints by modality of the stems that the model directory refers to."""
    fingerprints = OmegaConf.load(run_dir / "model" / "config.yaml").fingerprints
    return {str(modality): str(fingerprint) for modality, fingerprint in fingerprints.items()}
