"""A run from first to last: data, stages, test, run directory. It knows no command line."""

import copy
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer, seed_everything
from rich.logging import RichHandler

from fourm_ser.config import build, refuse_missing
from fourm_ser.data.content import changes_since, record_content
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.devices import (
    copies_ahead,
    find_device,
    ran_out_of_memory,
    resolve_accelerator,
    resolve_budget,
    resolve_devices,
    resolve_encode_precision,
    resolve_trainer_precision,
    tf32,
)
from fourm_ser.distributed import barrier, first, joined, launched, rank, world
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.hub import ENCODER_FILES, fetch_weights
from fourm_ser.encoders.official import fetch_file
from fourm_ser.errors import BusyError, InputError, OtherRunError
from fourm_ser.files import write_json, write_text
from fourm_ser.kernels.memory import keep_freed_memory
from fourm_ser.keys import check_config
from fourm_ser.losses.base import Loss
from fourm_ser.models.directory import Model, Use, build_network, known_widths, save_model
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.models.sources import Encoding, check_transcripts, compare_languages, make_sources
from fourm_ser.places import settle
from fourm_ser.runs.results import print_results, write_results
from fourm_ser.training.launch import launch, processes
from fourm_ser.training.loggers import RunLogger
from fourm_ser.training.module import EmotionModule, NotFiniteError
from fourm_ser.training.stages import Stage, build_trainer, read_stages, trainer_arguments

log = logging.getLogger("fourm_ser.training.experiment")  # also where it is `__main__`


def run(config: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Train, test and report one experiment, or go on with one that was interrupted.

    Args:
        config: the composed config.
        run_dir: where it is recorded. What an interrupted run of the same config left there is gone on from.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: bad input; what is written already stays.
    """
    run_dir = run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        if launched():
            with joined(config.trainer.accelerator):
                return _run(config, run_dir)
        metrics = _run(config, run_dir)
        if not metrics:
            launch(_read_record(run_dir), run_dir)
            metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
        return metrics
    except OtherRunError:
        raise
    except Exception as error:
        if rank() == 0 or not (run_dir / "failure.json").is_file():  # rank zero's word comes first
            note_failure(run_dir, error)
        raise


def _run(config: DictConfig, run_dir: Path) -> dict[str, Any]:
    """The run as far as this process does it: nothing where others have to be started, or have the results."""
    results = run_dir / "metrics.json"
    with _alone(run_dir), _logged(run_dir / "train.log"):
        if rank() == 0:
            (run_dir / "failure.json").unlink(missing_ok=True)
        config = _record(config, run_dir)
        if results.is_file():
            changed = changes_since(config.data, config.cache, run_dir) if rank() == 0 else ""
            if changed:
                raise InputError(
                    f"{run_dir}: has finished, and its corpus has changed since: {changed}. Undo the change, or begin "
                    "another run (a sweep's jobs from the beginning: sweep.skip_finished=false)."
                )
            log.info("this run has finished already: %s", run_dir)
            metrics = json.loads(results.read_text(encoding="utf-8"))
        elif processes(config) > 1 and not launched():
            log.info("starting %d processes", processes(config))
            return {}
        else:
            if processes(config) != world():
                raise InputError(
                    f"{run_dir}: is recorded for {processes(config)} processes (trainer.devices, trainer.num_nodes), "
                    f"and {world()} do it. Give torchrun the numbers of the record."
                )
            try:
                metrics = Experiment(config, run_dir).run()
            except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
                log.warning("interrupted: go on with python -m fourm_ser.train resume=%s", run_dir)
                raise
        if metrics:
            print_results(metrics, run_dir)
        return metrics


def resume(run_dir: Path) -> dict[str, Any]:
    """Go on with the run that `run_dir` records; see `run`."""
    if not (run_dir / "config.yaml").is_file():
        raise InputError(f"resume={run_dir}: no config.yaml there. Expected the directory of an earlier run.")
    return run(_read_record(run_dir), run_dir)


def note_failure(run_dir: Path, error: Exception, overrides: Sequence[str] = ()) -> None:
    """Write failure.json: why a run ended before its results; it is gone as soon as the run goes on.

    Args:
        run_dir: the run directory.
        error: what ended the run.
        overrides: the run's `key=value` words.
    """
    said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    write_json(run_dir / "failure.json", {"error": said, "overrides": list(overrides)})


class Experiment:
    """What the steps of a run share.

    Args:
        config: the resolved config.
        run_dir: the run directory.
    """

    def __init__(self, config: DictConfig, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir
        self.cache = Path(config.cache).expanduser()
        self.stages = read_stages(
            build(config.stage),
            build(config.optimizer),
            build(config.scheduler),
        )
        self.loss: Loss = build(config.loss)
        self.corpus: Corpus = build(config.data, cache=self.cache)  # reads nothing, but checks its keys
        self._refuse_misfits()
        self.device = find_device(config.trainer.accelerator, "trainer.accelerator")
        self.loggers: list[RunLogger] = list(build(config.logger).values()) if rank() == 0 else []
        self.encoded: dict[str, int] = {}

    def _refuse_misfits(self) -> None:
        """Refuse what does not fit together before any data is prepared and any encoder built."""
        config = self.config
        widths = dict.fromkeys(("embedding", *config.fusion.modalities), 1)
        emotions = self.corpus.wanted  # None: those that the corpus turns out to have
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
        log.info(
            "trainer: %s, precision %s; frozen encoders: %s",
            config.trainer.accelerator,
            config.trainer.precision,
            config.encode.precision,
        )
        torch.use_deterministic_algorithms(bool(config.trainer.get("deterministic", False)))  # in encoding passes, too
        if self.device.type == "cpu":
            keep_freed_memory()
        with first():
            network = self._prepare()
        self.loss.setup(len(self.corpus.emotions), network.widths, self.corpus.counts)
        self.loss.check_classifier()
        network.adopt(self.loss)
        if config.trainer.get("compile", False):
            network.fusion.compile(dynamic=True)
            network.head.compile(dynamic=True)
        for encoder in network.by_modality.values():
            size = sum(parameter.numel() for parameter in encoder.parameters())
            log.info(
                "%s encoder: %s, %.1f M parameters, weights: %s",
                encoder.modality,
                encoder.name,
                size / 1e6,
                encoder.weights,
            )
            for stage in self.stages:  # what a later stage may not unfreeze is known before the first
                encoder.unfreeze(stage.unfreeze[encoder.modality])
        compare_languages(network, self.corpus)
        check_transcripts(network, self.corpus.frame["text"])
        self.encoded = dict.fromkeys(network.by_modality, 0)
        for logger in self.loggers:
            logger.start(self.run_dir, OmegaConf.to_container(config))  # type: ignore[arg-type]

        trained: set[str] = set()
        seconds: dict[str, float] = {}
        for stage in self.stages:
            trained |= {modality for modality in network.encoders if stage.unfreeze[modality] != "none"}
            module, seconds[stage.name] = self._train(stage, network, sorted(trained))
        return self._finish(module, trained, seconds)

    def _prepare(self) -> EmotionNetwork:
        """Fetch, prepare and read what is not there yet; the network, as it begins."""
        config = self.config
        for modality in config.fusion.modalities:  # what cannot be downloaded is known before any work is done
            node = config.encoder[modality]
            if node.get("weights") == "pretrained" and node.get("checkpoint"):
                fetch_weights(node.checkpoint, ENCODER_FILES, f"encoder.{modality}.checkpoint")
            elif node.get("weights") == "pretrained" and node.get("url"):
                fetch_file(node.url, digest=node.get("digest"), cache=self.cache)
        self.data = EmotionDataModule(self.corpus, pin_memory=copies_ahead(self.device), seed=config.seed)
        self.data.prepare_data()
        self.data.setup()
        record_content(self.corpus.content, self.corpus.origin, self.run_dir, write=rank() == 0)
        seed_everything(config.seed, verbose=False)
        resources = Resources(self.cache, self.corpus.training_texts)
        return build_network(config, len(self.corpus.emotions), resources)

    def _train(self, stage: Stage, network: EmotionNetwork, trained: list[str]) -> tuple[EmotionModule, float]:
        """One stage, or what is left of it; the network ends with the stage's best weights."""
        folder = self.run_dir / stage.folder
        for modality, encoder in network.by_modality.items():
            encoder.unfreeze(stage.unfreeze[modality])
        finished = folder / "finished.json"
        if not finished.is_file() or stage is self.stages[-1]:
            sources, encoded = make_sources(network, self.data, Encoding.of(self.config))
            for modality, count in encoded.items():
                self.encoded[modality] += count
            self.data.serve(sources, stage.batch_size)
        module = EmotionModule(
            network,
            self.loss,
            self.corpus.emotions,
            stage.optimizer,
            stage.scheduler,
            stage.encoder_learning_rate,
            stage.epochs,
            math.ceil(len(self.data.sampler(self.corpus.split.train)) / stage.accumulate),
            self.config.seed,
            stage.number,
            trained,
        )
        if not finished.is_file():
            last = folder / "checkpoints" / "last.ckpt"
            if last.is_file():
                log.info("stage %s: going on from %s", stage.name, last)
                _check_place(last)
            else:
                log.info("stage %s: up to %d epochs, unfreezes %s", stage.name, stage.epochs, stage.unfreeze)
            module.train()  # Lightning keeps the modes it finds: those of an earlier stage, or of an encoding pass
            started = time.monotonic()
            loggers = [logger.stage(folder, stage.name) for logger in self.loggers]
            trainer = build_trainer(stage, self.run_dir, self._trainer_arguments(network), loggers)
            with self._explained(stage, module), self._computing(network, trained):
                trainer.fit(module, datamodule=self.data, ckpt_path=last if last.is_file() else None, weights_only=True)
            if rank() == 0:
                write_json(finished, {"seconds": time.monotonic() - started, "epochs": trainer.current_epoch})
            barrier()
        best = torch.load(folder / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
        module.load_state_dict(best["state_dict"])
        log.info("stage %s: best validation UA in epoch %d", stage.name, best["epoch"])
        return module, float(json.loads(finished.read_text(encoding="utf-8"))["seconds"])

    @contextmanager
    def _computing(self, network: EmotionNetwork, trained: Sequence[str]) -> Iterator[None]:
        """Roundings as the config says, and no stem on the device whose features come from the store."""
        untrained = [modality for modality in network.encoders if modality not in trained]
        with network.without_stems(untrained), tf32(self.config.trainer.get("tf32", False)):
            yield

    @contextmanager
    def _explained(self, stage: Stage, module: EmotionModule) -> Iterator[None]:
        """Say of what ends a stage where it did so, by whom, and what there is to go on from or to lower.

        A loss that is not finite, or no memory left.
        """
        try:
            yield
        except NotFiniteError as error:
            checkpoints = [self.run_dir / stage.folder / "checkpoints" / "last.ckpt"]
            earlier = reversed(self.stages[: stage.number])
            checkpoints += [self.run_dir / before.folder / "checkpoints" / "best.ckpt" for before in earlier]
            good = next((str(path) for path in checkpoints if path.is_file()), "none, for no epoch was finished")
            ids = self.corpus.frame["id"].iloc[error.rows]
            raise InputError(
                f"loss: {', '.join(error.terms)} became NaN or infinite in stage {stage.name} ({error.place}). "
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

    def _finish(self, module: EmotionModule, trained: set[str], seconds: dict[str, float]) -> dict[str, Any]:
        """Test the last stage's best weights and write the run directory's results: rank zero, which returns them."""
        trainer = Trainer(
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **self._trainer_arguments(module.network),
        )
        with self._explained(self.stages[-1], module), self._computing(module.network, list(trained)):
            val = trainer.validate(module, datamodule=self.data, verbose=False)[0]
            test = trainer.test(module, datamodule=self.data, verbose=False)[0]
        if rank() != 0:
            return {}
        index, probabilities = module.predictions()
        encoders = module.network.by_modality
        origins = {encoder.weights for encoder in encoders.values()}
        config = self.config
        metrics = {
            **test,
            **val,
            **self.corpus.protocol_record(),
            "weights": origins.pop() if len(origins) == 1 else "+".join(e.weights for e in encoders.values()),
            **{f"seconds/{name}": value for name, value in seconds.items()},
            **{f"encoded/{modality}": count for modality, count in self.encoded.items()},
        }
        left_out = {
            modality: encoder.fingerprint()
            for modality, encoder in encoders.items()
            if modality not in trained and not config.export.include_encoders
        }
        use = Use(
            [modality for modality, encoder in encoders.items() if encoder.frozen],
            config.encode.precision,
            str(config.trainer.precision),
            config.data.max_seconds,
            config.encode.get("tf32", False),
            config.trainer.get("tf32", False),
            list(self.corpus.cleaning.patterns),
        )
        save_model(self.run_dir / "model", Model(module.network, self.corpus.emotions, use), config, left_out)
        stages = [self.run_dir / stage.folder for stage in self.stages]
        results = write_results(self.run_dir, self.corpus, metrics, index.numpy(), probabilities.numpy(), stages)
        for logger in self.loggers:
            logger.finish(results)
        return results.metrics

    def _trainer_arguments(self, network: EmotionNetwork) -> dict[str, Any]:
        given = OmegaConf.to_container(self.config.trainer)
        skips = any(not encoder.frozen and encoder.skips_parts for encoder in network.by_modality.values())
        return trainer_arguments(given, self.device, skips)  # type: ignore[arg-type]


def _record(config: DictConfig, run_dir: Path) -> DictConfig:
    """Resolve a config for this machine and write it as the run's record, or hold it against the record there."""
    path = run_dir / "config.yaml"
    if not path.is_file():  # a record of an earlier version goes on as it is
        check_config("train", config)
    refuse_missing(config)
    config = copy.deepcopy(config)
    OmegaConf.resolve(config)
    OmegaConf.set_struct(config, False)
    for key in ("resume", "sweep"):  # how a run is started is no part of it
        config.pop(key, None)
    settle(config)
    trainer, encode = config.trainer, config.encode
    trainer.accelerator = resolve_accelerator(trainer.accelerator)
    device = find_device(trainer.accelerator, "trainer.accelerator")
    trainer.devices = resolve_devices(trainer.devices, device)
    trainer.precision = resolve_trainer_precision(str(trainer.precision), device)
    encode.precision = resolve_encode_precision(str(encode.precision), device)
    for key in ("max_seconds", "max_tokens"):
        encode[key] = resolve_budget(key, encode[key], device)
    if not path.is_file():
        write_text(path, OmegaConf.to_yaml(config))
        return config
    recorded = _read_record(run_dir)
    settle(recorded)
    if recorded != config:
        raise OtherRunError(
            f"{run_dir}: holds a run of another config. Continue it with resume={run_dir}, or choose another directory."
        )
    return config


def _read_record(run_dir: Path) -> DictConfig:
    config = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(config, DictConfig)
    return config


def _check_place(checkpoint: Path) -> None:
    """Refuse a run that was moved: Lightning's checkpoints name their folder, and best weights would be lost."""
    callbacks = torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"]
    places = {state["dirpath"] for state in callbacks.values() if "dirpath" in state}
    if places != {str(checkpoint.parent)}:
        raise InputError(
            f"{checkpoint}: the run was made in {', '.join(sorted(places))} and moved since. Move it back to resume it."
        )


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Keep a second process out of a run directory; of those that do the run together, rank zero speaks for all."""
    if rank() != 0:
        yield
        return
    lock = FileLock(run_dir / ".lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout as error:
        raise BusyError(f"{run_dir}: another process is running this run. Wait for it, or end it.") from error


# Remarks of Lightning's that are true of every run here, and no news to its user.
EXPECTED = (
    "The number of training batches",  # small corpora have few batches
    "Found .* module.* in eval mode",  # frozen stems
    ".*does not have many workers",  # stored features are read in the training process on purpose
    "`isinstance.treespec, LeafSpec.` is deprecated",
    "It is recommended to use .self.log.*sync_dist=True",  # metrics are those of all processes already
    "Using `DistributedSampler` with the dataloaders",  # the batch sampler gives no utterance twice
    "Detected call of `lr_scheduler.step",  # in 16-mixed the first steps find out by how much gradients can be scaled
)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send rank zero's log to the terminal, and in more detail to a file."""
    root = logging.getLogger("fourm_ser")
    if rank() != 0:
        root.addHandler(logging.NullHandler())
        root.propagate = False
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        yield
        return
    terminal = RichHandler(show_path=False, show_time=False, show_level=False, markup=False, highlighter=None)
    terminal.setLevel(logging.INFO)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before, propagate = root.level, root.propagate
    root.setLevel(logging.DEBUG)
    root.propagate = False
    for handler in (terminal, file):
        root.addHandler(handler)
    lightning = logging.getLogger("pytorch_lightning")
    lightning_level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message)
            yield
    except Exception as error:
        trace = None if isinstance(error, InputError) else sys.exc_info()
        file.handle(logging.LogRecord("fourm_ser", logging.ERROR, __file__, 0, str(error), None, trace))
        raise
    finally:
        for handler in (terminal, file):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before)
        root.propagate = propagate
        lightning.setLevel(lightning_level)


if __name__ == "__main__":
    try:
        resume(Path(sys.argv[1]))
    except InputError as error:
        sys.exit(f"error: {error}")
