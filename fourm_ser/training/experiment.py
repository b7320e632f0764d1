"""A run from first to last: data, stages, test, run directory. It knows no command line."""

import copy
import logging
import math
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
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
from fourm_ser.devices import MIXED, autocast, copies_ahead, ran_out_of_memory, tf32
from fourm_ser.distributed import barrier, first, joined, launched, rank, world
from fourm_ser.encoders.base import Resources, Unfreeze
from fourm_ser.encoders.lora import Lora, adapters, require_peft
from fourm_ser.encoders.padding import check_padding
from fourm_ser.errors import InputError, OtherRunError
from fourm_ser.kernels.memory import keep_freed_memory
from fourm_ser.losses.base import Loss
from fourm_ser.models.directory import Conditions, Model, save_model
from fourm_ser.models.features import Encoding
from fourm_ser.models.inference import Outputs, compute_outputs
from fourm_ser.models.network import EmotionNetwork, build_network, known_widths
from fourm_ser.models.sources import check_transcripts, compare_languages, fetch_encoders, make_sources
from fourm_ser.runs.claims import changes_since, record_content
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.runs.results import print_results, write_results
from fourm_ser.training.launch import launch, processes
from fourm_ser.training.log import logged
from fourm_ser.training.loggers import RunLogger
from fourm_ser.training.module import EmotionModule, NotFiniteError
from fourm_ser.training.record import record
from fourm_ser.training.stages import Stage, build_trainer, read_stages, trainer_arguments

log = logging.getLogger("fourm_ser.training.experiment")  # also where it is `__main__`

WITHOUT_STORE = ("32-true", "32", *MIXED, "bf16", "16")  # precisions that leave what encoders read as it is


def run(config: DictConfig, run_dir: Path, own_process: bool = False) -> dict[str, Any]:
    """Train, test and report one experiment, or go on with one that was interrupted.

    Args:
        config: The composed config.
        run_dir: Where it is recorded. What an interrupted run of the same config left there is gone on from.
        own_process: Whether this process is there for the run alone, as a command's is: then the run may say how the
            process holds its memory (`trainer.keep_freed_memory`).

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
        metrics = _run(config, directory, own_process)
        if metrics:
            return metrics
        launch(directory.read_record(), directory)
        return directory.read_results()
    except OtherRunError:
        raise
    except Exception as error:
        if rank() == 0 or not directory.failure.is_file():  # rank zero's word comes first
            directory.write_failure(error)
        raise


def _run(config: DictConfig, directory: RunDirectory, own_process: bool) -> dict[str, Any]:
    """The run as far as this process does it: nothing where others have to be started, or have the results."""
    # Of the processes that do the run together, rank zero speaks for all.
    with directory.locked() if rank() == 0 else nullcontext(), logged(directory.log):
        if rank() == 0:
            directory.failure.unlink(missing_ok=True)
        config = record(config, directory)
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
            try:
                kind = Experiment if config.get("baseline") is None else BaselineRun
                metrics = kind(config, directory).run()
            except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
                log.warning("interrupted: go on with python -m fourm_ser.train resume=%s", directory.path)
                raise
        if metrics:
            print_results(metrics, directory.path)
        return metrics


def resume(run_dir: Path, own_process: bool = False) -> dict[str, Any]:
    """Go on with the run that `run_dir` records; see `run`."""
    directory = RunDirectory(run_dir)
    if not directory.record.is_file():
        raise InputError(f"resume={run_dir}: no config.yaml there. Expected the directory of an earlier run.")
    return run(directory.read_record(), run_dir, own_process)


Trained = Mapping[str, set[Unfreeze]]
"""What trained so far of the stems, by modality, in the words of `stage.<name>.unfreeze`."""


def _adapted(trained: Trained) -> set[str]:
    """The modalities of which nothing but adapters trained."""
    return {modality for modality, parts in trained.items() if parts == {"lora"}}


class Experiment:
    """What the steps of a run share."""

    def __init__(self, config: DictConfig, directory: RunDirectory) -> None:
        self.config, self.directory = config, directory
        self.cache = Path(config.cache).expanduser()
        self.stages = read_stages(build(config.stage), build(config.optimizer), build(config.scheduler))
        self.loss: Loss = build(config.loss)
        self.corpus: Corpus = build(config.data, cache=self.cache)  # reads nothing, but checks its keys
        self._refuse_misfits()
        self.encoding = Encoding.of(config)
        self.device = self.encoding.device
        self.loggers: list[RunLogger] = list(build(config.logger).values()) if rank() == 0 else []
        self.encoded: dict[str, int] = {}

    def _refuse_misfits(self) -> None:
        """Refuse what does not fit together before any data is prepared and any encoder built."""
        config = self.config
        precision = str(config.trainer.precision)
        if not config.encode.get("store", True) and precision not in WITHOUT_STORE:
            raise InputError(
                f"trainer.precision={precision}: would round what frozen encoders read, where encode.store=false lets "
                f"them read it in every epoch. Expected one of {', '.join(WITHOUT_STORE)}, or encode.store=true."
            )
        widths = dict.fromkeys(("embedding", *config.fusion.modalities), 1)
        emotions = self.corpus.wanted  # None: those that the corpus turns out to have
        for stage in self.stages:
            for modality in config.fusion.modalities:
                if stage.unfreeze.get(modality) == "lora":
                    require_peft(f"stage.{stage.name}.unfreeze.{modality}")
                    Lora(**build(config.lora)).check()
        dims = known_widths(config)
        if None not in dims.values():
            fusion = build(config.fusion, dims=dims)
            build(config.head, dim=fusion.dim, classes=len(emotions or "ab"))
            widths = {"embedding": fusion.dim, **fusion.widths}
        if emotions is not None:
            loss = copy.deepcopy(self.loss).setup(len(emotions), widths, [1] * len(emotions))
            loss.check_classifier()

    def run(self) -> dict[str, Any]:
        """All of it, in order."""
        config = self.config
        precisions = config.trainer.precision, config.encode.precision
        log.info("trainer: %s, precision %s; frozen encoders: %s", config.trainer.accelerator, *precisions)
        deterministic = config.trainer.get("deterministic", False)  # in encoding passes and the test, too
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        with first():
            network = self._prepare()
        self.loss.setup(len(self.corpus.emotions), network.widths, self.corpus.counts)
        self.loss.check_classifier()
        network.replace_head(self.loss)
        if config.trainer.get("compile", False):
            network.fusion.compile(dynamic=True)
            network.head.compile(dynamic=True)
        for encoder in network.by_modality.values():
            narrow = sum(parameter.numel() for parameter in adapters(encoder))
            size = sum(parameter.numel() for parameter in encoder.parameters()) - narrow
            found = encoder.modality, encoder.name, size / 1e6, encoder.weights
            log.info("%s encoder: %s, %.1f M parameters, weights: %s", *found)
            if narrow:
                share = f"{narrow:,} of {size / 1e6:.1f} M weights of {encoder.name} train ({narrow / size:.1%})"
                log.info("lora: %s", share)
            for stage in self.stages:  # what a later stage may not unfreeze is known before the first
                encoder.unfreeze(stage.unfreeze[encoder.modality])
            if self.stages[0].unfreeze[encoder.modality] != "none":  # else it is checked where its store is opened
                check_padding(encoder, encoder.fingerprint(), self.cache)
        compare_languages(network, self.corpus)
        check_transcripts(network, self.corpus.frame["text"])
        self.encoded = dict.fromkeys(network.by_modality, 0)
        for logger in self.loggers:
            logger.start(self.directory, OmegaConf.to_container(config))  # type: ignore[arg-type]

        trained: dict[str, set[Unfreeze]] = {}
        seconds: dict[str, float] = {}
        for stage in self.stages:
            for modality in network.encoders:
                if stage.unfreeze[modality] != "none":
                    trained.setdefault(modality, set()).add(stage.unfreeze[modality])
            module, seconds[stage.name] = self._train(stage, network, trained)
        outputs = self._test(module, trained)
        return self._finish(network, trained, outputs, seconds) if rank() == 0 else {}

    def _prepare(self) -> EmotionNetwork:
        """Fetch, prepare and read what is not there yet; the network, as it begins."""
        config = self.config
        fetch_encoders(config, self.cache)
        self.data = EmotionDataModule(self.corpus, pin_memory=copies_ahead(self.device), seed=config.seed)
        self.data.prepare_data()
        self.data.setup()
        record_content(self.corpus.content, self.corpus.origin, self.directory, write=rank() == 0)
        seed_everything(config.seed, verbose=False)
        resources = Resources(self.cache, self.corpus.training_texts)
        network = build_network(config, len(self.corpus.emotions), resources)
        for modality, encoder in network.by_modality.items():
            if any(stage.unfreeze[modality] == "lora" for stage in self.stages):
                encoder.add_adapters(Lora(**build(config.lora)), config.seed)
        return network

    def _train(self, stage: Stage, network: EmotionNetwork, trained: Trained) -> tuple[EmotionModule, float]:
        """One stage, or what is left of it; the network ends with the stage's best weights."""
        folder = self.directory.stage(stage.number, stage.name)
        for modality, encoder in network.by_modality.items():
            encoder.unfreeze(stage.unfreeze[modality])
        if not folder.finished.is_file() or stage is self.stages[-1]:
            sources, encoded = make_sources(network, self.data, self.encoding)
            for modality, count in encoded.items():
                self.encoded[modality] += count
            self.data.serve(sources, stage.batch_size)
        module = EmotionModule(
            network=network,
            loss=self.loss,
            emotions=self.corpus.emotions,
            stage=stage,
            steps_per_epoch=math.ceil(len(self.data.sampler(self.corpus.split.train)) / stage.accumulate),
            seed=self.config.seed,
            trained=trained,
            adapted=_adapted(trained),
            encoding=None if self.encoding.store else self.encoding,
        )
        if not folder.finished.is_file():
            last = folder.last if folder.last.is_file() else None
            if last is not None:
                log.info("stage %s: going on from %s", stage.name, last)
                folder.check_place()
            else:
                log.info("stage %s: up to %d epochs, unfreezes %s", stage.name, stage.epochs, stage.unfreeze)
            module.train()  # Lightning keeps the modes it finds: those of an earlier stage, or of an encoding pass
            started = time.monotonic()
            loggers = [logger.stage(folder) for logger in self.loggers]
            skips = any(
                not encoder.frozen and encoder.skips_parts and stage.unfreeze[modality] != "lora"
                for modality, encoder in network.by_modality.items()
            )
            given: Any = OmegaConf.to_container(self.config.trainer)
            arguments = trainer_arguments(given, self.device, skips)
            trainer = build_trainer(stage, self.directory, logger=loggers, **arguments)
            with self._explained(stage, module), self._computing(network, trained):
                trainer.fit(module, datamodule=self.data, ckpt_path=last, weights_only=True)
            if rank() == 0:
                folder.write_finished(time.monotonic() - started, trainer.current_epoch)
            barrier()
        best = folder.read_best()
        module.load_state_dict(best["state_dict"])
        log.info("stage %s: best validation UA in epoch %d", stage.name, best["epoch"])
        return module, folder.read_seconds()

    @contextmanager
    def _computing(self, network: EmotionNetwork, trained: Collection[str]) -> Iterator[None]:
        """Roundings as the config says, and the stems that never train kept out of the network and of its precision.

        Where their features come from the store, they are not on the device, either.
        """
        untrained = [modality for modality in network.encoders if modality not in trained]
        with network.without_stems(untrained), tf32(self.config.trainer.get("tf32", False)), ExitStack() as stack:
            for modality in [] if self.encoding.store else untrained:
                stem = network.by_modality[modality].stem
                stack.callback(stem.cpu)
                stem.to(self.device)
            yield

    @contextmanager
    def _explained(self, stage: Stage, module: EmotionModule) -> Iterator[None]:
        """Say of a loss that is not finite, or no memory left, over what it was, and what to go on from or to lower."""
        try:
            yield
        except NotFiniteError as error:
            checkpoints = [self.directory.stage(stage.number, stage.name).last]
            earlier = reversed(self.stages[: stage.number])
            checkpoints += [self.directory.stage(before.number, before.name).best for before in earlier]
            good = next((str(path) for path in checkpoints if path.is_file()), "none, for no epoch was finished")
            ids = self.corpus.frame["id"].iloc[error.rows]
            raise InputError(
                f"loss: {', '.join(error.terms)} became NaN or infinite in stage {stage.name} ({error.when}). "
                f"The batch: {', '.join(ids)}. The last good checkpoint: {good}. "
                f"Try a smaller learning rate, stage.{stage.name}.gradient_clip, or trainer.precision=32-true."
            ) from error
        except RuntimeError as error:
            if type(error).__module__.startswith("torch._dynamo"):
                said = (str(error).strip().splitlines() or [""])[0]
                raise InputError(f"trainer.compile=true: fusion or head cannot be compiled here: {said}") from error
            if not ran_out_of_memory(error):
                raise
            rows = module.rows.tolist()
            longest = float(self.corpus.frame["seconds"].iloc[rows].max()) if rows else 0.0
            key = f"stage.{stage.name}"
            raise InputError(
                f"stage {stage.name}: {self.device.type} ran out of memory over a batch of {len(rows)} utterances "
                f"({len(rows) * longest:.0f} s with padding, the longest {longest:.1f} s). Lower {key}.batch_size (and "
                f"raise {key}.accumulate for as large an optimizer step) or data.max_seconds, or set "
                "encoder.text.gradient_checkpointing and encoder.audio.gradient_checkpointing where encoders train."
            ) from error

    def _test(self, module: EmotionModule, trained: Collection[str]) -> dict[str, Outputs]:
        """What the last stage's best weights make of the validation and the test side."""
        outputs = {}
        rounded = autocast(self.device, MIXED.get(str(self.config.trainer.precision)))
        network = module.network
        with ExitStack() as stack:
            stack.enter_context(self._explained(self.stages[-1], module))
            stack.enter_context(self._computing(network, trained))
            if self.config.trainer.precision != "64-true":
                module.float()  # where training was in half precision throughout: as all that comes later
            stack.enter_context(network.merged())  # as all that comes later
            module.to(self.device).eval()
            for side, loader in (("val", self.data.val_dataloader()), ("test", self.data.test_dataloader())):
                step = rounded(partial(module.step, side))
                limit = self.config.trainer.get(f"limit_{side}_batches")  # as Lightning takes it: how many, or a share
                count = int(limit * len(loader)) if isinstance(limit, float) else limit
                batches = (batch.to(self.device) for batch in islice(loader, count))
                outputs[side] = compute_outputs(step, batches, classes=self.corpus.emotions, device=self.device)
                module.refuse_infinite()
            module.cpu()
        return outputs

    def _finish(
        self, network: EmotionNetwork, trained: Trained, outputs: Mapping[str, Outputs], seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Write the model directory and the run's results, and return what metrics.json holds."""
        config, encoders = self.config, network.by_modality
        origins = [encoder.weights for encoder in encoders.values()]
        metrics = {
            **{f"{side}/{name}": value for side in ("test", "val") for name, value in outputs[side].metrics.items()},
            **self.corpus.protocol_record(),
            "weights": origins[0] if len(set(origins)) == 1 else "+".join(origins),
            **{f"seconds/{name}": value for name, value in seconds.items()},
            **{f"encoded/{modality}": count for modality, count in self.encoded.items()},
        }
        # In half precision throughout, training rounds the weights beside adapters: then they are not the config's.
        kept = set(trained) - (_adapted(trained) if config.trainer.precision not in ("bf16-true", "16-true") else set())
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
            store=self.encoding.store,
        )
        save_model(self.directory.model, Model(network, self.corpus.emotions, conditions), config, left_out)
        results = write_results(self.directory, self.corpus, metrics, outputs["test"])
        for logger in self.loggers:
            logger.finish(results)
        return results.metrics


if __name__ == "__main__":
    try:
        resume(Path(sys.argv[1]), own_process=True)
    except InputError as error:
        sys.exit(f"error: {error}")
