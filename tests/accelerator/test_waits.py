"""Nothing of this package makes the host wait for an accelerator where it could keep it busy instead."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning_fabric
import numpy as np
import pytest
import pytorch_lightning
import torch
from pytorch_lightning import Callback, Trainer

import fourm_ser
from fourm_ser.data.batch import Raw
from fourm_ser.devices import HostCopy
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.models.features import Encoding, fill_store
from fourm_ser.training import experiment
from fourm_ser.training.trainer import build_trainer
from tests.accelerator.device import Pretend, Seen, Wait
from tests.accelerator.networks import CPU, RAW, Build, alone
from tests.conftest import Compose

pytestmark = [
    pytest.mark.usefixtures("without_figures"),
    pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA is not"),  # Lightning's, before it is replaced
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accelerator")


def own(waits: Iterable[Wait]) -> str:
    """The waits that were made by code of this package, one a line; Lightning's are those of its loop."""
    called = [(wait, wait.within(fourm_ser, pytorch_lightning, lightning_fabric)) for wait in waits]
    folder = Path(fourm_ser.__file__).parent
    return "\n".join(str(wait) for wait, call in called if call and Path(call.file).is_relative_to(folder))


class Steps(Callback):
    """Watches some of each stage's training steps, with all that is between them.

    The steps before make what these use, and of the first of them the losses are looked at by then.
    """

    first, after = 10, 14

    def __init__(self, pretend: Pretend) -> None:
        self.pretend = pretend
        self.seen: list[Seen] = []
        self.meanwhile = ExitStack()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.seen.append(self.meanwhile.enter_context(self.pretend.watched()))
        if batch_idx == self.after:
            self.meanwhile.close()


STEPS = {
    "float32": ["trainer.precision=32-true", "loss=ce_center", "data.workers=1", "stage.finetune.ema=0.9"],
    "bf16": ["trainer.precision=bf16-mixed", "loss=ce_contrastive_center", "encode.precision=bf16"],
    "float16": [
        "trainer.precision=16-mixed",
        "loss=focal_center",
        "stage.transfer.accumulate=2",
        "stage.transfer.ema=0.9",
    ],
    "half of it stored": [
        *("trainer.precision=32-true", "loss=arcface", "scheduler=plateau", "stage.finetune.unfreeze.text=none"),
        *("stage.transfer.gradient_clip=null", "optimizer=sgd"),
    ],
}


@pytest.mark.slow(but=["float32"])
@pytest.mark.parametrize("name", STEPS)
def test_a_steady_training_step_waits_for_nothing(
    name: str,
    home: Path,
    tmp_path: Path,
    composed: Compose,
    pretend: Pretend,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps(pretend)

    def with_steps(*given: Any, **arguments: Any) -> Trainer:
        trainer: Any = build_trainer(*given, **arguments)
        trainer.callbacks.insert(0, steps)
        return trainer

    monkeypatch.setattr(experiment, "build_trainer", with_steps)
    short = [f"stage.{stage}.{words}" for stage in ("transfer", "finetune") for words in ("epochs=1", "batch_size=2")]
    small = ["encoder.text.architecture.hidden_size=32", "encoder.audio.hidden=16", "encoder.audio.frontend.hop=1600"]
    config = composed(
        *(f"cache={home}", "trainer=gpu", "data.utterances=60", *small),
        *("fusion=self_attention", "fusion.heads=4", *short, *STEPS[name]),
    )
    experiment.run(config, tmp_path)
    assert len(steps.seen) == 2
    count = steps.after - steps.first
    for seen in steps.seen:
        assert sum(seen.runs.values()) > 50 * count
        assert seen.bytes_there > 0
        assert not own(seen.waits), own(seen.waits)
        assert seen.events <= count  # for the loss of a step that is long over


def test_a_copy_to_the_host_is_waited_for_where_it_is_needed(pretend: Pretend, device: torch.device) -> None:
    values = torch.arange(3.0, device=device)
    with pretend.watched() as seen:
        copy = HostCopy(values)
        values.add_(1)
        assert seen.events == 0
        assert copy.get().tolist() == [0, 1, 2]
    assert not seen.waits
    assert seen.events == 1


@pytest.mark.parametrize("name", ["text/bert", "audio/tiny", "audio/vggish", "audio/wav2vec", "audio/panns"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_an_encoding_pass_waits_for_nothing_between_its_batches(
    name: str, precision: str, tmp_path: Path, build: Build, pretend: Pretend, device: torch.device
) -> None:
    modality = name.split("/")[0]
    _, network = build(*alone(name))
    encoder = network.by_modality[modality]
    encoder.unfreeze("none")
    raws = RAW[modality][-1:] * 12
    keys, lengths = [str(place) for place in range(len(raws))], np.full(len(raws), float(len(raws[0])))
    store = FeatureStore(root=tmp_path, name=encoder.name, fingerprint=precision, made_by={})
    source = Raw(lambda index: raws[index], encoder.frontend)
    how = Encoding(tmp_path, precision, 2.5 * lengths[0], 2.5 * lengths[0], device)
    with pretend.watched() as seen:
        fill_store(store, encoder, source, keys=keys, lengths=lengths, encoding=how, workers=0)
    assert network.state_dict()
    assert all(tensor.device == CPU for tensor in network.state_dict().values())
    between = [wait for wait in seen.waits if any(call.function == "stem" for call in wait.calls)]
    assert not between, "\n".join(map(str, between))
    # Once for each weight on its way there and back, and for nothing that every batch has.
    moves = 2 * len([*encoder.parameters(), *encoder.buffers()])
    waits = [str(wait) for wait in seen.waits]
    assert len(waits) <= moves, "\n".join(waits)
