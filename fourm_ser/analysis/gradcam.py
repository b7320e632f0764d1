"""Where in the spectrogram a convolutional audio encoder sees the emotion that the network gives an utterance."""

import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor, nn

from fourm_ser import SAMPLE_RATE
from fourm_ser.analysis.attribution import stem_features
from fourm_ser.analysis.examples import Example, draw_waveform, file_stem, read_waveform
from fourm_ser.analysis.findings import Finding, UnsuitedError
from fourm_ser.analysis.spectrogram import Spectrogram, read_spectrogram
from fourm_ser.encoders.base import Encoder, Features, Inputs, moved
from fourm_ser.encoders.vggish import VggishEncoder
from fourm_ser.figures import COLOURS
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.runs.finished import OpenRun

OVERLAY = COLOURS[0]
TICKS = (100, 250, 500, 1000, 2000, 4000, 8000)  # Hz: evenly spread on a mel axis, about


class Activation(NamedTuple):
    """The last convolution's output for one utterance, and what it means for a logit.

    Attributes:
        values: (channels, time, bands) output; one band where the convolution runs along time alone.
        gradients: (channels, time, bands) gradient of the logit by each value.
        logit: The logit of the emotion.
        name: Name of the convolution in the encoder.
    """

    values: np.ndarray
    gradients: np.ndarray
    logit: float
    name: str

    @property
    def map(self) -> np.ndarray:
        """(time, bands): the channels, each weighted by its mean gradient, summed; what is below 0 is 0."""
        weights = self.gradients.mean((1, 2))
        return np.maximum(np.tensordot(weights, self.values, 1), 0.0)


def gradcam(run: OpenRun, examples: Sequence[Example], side: str) -> list[Finding]:
    """Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) of the audio encoder's last convolution.

    The channels of the last convolution's output, each weighted by the mean gradient of the predicted emotion's logit
    over the utterance, summed, and cut off below zero; stretched over the spectrogram. The output is that of the
    convolution itself, before any norm or ReLU. The front end's input goes through the stem anew, whether it is frozen
    or not. VGGish's examples of 0.96 s are put together along time first: an utterance has one weight for each channel.

    Returns:
        A finding an utterance.

    Raises:
        UnsuitedError: The run reads no audio, or its encoder has no convolution over a spectrogram.
    """
    encoder = run.network.by_modality.get("audio")
    if encoder is None:
        raise UnsuitedError(f"The run reads no audio (its {side} side is recognised by text): there is no spectrogram.")
    refuse_unsuited(encoder)
    findings = []
    texts = _read_texts(run, [example.row for example in examples])
    for number, example in enumerate(examples, start=1):
        samples = read_waveform(run, example)
        inputs = encoder.frontend(samples)
        spectrogram = read_spectrogram(encoder, samples, inputs)
        target = run.emotions.index(example.predicted)
        found = activate(run.network, texts.get(example.row), inputs, target)
        findings.append(_draw(encoder, number, example, samples, spectrogram, found))
    return findings


def refuse_unsuited(encoder: Encoder) -> None:
    """Raise an `UnsuitedError` that says why an audio encoder cannot have Grad-CAM, if it cannot."""
    if isinstance(encoder, VggishEncoder) and encoder.stem.whitening is not None:
        raise UnsuitedError(
            f"The audio encoder {encoder.name} ends in AudioSet's postprocessing, which rounds: no gradient passes it."
        )
    probe = np.zeros(SAMPLE_RATE, dtype=np.float32)
    read_spectrogram(encoder, probe, encoder.frontend(probe))
    if not any(isinstance(module, nn.Conv1d | nn.Conv2d) for module in encoder.modules()):
        raise UnsuitedError(
            f"The audio encoder {encoder.name} has no convolution, which Grad-CAM looks at the last of."
        )


@torch.no_grad()
def _read_texts(run: OpenRun, rows: Sequence[int]) -> dict[int, Features]:
    """The text stem's features of utterances, as batches of one, by row; none where no text is read."""
    if not rows or "text" not in run.network.by_modality:
        return {}
    found = stem_features(run, np.array(sorted(set(rows))), ["text"])
    return {row: Features(own[None], own.new_ones(1, len(own), dtype=torch.bool)) for row, _, own in found}


def activate(network: EmotionNetwork, text: Features | None, inputs: Inputs, target: int) -> Activation:
    """The last convolution's output and its gradients, for one utterance.

    Args:
        network: The network, in evaluation mode; its encoders may be frozen.
        text: Features of the text encoder's stem, a batch of one; None where no text is read.
        inputs: What the audio front end makes of the utterance.
        target: Index of the class whose logit it is.
    """
    encoder = network.by_modality["audio"]
    held: list[tuple[str, Tensor]] = []

    def hold(name: str, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        held[:] = [(name, leaf)]
        return leaf.clone()  # what comes next may change it in place

    device = next(network.parameters()).device
    with ExitStack() as stack, torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        for name, module in [*encoder.stem.named_modules(), *encoder.top.named_modules()]:
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                hook = module.register_forward_hook(lambda _, __, output, name=name: hold(name, output))
                stack.callback(hook.remove)
        # cuDNN's LSTM has no backward pass in evaluation mode.
        logit = network(text, moved(encoder.collate([inputs]), device)).logits[0, target]
        name, leaf = held[0]
        (gradients,) = torch.autograd.grad(logit, leaf)
    values, slopes = (_stitched(tensor).float().cpu().numpy() for tensor in (leaf.detach(), gradients))
    return Activation(values, slopes, float(logit.detach()), name)


def _stitched(tensor: Tensor) -> Tensor:
    """(parts, channels, time[, bands]) -> (channels, parts * time, bands): parts one after the other in time."""
    if tensor.ndim == 3:
        tensor = tensor[..., None]
    return tensor.transpose(0, 1).flatten(1, 2)


def stretch(found: np.ndarray, frames: int, bands: int) -> np.ndarray:
    """A map (time, bands) over so many frames and bands, in a line between its values."""
    image = torch.from_numpy(found)[None, None]
    return nn.functional.interpolate(image, (frames, bands), mode="bilinear")[0, 0].numpy()


def _draw(
    encoder: Encoder, number: int, example: Example, samples: np.ndarray, spectrogram: Spectrogram, found: Activation
) -> Finding:
    small = found.map
    frames, bands = spectrogram.values.shape
    whole = np.zeros((frames, bands))
    whole[: spectrogram.seen] = stretch(small, spectrogram.seen, bands)
    figure = Figure(figsize=(9.5, 7.2), layout="constrained")
    top, plain, marked = figure.subplots(3, 1, height_ratios=[0.7, 2, 2])
    draw_waveform(top, samples)
    for axes, ink in ((plain, 1.0), (marked, 0.5)):
        _draw_spectrogram(axes, spectrogram, len(samples) / SAMPLE_RATE, ink)
    plain.tick_params(labelbottom=False)
    plain.set_title("log-mel spectrogram, as the encoder reads it", fontsize="small", loc="left")
    highest = float(whole.max())
    layer = np.empty((bands, frames, 4))
    layer[..., :3] = to_rgb(OVERLAY)
    layer[..., 3] = 0.8 * whole.T / highest if highest > 0 else 0.0
    extent = (float(spectrogram.edges[0]), float(spectrogram.edges[-1]), -0.5, len(spectrogram.hertz) - 0.5)
    marked.imshow(layer, extent=extent, origin="lower", aspect="auto", interpolation="nearest", zorder=2)
    marked.set_xlim(0, len(samples) / SAMPLE_RATE)
    title = (
        f"orange: what speaks for {example.predicted} in {encoder.name}'s {found.name}, {small.shape[0]} steps in time"
    )
    marked.set_title(f"{title}, {small.shape[1]} in frequency", fontsize="small", loc="left")
    marked.set_xlabel("seconds", fontsize="small")
    text = textwrap.fill(f"Said, at moments that are not known: {example.text}", 110)
    figure.suptitle(f"{example.title}\n{text}", fontsize="medium")
    flat = (
        " The convolution runs along time alone: the map says when, not at which pitch." if small.shape[1] == 1 else ""
    )
    peak = spectrogram.times[int(whole.mean(1).argmax())]
    where = f" It is strongest about {peak:.2f} s." if highest > 0 else ""
    none = "" if highest > 0 else " The map is zero: no moment's channels speak for it together."
    table = _table(small, spectrogram)
    return Finding(
        f"gradcam-{file_stem(number, example)}",
        f"Where {encoder.name} sees {example.predicted} in {example.id}",
        f"Chosen: {example.why}. Grad-CAM of {found.name} for the logit of {example.predicted} ({found.logit:.2f}). "
        f"Colour is relative to the utterance's strongest place.{where}{flat}{none}",
        table,
        figure,
        f"The waveform, the log-mel spectrogram, and the spectrogram again with the places in orange that speak for "
        f"{example.predicted}.",
        table.nlargest(5, "value").reset_index(drop=True),
    )


def _draw_spectrogram(axes: Axes, spectrogram: Spectrogram, seconds: float, ink: float) -> None:
    bands, edges = len(spectrogram.hertz), (spectrogram.edges, np.arange(len(spectrogram.hertz) + 1) - 0.5)
    axes.pcolormesh(*edges, spectrogram.values.T, cmap="gray_r", alpha=ink, rasterized=True)
    low, high = spectrogram.hertz[0], spectrogram.hertz[-1]
    ticks = [hertz for hertz in TICKS if low <= hertz <= high]
    axes.set_yticks(np.interp(ticks, spectrogram.hertz, np.arange(bands)), [str(hertz) for hertz in ticks])
    axes.set_ylabel("mel bands, in Hz", fontsize="small")
    axes.set_xlim(0, seconds)
    axes.tick_params(labelsize="small")


def _table(found: np.ndarray, spectrogram: Spectrogram) -> pd.DataFrame:
    """The map at its own resolution: each value with the seconds and Hz of its middle."""
    steps, bands = found.shape
    # The middles of so many equal parts, counted in frames and in mel bands.
    frames = (np.arange(steps) + 0.5) * spectrogram.seen / steps - 0.5
    middles = (np.arange(bands) + 0.5) * len(spectrogram.hertz) / bands - 0.5
    seconds = np.interp(frames, np.arange(len(spectrogram.times)), spectrogram.times)
    hertz = np.interp(middles, np.arange(len(spectrogram.hertz)), spectrogram.hertz)
    table = pd.DataFrame({"second": np.repeat(seconds, bands).round(3), "value": found.flatten()})
    if bands > 1:
        table.insert(1, "hertz", np.tile(hertz, steps).round(1))
    return table
