"""What trains takes part in every step, or its encoder says that it may not: several processes count on it."""

from pathlib import Path

import pytest
import torch

from fourm_ser.encoders.layers import TransformerEncoder
from fourm_ser.encoders.lora import Lora
from tests.accelerator.networks import VARIANTS, alone, build, inputs_of
from tests.conftest import Compose


@pytest.mark.slow(but=["tiny", "text/bert", "audio/wav2vec", "audio/whisper_base"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_that_trains_has_a_gradient(name: str, tmp_path: Path, composed: Compose) -> None:
    modality = name.split("/")[0]
    _, network = build(composed, tmp_path, alone(name))
    encoder = network.by_modality[modality]
    transformer = isinstance(encoder, TransformerEncoder)
    if transformer:
        encoder.add_adapters(Lora(r=4, alpha=8.0, dropout=0.1, targets="auto"), seed=0)
    for what in ("none", "all", *(["lora"] if transformer else [])):
        encoder.unfreeze(what)
        network.train().zero_grad()
        network(**{"text": None, "audio": None, modality: inputs_of(encoder)}).logits.square().mean().backward()
        unused = [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None]
        assert not unused or (what == "all" and encoder.skips_parts), unused
        assert torch.tensor([value.grad is not None for value in network.parameters()]).any()
