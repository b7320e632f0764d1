"""A run from first to last: data, stages, test, run directory. It knows no command line."""

import copy
import logging
import math
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything

from fourm_ser.baselines.run import BaselineRun
from fourm_ser.config import build
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.devices import MIXED, autocast, copies_ahead, tf32
from fourm_ser.distributed import barrier, first, joined, launched, rank, world
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.lora import Lora
from fourm_ser.errors import InputError, OtherRunError, blamed
from fourm_ser.files import YOUNG, remove, remove_temporary
from fourm_ser.kernels.memory import keep_freed_memory
from fourm_ser.losses.base import Loss
from fourm_ser.models.directory import Conditions, Model, save_model
from fourm_ser.models.features import Encoding
from fourm_ser.models.inference import Outputs, compute_outputs
from fourm_ser.models.network import EmotionNetwork, build_network
from fourm_ser.models.sources import fetch_encoders, make_sources, summarised
from fourm_ser.runs.claims import changes_since, record_content
from fourm_ser.runs.directory import REFIT, RunDirectory, StageDirectory
from fourm_ser.runs.next_steps import example_of, tell_next
from fourm_ser.runs.results import gather_metrics, print_results, write_results
from fourm_ser.terminal import busy
from fourm_ser.training.augmentation import Augmentation
from fourm_ser.training.faults import explained
from fourm_ser.training.launch import launch, processes
from fourm_ser.training.log import logged
from fourm_ser.training.loggers import RunLogger
from fourm_ser.training.misfits import look_at, refuse_misfits
from fourm_ser.training.module import EmotionModule
from fourm_ser.training.record import record
from fourm_ser.training.stages import (
    Outcome,
    Stage,
    Trained,
    adapted,
    choose_stage,
    read_stages,
    told,
    told_score,
    trained_parts,
)
from fourm_ser.training.stopping import SIGNALS, way_on_told
from fourm_ser.training.trainer import build_trainer, skips_parts, trainer_arguments
from fourm_ser.trust import PARTS_OF_CACHES, own_cache

log = logging.getLogger("fourm_ser.training.experiment")  # also where it is `__main__`


def run(config: DictConfig, run_dir: Path, own_process: bool = False, tells_next: bool = False) -> dict[str, Any]:
    """Train, test and report one experiment, or go on with one that was interrupted.

    Args:
        config: The composed config.
        run_dir: Where it is recorded. What an interrupted run of the same config left there is gone on from.
        own_process: Whether this process is there for the run alone, as a command's is: then the run may say how the
            process holds its memory (`trainer.keep_freed_memory`).
        tells_next: Whether to end with what there is to open and to do next.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: bad input; what is written already stays.
    """
    directory = RunDirectory(run_dir.resolve())
    directory.path.mkdir(parents=True, exist_ok=True)
    try:
        if launched():
            with joined(config.trainer.accelerator):
                return _run(config, directory, own_process)
        metrics = _run(config, directory, own_process, tells_next)
        if metrics:
            return metrics
        recorded = directory.peek_record()
        with SIGNALS.heard() if own_process else nullcontext(), way_on_told(recorded, directory.path):
            launch(recorded, directory)
        metrics = directory.read_results()
        if tells_next:
            tell_next(directory, {})
        return metrics
    except OtherRunError:
        raise
    except Exception as error:
        if rank() == 0 or not directory.failure.is_file():  # rank zero's word comes first
            directory.write_failure(error)
        raise


def _run(config: DictConfig, directory: RunDirectory, own_process: bool, tells_next: bool = False) -> dict[str, Any]:
    """The run as far as this process does it: nothing where others have to be started, or have the results."""
    # Of the processes that do the run together, rank zero speaks for all.
    listens = SIGNALS.heard() if own_process and not launched() else nullcontext()
    with listens, directory.locked() if rank() == 0 else nullcontext(), logged(directory.log):
        if rank() == 0:
            directory.failure.unlink(missing_ok=True)
            remove_temporary(directory.path)
            for part in PARTS_OF_CACHES:
                remove_temporary(Path(config.cache).expanduser() / part, older=YOUNG)
        is_resumed = directory.record.is_file()
        example: dict[str, str] = {}
        try:
            with blamed(directory.record) if is_resumed else nullcontext():
                config = record(config, directory)
        except OtherRunError:
            if directory.has_begun:
                raise
            for path in (directory.corpus, directory.record):  # of a run that ended before anything was trained
                remove(path)
            is_resumed, config = False, record(config, directory)
        if directory.metrics.is_file():
            changed = changes_since(config.data, config.cache, directory) if rank() == 0 else ""
            if changed:
                raise InputError(
                    f"{directory.path}: has finished, and its corpus has changed since: {changed}. Undo the change, or "
                    "begin another run (a sweep's jobs from the beginning: sweep.skip_finished=false)."
                )
            log.info("this run has finished already: %s", directory.path)
            metrics = directory.read_results()
        elif processes(config) > 1 and not launched():
            log.info("starting %d processes", processes(config))
            return {}
        else:
            if processes(config) != world():
                raise InputError(
                    f"{directory.path}: is recorded for {processes(config)} processes (trainer.devices, "
                    f"trainer.num_nodes), and {world()} do it. Give torchrun the numbers of the record."
                )
            if own_process and config.trainer.accelerator == "cpu" and config.trainer.keep_freed_memory:
                keep_freed_memory()
            with way_on_told(config, directory.path):
                kind = Experiment if config.get("baseline") is None else BaselineRun
                with blamed(directory.record) if is_resumed else nullcontext():
                    experiment = kind(config, directory)
                metrics = experiment.run()
                if metrics and tells_next:
                    example = example_of(experiment.corpus, directory)
        if metrics:
            print_results(metrics, directory.path)
            if tells_next:
                tell_next(directory, example)
        return metrics


def resume(
    run_dir: Path, own_process: bool = False, trust: Sequence[str] = (), tells_next: bool = False
) -> dict[str, Any]:
    """Go on with the run that `run_dir` records, whose classes may be of the packages `trust`, too; see `run`."""
    directory = RunDirectory(run_dir)
    directory.refuse_unrecorded()
    config = directory.read_record(trust)
    if not launched():  # else the process that was started first has looked
        own_cache(config.cache, directory.record)
    return run(config, run_dir, own_process, tells_next)


class Experiment:
    """What the steps of a run share."""

    def __init__(self, config: DictConfig, directory: RunDirectory) -> None:
        self.config, self.directory = config, directory
        self.cache = Path(config.cache).expanduser()
        self.stages = read_stages(build(config.stage), build(config.optimizer), build(config.scheduler))
        self.loss: Loss = build(config.loss)
        self.augmentation = Augmentation.of(config)
        self.corpus: Corpus = build(config.data, cache=self.cache)  # reads nothing, but checks its keys
        refuse_misfits(config, self.stages, self.corpus, self.loss)
        self.encoding = Encoding.of(config)
        self.device = self.encoding.device
        self.loggers: list[RunLogger] = list(build(config.logger).values()) if rank() == 0 else []
        self.encoded: dict[str, int] = {}
        self.outcomes: dict[str, Outcome] = {}  # of the stages that ended, by their names
        self.first_pass: Mapping[str, Outcome] | None = None  # in a refit, those of the stages that it repeats

    def run(self) -> dict[str, Any]:
        """All of it, in order."""
        config = self.config
        precisions = config.trainer.precision, config.encode.precision
        log.info("trainer: %s, precision %s; frozen encoders: %s", config.trainer.accelerator, *precisions)
        deterministic = config.trainer.get("deterministic", False)  # in encoding passes and the test, too
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        with first():
            self._prepare()
        network = self._build()
        look_at(network, self.stages, self.corpus, self.cache)
        self.augmentation.tell(config, self.stages)
        self.encoded = dict.fromkeys(network.by_modality, 0)
        for logger in self.loggers:
            logger.start(self.directory, OmegaConf.to_container(config))  # type: ignore[arg-type]

        module = self._train_stages(network)
        chosen = self._choose()
        if chosen is not self.stages[-1]:
            module = self._go_back(chosen)
        log.info("testing stage %s", chosen.name)
        outputs = self._test(module, ("val",) if config.refit else ("val", "test"))
        if config.refit:
            again = self._joined(chosen)
            module = again._train_stages(again._build())
            outputs |= again._test(module, ("test",))
            self.outcomes |= {f"{REFIT}/{name}": outcome for name, outcome in again.outcomes.items()}
        return self._finish(module, outputs) if rank() == 0 else {}

    def _train_stages(self, network: EmotionNetwork) -> EmotionModule:
        """All stages, one after the other, and the last one's module."""
        for stage in self.stages:
            module, self.outcomes[stage.name] = self._train(stage, network)
        return module

    def _trained(self, stage: Stage) -> Trained:
        """What trained of the stems until a stage ended."""
        return trained_parts(self.stages[: stage.number + 1], self.config.fusion.modalities)

    def _choose(self) -> Stage:
        """The stage that the run ends with; checkpoints hold the scores, so that a resumed run chooses alike."""
        if all(stage.keep == "always" for stage in self.stages[1:]):
            return self.stages[-1]  # whatever the scores are
        scores, counts = [self._folder(stage).read_score() for stage in self.stages], self.corpus.counts_on("val")
        chosen = choose_stage(self.stages, scores, counts)
        said = [told_score(stage, score, counts) for stage, score in zip(self.stages, scores, strict=True)]
        log.info("stage %s is what the run ends with: %s", chosen.name, ", ".join(said))
        return chosen

    def _go_back(self, stage: Stage) -> EmotionModule:
        """The network as an earlier stage left it: what trained later is what the config says, or not there."""
        module, _ = self._train(stage, self._build(), again=True)
        for modality, encoder in module.network.by_modality.items():
            if "lora" not in self._trained(stage).get(modality, ()):
                encoder.remove_adapters()
        return module

    def _joined(self, chosen: Stage) -> "Experiment":
        """The same experiment on train and validation together, up to the stage that the first pass ends with.

        Its stages are as long as they were until the weights that they ended with.
        """
        again = copy.copy(self)
        again.stages, again.first_pass, again.outcomes = self.stages[: chosen.number + 1], self.outcomes, {}
        again.corpus, again.loss = self.corpus.joined(), build(self.config.loss)
        again.data = EmotionDataModule(again.corpus, pin_memory=self.data.pin_memory, seed=self.config.seed)
        log.info("refit: anew, on %d utterances, validation included", len(again.corpus.split.train))
        return again

    def _prepare(self) -> None:
        """Fetch, prepare and read what is not there yet."""
        config = self.config
        fetch_encoders(config, self.cache)
        self.data = EmotionDataModule(self.corpus, pin_memory=copies_ahead(self.device), seed=config.seed)
        self.data.prepare_data()
        self.data.setup()
        record_content(self.corpus.content, self.corpus.origin, self.directory, write=rank() == 0)

    def _build(self) -> EmotionNetwork:
        """The network as it begins, and the loss set up for it: the same at every call."""
        config = self.config
        seed_everything(config.seed, verbose=False)
        resources = Resources(self.cache, self.corpus.training_texts)
        with first():
            network = build_network(config, len(self.corpus.emotions), resources)
            for modality, encoder in network.by_modality.items():
                if any(stage.unfreeze[modality] == "lora" for stage in self.stages):
                    encoder.add_adapters(Lora(**build(config.lora)), config.seed)
        self.loss.setup(len(self.corpus.emotions), network.widths, self.corpus.counts)
        self.loss.check_classifier()
        network.replace_head(self.loss)
        if config.trainer.get("compile", False):
            network.fusion.compile(dynamic=True)
            network.head.compile(dynamic=True)
        return network

    def _train(self, stage: Stage, network: EmotionNetwork, again: bool = False) -> tuple[EmotionModule, Outcome]:
        """One stage, or what is left of it; the network ends with the weights that the stage selects.

        `again`: the stage has finished, and its weights are used once more: its data are served, too.
        """
        folder, trained = self._folder(stage), self._trained(stage)
        for modality, encoder in network.by_modality.items():
            encoder.unfreeze(stage.unfreeze[modality])
        sources, variation = self.data.sources, self.augmentation.variation
        if again or not folder.finished.is_file() or stage is self.stages[-1]:
            sources, encoded = make_sources(network, self.data, self.encoding, variation)
            masks = self.augmentation.masks(network)
            sources = summarised(network, sources, [*self.loss.on, *(masks.modalities if masks else ())])
            for modality, count in encoded.items():
                self.encoded[modality] += count
        before = None if self.first_pass is None else self.first_pass[stage.name]
        size = stage.size(len(self.corpus.split.train)) if before is None else int(before.stage.batch_size)
        self.data.serve(sources, size, versions=variation is not None)
        steps_per_epoch = math.ceil(len(self.data.sampler(self.corpus.split.train)) / stage.accumulate)
        stage = stage.settled(size, steps_per_epoch)
        module = EmotionModule(
            network=network,
            loss=self.loss,
            emotions=self.corpus.emotions,
            stage=stage if before is None else before.stage,
            steps_per_epoch=steps_per_epoch if before is None else before.steps_per_epoch,
            seed=self.config.seed,
            trained=trained,
            adapted=adapted(trained),
            encoding=None if self.encoding.store else self.encoding,
            augmentation=self.augmentation,
            epochs_before=self._epochs_before(stage),
        )
        if before is not None:  # rates follow the schedule that was, and stop where the selected weights were
            stage = stage.lasting(before.steps, steps_per_epoch)
        if not folder.finished.is_file():
            self._fit(stage, folder, module, steps_per_epoch)
        best = folder.read_best()
        module.load_state_dict(best["state_dict"])
        why = "best" if before is None and stage.select == "best" else "last"
        log.info("stage %s: takes epoch %d (%s), step %d", folder.name, best["epoch"] + 1, why, best["global_step"])
        return module, Outcome(module.stage, module.steps_per_epoch, best["global_step"], folder.read_seconds())

    def _fit(self, stage: Stage, folder: StageDirectory, module: EmotionModule, steps_per_epoch: int) -> None:
        """Train a settled stage to its end, from its beginning or from its last checkpoint."""
        validates = self.first_pass is None
        assert stage.epochs is not None
        length = f"{stage.epochs} epochs of {steps_per_epoch} steps ({stage.epochs * steps_per_epoch:,} steps)"
        log.info("stage %s: %s, batches of %s, %s", folder.name, length, stage.batch_size, stage.told_unfreeze)
        last = folder.last if folder.last.is_file() else None
        if last is not None:
            log.info("stage %s: going on from %s", folder.name, last)
            folder.check_place()
        module.train()  # Lightning keeps the modes it finds: those of an earlier stage, or of an encoding pass
        started = time.monotonic()
        loggers = [logger.stage(folder) for logger in self.loggers]
        given: Any = OmegaConf.to_container(self.config.trainer)
        arguments = trainer_arguments(given, self.device, skips_parts(module.network, stage))
        trainer = build_trainer(stage, folder, validates, logger=loggers, **arguments)
        with self._explained(module), self._computing(module), SIGNALS.waiting():
            trainer.fit(module, datamodule=self.data, ckpt_path=last, weights_only=True)
        if rank() == 0:
            if not validates or stage.select == "last":
                folder.select_last()
            folder.write_finished(time.monotonic() - started, trainer.current_epoch)
        barrier()

    def _epochs_before(self, stage: Stage) -> int:
        """Epochs of the stages before one, where the loss has a schedule that counts them."""
        earlier = self.stages[: stage.number] if self.loss.scheduler is not None else []
        return sum(self._folder(before).read_epochs() for before in earlier)

    def _folder(self, stage: Stage) -> StageDirectory:
        return self.directory.stage(stage.number, stage.name, refit=self.first_pass is not None)

    def _explained(self, module: EmotionModule) -> AbstractContextManager[None]:
        """Say in one line what goes wrong meanwhile, and what a run could go on from."""
        earlier = [self._folder(before).best for before in reversed(self.stages[: module.stage.number])]
        return explained(module, self.corpus, [self._folder(module.stage).last, *earlier])

    @contextmanager
    def _computing(self, module: EmotionModule) -> Iterator[None]:
        """Roundings as the config says, and the stems that never train kept out of the network and of its precision.

        Where their features come from the store, they are not on the device, either.
        """
        network, trained = module.network, self._trained(module.stage)
        untrained = [modality for modality in network.encoders if modality not in trained]
        with network.without_stems(untrained), tf32(self.config.trainer.get("tf32", False)), ExitStack() as stack:
            for modality in [] if self.encoding.store else untrained:
                stem = network.by_modality[modality].stem
                stack.callback(stem.cpu)
                stem.to(self.device)
            yield

    def _test(self, module: EmotionModule, sides: Collection[str]) -> dict[str, Outputs]:
        """What the weights that a stage selected make of some of the sides `val` and `test`."""
        outputs = {}
        rounded = autocast(self.device, MIXED.get(str(self.config.trainer.precision)))
        with ExitStack() as stack:
            stack.enter_context(busy("testing") if rank() == 0 else nullcontext())
            stack.enter_context(self._explained(module))
            stack.enter_context(self._computing(module))
            if self.config.trainer.precision != "64-true":
                module.float()  # where training was in half precision throughout: as all that comes later
            stack.enter_context(module.network.merged())  # as all that comes later
            module.to(self.device).eval()
            for side in sides:
                loader = self.data.dataloader(self.corpus.rows(side))
                step = rounded(partial(module.step, side))
                limit = self.config.trainer.get(f"limit_{side}_batches")  # as Lightning takes it: how many, or a share
                count = int(limit * len(loader)) if isinstance(limit, float) else limit
                batches = (batch.to(self.device) for batch in islice(loader, count))
                outputs[side] = compute_outputs(step, batches, classes=self.corpus.emotions, device=self.device)
                module.refuse_infinite()
            module.cpu()
        return outputs

    def _finish(self, module: EmotionModule, outputs: Mapping[str, Outputs]) -> dict[str, Any]:
        """Write the model directory and the run's results, and return what metrics.json holds."""
        config, network, encoders = self.config, module.network, module.network.by_modality
        trained = self._trained(module.stage)
        metrics = {
            **gather_metrics(self.corpus, network, outputs, self.encoded),
            "refit": config.refit,
            "chosen_stage": module.stage.name,
            **told(self.outcomes),
        }
        # In half precision throughout, training rounds the weights beside adapters: then they are not the config's.
        kept = set(trained) - (adapted(trained) if config.trainer.precision not in ("bf16-true", "16-true") else set())
        left_out = {
            modality: encoder.base_fingerprint or encoder.fingerprint()
            for modality, encoder in encoders.items()
            if modality not in kept and not config.export.include_encoders
        }
        conditions = Conditions(
            stored=[modality for modality, encoder in encoders.items() if encoder.frozen],
            encoding=config.encode.precision,
            precision=str(config.trainer.precision),
            max_seconds=config.data.max_seconds,
            encoding_tf32=config.encode.get("tf32", False),
            tf32=config.trainer.get("tf32", False),
            clean=list(self.corpus.cleaning.patterns),
            empty_text=self.corpus.cleaning.empty,
            store=self.encoding.store,
        )
        save_model(self.directory.model, Model(network, self.corpus.emotions, conditions), config, left_out)
        with busy("writing the results"):
            results = write_results(self.directory, self.corpus, metrics, outputs["test"])
        for logger in self.loggers:
            logger.finish(results)
        return results.metrics


if __name__ == "__main__":
    try:
        resume(Path(sys.argv[1]), own_process=True, trust=sys.argv[2:])
    except InputError as error:
        sys.exit(f"error: {error}")
