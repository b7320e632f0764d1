"""Frozen encoders on a pretend accelerator: the store that they fill, what trains on it, and the model in use."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourm_ser.analysis.attribution import attribute
from fourm_ser.config import build as instantiate
from fourm_ser.data.batch import Raw, Stored
from fourm_ser.encoders.base import Encoder, moved
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.losses.base import Loss
from fourm_ser.models.directory import Conditions, Model
from fourm_ser.models.features import Encoding, fill_store
from fourm_ser.models.inference import Inference
from tests.accelerator.device import Pretend
from tests.accelerator.networks import (
    CPU,
    EMOTIONS,
    LABELS,
    RAW,
    VARIANTS,
    Build,
    alone,
    check_gradients,
    check_near,
    gradients,
    inputs_of,
)

KEYS = [f"utterance {place}" for place in range(len(LABELS))]


def filled(folder: Path, encoder: Encoder, where: torch.device, precision: str) -> Stored:
    """This module's utterances as features of an encoder."""
    store = FeatureStore(root=folder, name=encoder.name, fingerprint=precision, made_by={})
    raws = RAW[encoder.modality]
    lengths = np.array([len(raw) + 1.0 for raw in raws])
    source = Raw(lambda index: raws[index], encoder.frontend)
    how = Encoding(folder, precision, 1e9, 1e9, where)
    assert fill_store(store, encoder, source, keys=KEYS, lengths=lengths, encoding=how, workers=0) == len(KEYS)
    return Stored(store, KEYS)


@pytest.mark.slow(but=["audio/whisper_base", "text/tiny"])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_stored_there_is_the_cpu_s_and_trains_the_rest(
    name: str, tmp_path: Path, build: Build, pretend: Pretend, device: torch.device
) -> None:
    modality = name.split("/")[0]
    config, network = build(*alone(name))
    loss: Loss = instantiate(config.loss).setup(4, network.widths, [1, 1, 1, 1])
    encoder = network.by_modality[modality]
    encoder.unfreeze("none")
    exact = filled(tmp_path / "here", encoder, CPU, "32")
    expected = exact.collate(KEYS).padded(CPU)
    for precision, dtype in (("32", None), ("bf16", torch.bfloat16), ("16", torch.float16)):
        with pretend.watched() as seen:
            stored = filled(tmp_path / "there", encoder, device, precision)
        assert seen.runs
        found = stored.collate(KEYS).padded(device)
        assert torch.equal(found.mask.cpu(), expected.mask)
        check_near(found.features[found.mask], expected.features[expected.mask], dtype)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        assert not tensor.is_inference(), name
        assert tensor.device == CPU, name  # whatever stays on the accelerator takes its memory
    here = nn.ModuleList([network, loss]).eval()
    there = copy.deepcopy(here).to(device)
    slopes = []
    for both, where in ((here, CPU), (there, device)):
        model, its_loss = both
        assert isinstance(its_loss, Loss)
        part = exact.collate(KEYS).padded(where)
        output = model(*(part if own == modality else None for own in ("text", "audio")))
        terms = its_loss(output.logits, output.features(its_loss.on), LABELS.to(where))
        torch.autograd.backward(terms["total"])
        slopes.append(gradients(both))
    # Hz and dB as they are, in the hundreds: what attention makes of them is rounded more, to 2e-5 with AMX.
    check_gradients(slopes[1], slopes[0], None, larger=10.0 if encoder.name == "descriptors" else 1.0)


@pytest.mark.slow(but=["text/tiny"])
@pytest.mark.parametrize("name", ["text/tiny", "audio/vggish", "audio/weighted"])
def test_a_model_is_used_there_as_it_was_trained(name: str, build: Build, device: torch.device) -> None:
    _, network = build(*VARIANTS[name], "fusion=self_attention", "fusion.heads=4")
    inputs = {modality: inputs_of(encoder) for modality, encoder in network.eval().by_modality.items()}
    with torch.no_grad():
        expected = network(inputs["text"], inputs["audio"]).logits
    choices = itertools.product(
        ([], ["text", "audio"]), ("32", "bf16", "16"), ("32-true", "bf16-mixed", "16-mixed"), (True, False)
    )
    for stored, encoding, precision, exact in choices:
        use = Conditions(stored, encoding, precision, 30.0)
        output = Inference(Model(network, EMOTIONS, use), device, exact)(inputs["text"], inputs["audio"])
        plain = precision == "32-true" and not (stored and encoding != "32")
        halves = torch.bfloat16 if "bf16" in f"{encoding} {precision}" else torch.float16
        check_near(output.logits, expected, None if plain else halves)


def test_gradients_by_the_inputs_follow_features_made_in_inference_mode(build: Build, device: torch.device) -> None:
    """As in an analysis: features of all utterances first, then what single ones of them speak for."""
    _, network = build("fusion=self_attention", "fusion.heads=4")
    found = []
    for where in (CPU, device):
        network.eval().to(where)
        given: Any = {modality: moved(inputs_of(part), where) for modality, part in network.by_modality.items()}
        with torch.inference_mode():
            network(given["text"], given["audio"])
        with torch.no_grad():
            stems = {
                modality: encoder.stem_features(given[modality]) for modality, encoder in network.by_modality.items()
            }
        features = {modality: stem.features[3, stem.mask[3]] for modality, stem in stems.items()}
        average = {modality: part.mean(0) for modality, part in features.items()}
        found.append(attribute(network, features, average, target=0, steps=8, tolerance=1.0, most_steps=8))
    here, there = found
    assert there.sums == pytest.approx(here.sums, abs=1e-5)
    for modality, values in there.values.items():
        assert values == pytest.approx(here.values[modality], abs=1e-5)
