"""The LightningModule: steps, metrics, optimizer groups."""

import hashlib
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule, seed_everything
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from fourm_ser.data.batch import Batch
from fourm_ser.devices import HostCopy, copies_ahead
from fourm_ser.distributed import gather_rows, rank
from fourm_ser.encoders.base import Features
from fourm_ser.losses.base import Loss
from fourm_ser.models.features import Encoding
from fourm_ser.models.frozen import with_features
from fourm_ser.models.metrics import EmotionMetrics
from fourm_ser.models.network import EmotionNetwork, NetworkOutput
from fourm_ser.training.augmentation import Augmentation
from fourm_ser.training.mixup import Mixing
from fourm_ser.training.optimizers import JoinedOptimizers, build_optimizer
from fourm_ser.training.schedules import JoinedSchedules, Plateau, advance
from fourm_ser.training.stages import MONITORS, Stage

LATE = 8  # steps after which a device is asked whether a loss was finite: it has long known by then


class NotFiniteError(Exception):
    """A loss became NaN or infinite.

    Args:
        terms: The terms of the loss that did.
        rows: The batch's positions in the manifest.
        when: The side, epoch and step in which they did.
    """

    def __init__(self, terms: Sequence[str], rows: Sequence[int], when: str) -> None:
        super().__init__(f"{', '.join(terms)} not finite in {when}")
        self.terms, self.rows, self.when = list(terms), list(rows), when


class _Step(NamedTuple):
    """A step whose loss nobody looked at yet: whether it is finite, its terms, the batch's rows, when it was."""

    finite: HostCopy
    terms: dict[str, Tensor]
    rows: Tensor
    when: str


class EmotionModule(LightningModule):
    """One stage of training a network.

    Args:
        network: The network, its stems frozen or not.
        loss: The loss, set up for the network.
        emotions: The classes in the order of their indices.
        stage: What the config says of the stage, its length settled: that of the schedule.
        steps_per_epoch: Optimizer steps of an epoch, by which the schedule goes. Asked of Lightning, they would make
            the training loader before a resumed run knows its epoch, and its workers would read ahead in the first
            epoch's order.
        seed: The run's seed. Every epoch is seeded from it, the stage's number and its own number, so that a resumed
            run draws what an undisturbed one draws.
        trained: Modalities whose stems train in this stage or trained in an earlier one. Checkpoints leave the others
            out, which are what the config says.
        adapted: Those of them in which nothing but adapters trained: checkpoints hold the adapters alone.
        encoding: How frozen stems are run on what comes raw; None where all that is theirs comes from the store.
        augmentation: What training changes at random.
        epochs_before: Epochs of the stages before this one, for a schedule of the loss's own.
    """

    def __init__(
        self,
        *,
        network: EmotionNetwork,
        loss: Loss,
        emotions: Sequence[str],
        stage: Stage,
        steps_per_epoch: int,
        seed: int,
        trained: Collection[str],
        adapted: Collection[str] = (),
        encoding: Encoding | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        epochs_before: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.stage = network, loss, stage
        self.steps_per_epoch, self.seed, self.encoding = steps_per_epoch, seed, encoding
        self.epochs_before = epochs_before
        self.mixup, self.masks = augmentation.mixup, augmentation.masks(network)
        untouched = [modality for modality in network.encoders if modality not in trained]
        left_out = network.stem_state(untouched) | network.stem_state(adapted, adapters=False)
        self.left_out = {f"network.{name}" for name in left_out}
        self.val_metrics = EmotionMetrics(emotions)
        self.train_losses: dict[str, Tensor] = {}
        self.train_count = 0
        self.norms: list[Tensor | float] = [0.0, 0.0]  # the sum of the epoch's gradient norms, and how many they are
        self.steps_taken: deque[_Step] = deque()
        self.rows = torch.empty(0, dtype=torch.long)  # of the batch in hand
        self.judged: deque[float] = deque(maxlen=stage.smooth)  # what the last epochs are judged by

    def forward(self, batch: Batch, return_attention: bool = False) -> NetworkOutput:
        """A batch -> the network's output."""
        return self.network.fuse(self.encode(batch), return_attention)

    def encode(self, batch: Batch) -> dict[str, Features]:
        """What the encoders give of a batch, by modality."""
        if self.encoding is not None:
            batch = with_features(self.network, batch, self.encoding)
        return self.network.encode({"text": batch.text, "audio": batch.audio})

    def on_train_epoch_start(self) -> None:
        """Seed the epoch; of several processes each draws its own dropout."""
        key = f"{self.seed} {self.stage.number} {self.current_epoch}" + (f" {rank()}" if rank() else "")
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")
        seed_everything(seed, verbose=False)
        self.train_losses, self.train_count = {}, 0
        self.norms = [0.0, 0.0]
        self.steps_taken.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        mixing = None
        if self.mixup:
            numbers = (self.seed, self.stage.number, self.current_epoch, batch_idx)
            mixing = Mixing.drawn(self.mixup, numbers, batch.rows)
        _, terms, count = self.step("train", batch, mixing)
        # Summed here, and logged once an epoch: Lightning's own sums take longer than a small network's step.
        for name, value in terms.items():
            self.train_losses[name] = self.train_losses.get(name, 0.0) + value.detach() * count
        self.train_count += count
        return terms["total"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self.refuse_infinite()
            means = {name: value / self.train_count for name, value in self.train_losses.items()}
            self._log_losses("train", means, self.train_count)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and add the gradient's norm before it to the epoch's: as tensors, for whose values nobody waits.

        A step whose gradient is not finite, which 16-mixed leaves out, does not count.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_val and str(gradient_clip_algorithm or "norm").endswith("norm"):
            norm = clip_grad_norm_(parameters, gradient_clip_val)  # as Lightning does, which keeps the norm to itself
        else:
            norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
            if gradient_clip_val:
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        finite = norm.isfinite()
        total, count = self.norms
        self.norms = [total + torch.where(finite, norm, 0.0), count + finite]

    def gradient_norm(self) -> dict[str, Any]:
        """The mean norm of the epoch's gradients, before they are clipped, as it is logged."""
        total, count = self.norms
        return {} if isinstance(count, float) else {"train/grad_norm": total / count}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output, terms, count = self.step("val", batch)
        self._log_losses("val", terms, count)
        self.val_metrics.update(output.logits, output.embedding, batch.labels)

    def on_validation_epoch_end(self) -> None:
        self.refuse_infinite()
        values = {f"val/{name}": value for name, value in self.val_metrics.compute().items()}
        self.val_metrics.reset()
        monitor = self.stage.monitor
        self.judged.append(values[monitor] if monitor in values else float(self.trainer.callback_metrics[monitor]))
        score = sum(self.judged) / len(self.judged)
        self.log_dict(values if self.stage.smooth == 1 else {**values, self.stage.score: score})
        schedule = self.lr_schedulers()
        for each in schedule.parts if isinstance(schedule, JoinedSchedules) else [schedule]:
            if isinstance(each, Plateau):
                each.observe(score if MONITORS[monitor] == "max" else -score)

    def step(
        self, side: str, batch: Batch, mixing: Mixing | None = None
    ) -> tuple[NetworkOutput, dict[str, Tensor], int]:
        """The network's output for this process's share of a batch; the whole batch's loss by term, and its size."""
        self.rows = batch.rows
        encoded = self.encode(batch)
        if self.masks is not None:
            encoded = self.masks(encoded)
        output = self.network.fuse(encoded, mix=None if mixing is None else mixing.mix)
        labels = gather_rows(batch.labels)
        features = output.features(self.loss.on)
        if mixing is not None:  # the embedding is mixed already
            features |= {name: mixing.mix(vectors) for name, vectors in features.items() if name != "embedding"}
        features = {name: gather_rows(vectors) for name, vectors in features.items()}
        # In training each head is on its own: of their mean the loss would be content where one of them is right.
        views = [output.logits] if output.views is None or side != "train" else output.views.unbind()
        found = [self._terms(gather_rows(logits), features, labels, mixing) for logits in views]
        terms = {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}
        side = {"val": "validation"}.get(side, side)
        when = f"{side}, epoch {self.current_epoch + 1}, step {self.global_step}"
        held = {name: value.detach() for name, value in terms.items()}
        self.steps_taken.append(_Step(HostCopy(held["total"].isfinite()), held, batch.rows, when))
        self.refuse_infinite(LATE if copies_ahead(self.device) else 0)  # on a processor it is known at once
        return output, terms, len(labels)

    def _terms(
        self, logits: Tensor, features: Mapping[str, Tensor], labels: Tensor, mixing: Mixing | None
    ) -> dict[str, Tensor]:
        """The loss's terms of a whole batch."""
        if mixing is not None:
            return mixing.loss(self.loss, logits, features, labels)
        found: dict[str, Tensor] = self.loss(logits, features, labels)
        return found

    def refuse_infinite(self, left: int = 0) -> None:
        """Look at the losses of all steps but the last so many: the same ones in every process.

        Raises:
            NotFiniteError: one is NaN or infinite.
        """
        while len(self.steps_taken) > left:
            step = self.steps_taken.popleft()
            if not step.finite.get():
                bad = [name for name, value in step.terms.items() if not value.isfinite()]
                raise NotFiniteError(bad, gather_rows(step.rows).tolist(), step.when)

    def _log_losses(self, side: str, terms: Mapping[str, Tensor], count: int) -> None:
        """Log the epoch's mean of each term over `count` utterances, and over those of the epoch's other calls."""
        values = {f"{side}/loss" if name == "total" else f"{side}/loss/{name}": terms[name].detach() for name in terms}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=count, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """The network's own parameters, the stems that train, the loss's parameters, each with its learning rate."""
        optimizer = build_optimizer(self.network, self.loss, self.stage)
        parts = optimizer.parts if isinstance(optimizer, JoinedOptimizers) else [optimizer]
        for part in parts:
            if hasattr(part, "_step_supports_amp_scaling"):
                # A fused one would unscale gradients by itself, after they are clipped: Lightning refuses to clip.
                part._step_supports_amp_scaling = False
        assert self.stage.epochs is not None
        length = {"steps": self.stage.epochs * self.steps_per_epoch, "steps_per_epoch": self.steps_per_epoch}
        scheduler = self.stage.scheduler(parts[0], **length)
        if len(parts) > 1:
            own = (self.loss.scheduler or self.stage.scheduler)(parts[1], **length)
            if self.loss.scheduler is not None:
                advance(own, self.epochs_before * self.steps_per_epoch)
            scheduler = JoinedSchedules(optimizer, [scheduler, own])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the weights of stems that never trained; keep what the last epochs were judged by."""
        checkpoint["judged"] = list(self.judged)
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in checkpoint["state_dict"].items() if name not in self.left_out
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with what the last epochs were judged by; earlier versions judged each by itself."""
        self.judged.extend(checkpoint.get("judged", ()))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint's state, strictly but for the weights that it leaves out."""
        own = {name: tensor for name, tensor in self.state_dict().items() if name in self.left_out}
        return super().load_state_dict({**own, **state_dict}, strict=strict, assign=assign)
