"""VGGish: a VGG network over 0.96 s of log-mel spectrogram at a time (Hershey et al. 2017).

"CNN architectures for large-scale audio classification", ICASSP 2017, https://arxiv.org/abs/1609.09430; the front end
and the postprocessing are those of https://github.com/tensorflow/models/tree/master/research/audioset/vggish, the
weights those of https://github.com/harritaylor/torchvggish.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, Unfreeze, length_mask
from fourm_ser.encoders.frontends import Examples
from fourm_ser.encoders.official import load_official, official_file, read_tensors
from fourm_ser.errors import InputError, listed

DIM = 128

STAGES = ((64,), (128,), (256, 256), (512, 512))
CONNECTED = (4096, 4096, DIM)
TOGETHER = 8  # examples whose convolutions are computed at a time


class Vggish(nn.Module):
    """The network: four stages of convolutions, three fully connected layers, names as in the official file."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for stage in STAGES:
            for width in stage:
                layers += [nn.Conv2d(before, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        shrunk = 2 ** len(STAGES)
        widths = (before * (Examples.LENGTH // shrunk) * (Examples.MELS // shrunk), *CONNECTED)
        layers = []
        for width, after in pairwise(widths):
            layers += [nn.Linear(width, after), nn.ReLU(inplace=True)]
        self.embeddings = nn.Sequential(*layers)

    def forward(self, examples: Tensor) -> Tensor:
        """Examples (examples, 96, 64) -> (examples, 128)."""
        # Channels last is the layout that convolutions are fastest in on a processor, by half.
        images = examples[:, None].contiguous(memory_format=torch.channels_last)
        # The convolutions' activations are best kept near a processor's caches, the connected layers' weights read
        # once for many examples.
        parted = images.device.type == "cpu" and not torch.compiler.is_exporting()  # to any number of examples
        parts = images.split(TOGETHER) if parted else [images]  # type: ignore[no-untyped-call]
        convolved = torch.cat([self._convolve(part) for part in parts])
        # (examples, channels, time, mels) -> (examples, time * mels * channels): the order of TensorFlow
        return self.embeddings(convolved.permute(0, 2, 3, 1).flatten(1))

    def _convolve(self, images: Tensor) -> Tensor:
        """(examples, 1, 96, 64) -> (examples, 512, 6, 4)."""
        if torch.is_grad_enabled() or images.device.type != "cpu":
            return self.features(images)
        for layer in self.features:
            # Of four neighbours, without noting which one it was: a fraction of torch's time for it.
            images = _largest(images) if isinstance(layer, nn.MaxPool2d) else layer(images)
        return images

    def draw(self, seed: int) -> None:
        """Random weights: Kaiming's, which keep the variance through nine layers of ReLU, and biases of zero."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _largest(images: Tensor) -> Tensor:
    """Max pooling of 2 by 2 (examples, channels, even, even)."""
    rows = torch.maximum(images[:, :, ::2], images[:, :, 1::2])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


class Whitening(nn.Module):
    """The postprocessing of AudioSet's published features: PCA with whitening, then eight bits a value.

    A value that lies where two steps meet may fall on either side as batches round it: features of one utterance may
    differ by one step of 255. An eigenvector is a row of the vectors (128, 128).
    """

    pca_eigen_vectors: Tensor
    pca_means: Tensor

    def __init__(self, vectors: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("pca_eigen_vectors", vectors)
        self.register_buffer("pca_means", means)

    def forward(self, features: Tensor) -> Tensor:
        """(examples, 128) -> whole numbers of 0 to 255 (examples, 128): [-2, 2] in 255 steps."""
        with torch.autocast(features.device.type, enabled=False):
            whitened = (features.float() - self.pca_means) @ self.pca_eigen_vectors.T
            return torch.round((whitened.clamp(-2.0, 2.0) + 2.0) * (255.0 / 4.0))


class VggishStem(nn.Module):
    """VGGish's features of a batch, postprocessed where AudioSet's parameters are given."""

    def __init__(self, network: Vggish, whitening: Whitening | None) -> None:
        super().__init__()
        self.network, self.whitening = network, whitening

    def forward(self, inputs: Inputs) -> Features:
        """`examples`, `counts` and `places`, see `Examples` -> features (batch, most examples, 128)."""
        features = self.network(inputs["examples"])
        if self.whitening is not None:
            features = self.whitening(features)
        mask = length_mask(inputs["counts"], inputs["places"].shape[1])
        return Features(features[inputs["places"]].masked_fill(~mask[..., None], 0.0), mask)


class VggishEncoder(Encoder):
    """VGGish: 128 features for each 0.96 s, behind the last ReLU or after AudioSet's postprocessing.

    Args:
        name: the encoder's name in the store and in the log.
        weights: `pretrained`, `random`, the official file, or a folder that holds it by its name.
        init_seed: seed of random weights.
        url: where the official file is.
        digest: what its sha256 begins with; None: it is not checked.
        pca: AudioSet's postprocessing: False for none, True with the parameters at `pca_url`, or their
            file, or a folder that holds it by its name.
        pca_url: where the official file of the PCA parameters is.
        pca_digest: what the sha256 of that file begins with; None: it is not checked.
        drop_tail: leave out what is behind the last whole example.
        resources: the cache.

    Raises:
        InputError: weights or PCA parameters cannot be had, or do not fit.
    """

    modality: ClassVar[str] = "audio"
    stem: VggishStem

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        init_seed: int,
        url: str,
        digest: str | None,
        pca: bool | str,
        pca_url: str,
        pca_digest: str | None,
        drop_tail: bool,
        resources: Resources,
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.frontend = Examples(drop_tail)
        with torch.device("meta"):  # 72 million weights that are drawn or read below
            network = Vggish()
        network.to_empty(device="cpu")
        if weights == "random":
            network.draw(init_seed)
        else:
            load_official(network, official_file(weights, url=url, digest=digest, cache=resources.cache))
        whitening = None
        if pca:
            path = official_file(
                "pretrained" if pca is True else pca,
                url=pca_url,
                digest=pca_digest,
                cache=resources.cache,
                key="encoder.audio.pca",
                instead="encoder.audio.pca=false",
            )
            whitening = load_whitening(path)
        self.stem, self.top = VggishStem(network, whitening), nn.Identity()
        self.stem_dim = self.dim = DIM

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return DIM

    def blocks(self) -> list[nn.Module]:
        """The four convolutional stages and the three fully connected layers."""
        features, connected = self.stem.network.features, self.stem.network.embeddings
        ends = [place + 1 for place, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        stages = [features[start:end] for start, end in pairwise([0, *ends])]
        return [*stages, *(connected[start : start + 2] for start in range(0, len(connected), 2))]

    def unfreeze(self, what: Unfreeze) -> None:
        if self.stem.whitening is not None and what != "none":
            raise InputError(
                f"stage: unfreeze.audio={what}: {self.name} ends in AudioSet's postprocessing (encoder.audio.pca), "
                "whose rounding has no gradient. Use encoder.audio.pca=false, or unfreeze.audio=none."
            )
        super().unfreeze(what)

    def describe(self) -> dict[str, Any]:
        return {"pca": self.stem.whitening is not None}

    def save(self, folder: Path) -> dict[str, Any]:
        if self.stem.whitening is None:
            return {}
        folder.mkdir()
        save_file(self.stem.whitening.state_dict(), folder / "pca.safetensors")
        return {"pca": f"${{folder}}/{folder.name}/pca.safetensors"}


def load_whitening(path: Path) -> Whitening:
    """PCA parameters out of the official file, or out of a model directory's pca.safetensors.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: no safetensors file that can be read: {error}.") from error
    else:
        tensors = read_tensors(path)
    sizes = {"pca_eigen_vectors": DIM * DIM, "pca_means": DIM}
    if {name: tensor.numel() for name, tensor in tensors.items()} != sizes:
        found = listed([f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()])
        raise InputError(
            f"{path}: holds {found}; PCA parameters of VGGish are pca_eigen_vectors ({DIM}, {DIM}) and pca_means "
            f"({DIM},)."
        )
    vectors, means = (tensors[name].float().clone().contiguous() for name in sizes)
    return Whitening(vectors.reshape(DIM, DIM), means.flatten())
