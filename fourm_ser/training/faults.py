"""What goes wrong while a stage trains or is tested, said in one line."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fourm_ser.data.corpus import Corpus
from fourm_ser.devices import ran_out_of_memory
from fourm_ser.errors import InputError
from fourm_ser.training.module import EmotionModule, NotFiniteError


@contextmanager
def explained(module: EmotionModule, corpus: Corpus, checkpoints: Iterable[Path]) -> Iterator[None]:
    """Say of a loss that is not finite, or no memory left, over what it was, and what to go on from or to lower.

    Args:
        module: What trains, or is tested.
        corpus: The corpus.
        checkpoints: What could be gone on from, where it is there, the first of them before the others.
    """
    stage = module.stage
    try:
        yield
    except NotFiniteError as error:
        good = next((str(path) for path in checkpoints if path.is_file()), "none, for no epoch was finished")
        ids = corpus.frame["id"].iloc[error.rows]
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
        longest = float(corpus.frame["seconds"].iloc[rows].max()) if rows else 0.0
        key = f"stage.{stage.name}"
        raise InputError(
            f"stage {stage.name}: {module.device.type} ran out of memory over a batch of {len(rows)} utterances "
            f"({len(rows) * longest:.0f} s with padding, the longest {longest:.1f} s). Lower {key}.batch_size (and "
            f"raise {key}.accumulate for as large an optimizer step) or data.max_seconds, or set "
            "encoder.text.gradient_checkpointing and encoder.audio.gradient_checkpointing where encoders train."
        ) from error
