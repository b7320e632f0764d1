"""Frozen stems without a store: what they give is what the store would hold."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fourm_ser.data.batch import Batch
from fourm_ser.encoders.base import Encoder, Inputs
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.models.features import Encoding
from fourm_ser.models.frozen import with_features
from fourm_ser.models.network import EmotionNetwork
from tests.models.test_features import CPU, ENCODERS, Work


class One(EmotionNetwork):
    """A network of a single encoder."""

    def __init__(self, encoder: Encoder) -> None:
        torch.nn.Module.__init__(self)
        self.encoders = torch.nn.ModuleDict({encoder.modality: encoder})


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("around", [None, torch.bfloat16])
@pytest.mark.parametrize(("name", "pool"), [("bert", "none"), ("mel_lstm", "mean_std"), ("wav2vec", "none")])
def test_they_give_what_the_store_holds(
    name: str, pool: str, precision: str, around: torch.dtype | None, tmp_path: Path
) -> None:
    build, draw, batch_length = ENCODERS[name]
    work = Work(build(tmp_path), draw(6), batch_length)
    encoder = work.encoder.eval()
    encoder.pool(pool)
    encoder.unfreeze("none")
    filled = FeatureStore(root=tmp_path, name="tiny", fingerprint="abc", made_by={})
    work.fill(filled, precision=precision)
    inputs = encoder.collate([encoder.frontend(raw) for raw in work.raws])
    parts: dict[str, Inputs | None] = {"text": None, "audio": None, encoder.modality: inputs}
    batch = Batch(torch.arange(6), torch.zeros(6), **parts)
    encoding = Encoding(tmp_path, precision, 1.0, 1.0, CPU, store=False)
    with torch.autocast("cpu", around or torch.bfloat16, enabled=around is not None):
        found = with_features(One(encoder), batch, encoding)._asdict()[encoder.modality]
    assert found.features.dtype == torch.float32
    assert not found.features.requires_grad
    for row, key in enumerate(work.keys):
        own, stored = found.features[row, found.mask[row]], filled.read(key)
        if precision == "32":
            torch.testing.assert_close(own, stored, rtol=0, atol=1e-5)
        else:
            assert torch.equal(own, own.half().float())  # rounded as there; the batch's size moves bf16's last digits
            assert torch.cosine_similarity(own, stored, dim=-1).min() > 0.995


def test_stems_that_train_get_their_raw_inputs(tmp_path: Path) -> None:
    encoder = ENCODERS["mel_lstm"][0](tmp_path)
    encoder.unfreeze("all")
    inputs = encoder.collate([encoder.frontend(np.zeros(4_000, dtype=np.float32))])
    batch = Batch(torch.arange(1), torch.zeros(1), None, inputs)
    assert with_features(One(encoder), batch, Encoding(tmp_path, "32", 1.0, 1.0, CPU, store=False)).audio is inputs
