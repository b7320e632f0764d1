"""Weights and tokenizers of Transformers: those of a checkpoint, or drawn by a seed and trained on transcripts."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as logging_of_transformers

from fourm_ser.encoders.attention import speed_up
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.checkpoints import cached_folder, checkpoint_folder, fetch_weights
from fourm_ser.errors import InputError, brief, unpanicked
from fourm_ser.files import is_spoilt, made_once, whole

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = ("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model")  # of SentencePiece
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", *PIECES)
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")
# What Transformers raises of values that are none of a model's, and of files that are no checkpoint's.
VALUES = (StrictDataclassError, TypeError, ValueError, AttributeError, RuntimeError, LookupError, ArithmeticError)
UNLOADABLE = (*VALUES, OSError, SafetensorError, UnpicklingError)
ENCODER_FILES = ("preprocessor_config.json", *TOKENIZER_FILES)  # beside weights and config


def any_model(config: "PretrainedConfig", source: str) -> Any:
    """The class that loads the base model of any config."""
    return AutoModel


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers without its bar and its table of what a checkpoint holds beside what is used: we say what lacks."""
    before, bar = logging_of_transformers.get_verbosity(), logging_of_transformers.is_progress_bar_enabled()
    logging_of_transformers.set_verbosity_error()
    logging_of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        logging_of_transformers.set_verbosity(before)
        if bar:
            logging_of_transformers.enable_progress_bar()


def load_transformer(
    *,
    checkpoint: str | None,
    weights: str,
    architecture: dict[str, Any],
    overrides: dict[str, Any],
    modality: str,
    init_seed: int,
    auto: Callable[["PretrainedConfig", str], Any] = any_model,
) -> "PreTrainedModel":
    """A Hugging Face model in fp32 with the weights that the config names, and never with others.

    They are `pretrained`, of the checkpoint; `random`, drawn by `init_seed` for the architecture (`model_type` and
    fields of the model's config); or a folder's. The overrides are fields that hold whatever the weights. `auto` says
    by which class a model of a config is loaded, and may refuse it, with a line that begins with where it comes from.

    Raises:
        InputError: weights that cannot be had, or that do not fit the architecture.
    """
    if weights == "random":
        place = f"encoder.{modality}.architecture"
        config = described({**architecture, **overrides}, place)
        refuse_kernels(config, place)
        kind = auto(config, place)
        with torch.random.fork_rng(devices=[]), _said_of(place):
            torch.manual_seed(init_seed)
            # In float32, whatever the config of a checkpoint says that this one was read from.
            model = kind.from_config(config, dtype=torch.float32)
        return speed_up(model)
    source = checkpoint if weights == "pretrained" else weights
    if source is None:
        raise InputError(
            f"encoder.{modality}.weights=pretrained: this encoder has no pretrained weights. "
            "Use encoder.weights=random, or a folder written by save_pretrained."
        )
    folder = fetch_weights(source, ENCODER_FILES, f"encoder.{modality}.checkpoint")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config.update(overrides)
        refuse_kernels(config, source)
        with quiet():
            model, report = auto(config, source).from_pretrained(
                folder,
                config=config,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported, and refused below
            )
    except UNLOADABLE as error:
        raise InputError(f"{source}: not a checkpoint that can be loaded: {brief(error)}") from error
    # A pooler and the pretraining mask vector are not part of the features; all else has to be in the file.
    missing = sorted(k for k in report["missing_keys"] if "pooler" not in k and not k.endswith("masked_spec_embed"))
    wrong = missing + [str(key) for key in report["mismatched_keys"]]
    if wrong:
        raise InputError(
            f"{source}: {len(wrong)} weights of {type(model).__name__} are missing or of another shape "
            f"({', '.join(wrong[:3])}, ...). Is it a checkpoint of another architecture?"
        )
    return speed_up(model)


def described(architecture: Mapping[str, Any], place: str) -> "PretrainedConfig":
    """The config of Transformers that `model_type` and other fields describe.

    Raises:
        InputError: fields that it does not take, said of `place` in our config.
    """
    with _said_of(place):
        return AutoConfig.for_model(**architecture)


@contextmanager
def _said_of(place: str) -> Iterator[None]:
    """Say of `place` in the config what Transformers cannot make of the numbers there."""
    try:
        yield
    except VALUES as error:
        raise InputError(f"{place}: no model can be made of these fields: {brief(error)}.") from error


def refuse_kernels(config: "PretrainedConfig", source: str) -> None:
    """Refuse a config whose attention is code of a repository, which Transformers would fetch and run (InputError)."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    for part in parts:
        wanted = getattr(part, "_attn_implementation", None)
        if isinstance(wanted, str) and "/" in wanted:
            raise InputError(
                f"{source}: asks for the code of {wanted} to be run (attn_implementation), which this package never "
                "does. Take that key out of its config.json."
            )


def hidden_size(arguments: Mapping[str, Any], modality: str) -> int | None:
    """How wide the hidden states are of the model that an encoder of these arguments has; None where no config tells.

    Raises:
        InputError: a checkpoint that cannot be had.
    """
    weights = arguments.get("weights")
    try:
        if weights == "random":
            return int(described(arguments["architecture"], f"encoder.{modality}.architecture").hidden_size)
        source = arguments["checkpoint"] if weights == "pretrained" else weights
        if source is None:
            return None
        folder = checkpoint_folder(str(source), [], f"encoder.{modality}.checkpoint")
        return int(AutoConfig.from_pretrained(folder, trust_remote_code=False).hidden_size)
    except (KeyError, TypeError, ValueError, OSError, AttributeError, StrictDataclassError):
        return None  # what is wrong with it, loading says


def load_tokenizer(
    source: str, weights: str, vocabulary: int, resources: Resources, padding: int | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint, or for `wordpiece` a small one that is trained on the corpus's transcripts.

    With `random` weights the hub is not asked: a tokenizer that is not on this machine already is replaced by a trained
    one, which the log says. `padding` is the id that a trained one pads with.

    Raises:
        InputError: the tokenizer cannot be had.
    """
    if source == "wordpiece":
        return train_wordpiece(resources, vocabulary, padding)
    if weights == "random" and not Path(source).expanduser().is_dir():
        at_hand = cached_folder(source, TOKENIZER_FILES)
        if at_hand is not None:
            with suppress(InputError):
                return read_tokenizer(at_hand, source)
        log.warning(
            "text encoder: the tokenizer of %s is not on this machine; with random weights a WordPiece tokenizer "
            "trained on the corpus's transcripts serves instead",
            source,
        )
        return train_wordpiece(resources, vocabulary, padding)
    return read_tokenizer(checkpoint_folder(source, TOKENIZER_FILES, "encoder.text.checkpoint"), source)


def read_tokenizer(folder: Path, source: str) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder, which errors call by its `source`.

    Raises:
        InputError: there is none that can be read.
    """
    found = [name for name in VOCABULARY_FILES if (folder / name).is_file()]
    if not found:
        # transformers would make up a tokenizer that knows no word
        raise InputError(
            f"{source}: none of {', '.join(VOCABULARY_FILES)} there. Expected what save_pretrained writes."
        )
    if set(found) <= set(PIECES) and find_spec("sentencepiece") is None:
        raise InputError(
            f"{source}: its tokenizer is {found[0]} alone, which takes the package sentencepiece to read: pip install "
            "'fourm_ser[sentencepiece]', or choose a checkpoint with a tokenizer.json."
        )
    try:
        with unpanicked():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers of many hands raise as many kinds
        about = folder / "tokenizer_config.json"
        if about.is_file() and '"auto_map"' in about.read_text(encoding="utf-8", errors="replace"):
            raise InputError(
                f"{source}: its tokenizer_config.json asks for code of its own to be run (auto_map), which is never "
                "done here. Choose a checkpoint with a tokenizer that transformers knows."
            ) from error
        raise InputError(f"{source}: no tokenizer that can be loaded: {brief(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(
            f"{source}: its tokenizer {type(tokenizer).__name__} is written in Python alone, which tells nothing of "
            "where in a text its tokens lie. Choose a checkpoint with a tokenizer.json."
        )
    return tokenizer


def train_wordpiece(resources: Resources, vocabulary: int, padding: int | None = None) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer of at most `vocabulary` tokens, trained once on the transcripts and cached.

    Args:
        resources: cache and transcripts.
        vocabulary: the most tokens.
        padding: the id of its padding, among those of the special tokens, which come first; elsewhere, and where it is
            None, padding is the first.

    Raises:
        InputError: there is no transcript with a word in it.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    texts = sorted(set(resources.texts))
    if not any(text.strip() for text in texts):
        raise InputError(
            "text encoder: the corpus has no transcripts, so there is nothing to train a tokenizer on. "
            "Use fusion=audio_only, or add transcripts in the manifest's column text."
        )
    place = padding if padding is not None and padding < len(SPECIAL_TOKENS) else 0
    special = [*SPECIAL_TOKENS[1 : place + 1], SPECIAL_TOKENS[0], *SPECIAL_TOKENS[place + 1 :]]
    made_of = [vocabulary, texts, *([place] if place else [])]
    key = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=12).hexdigest()
    path = resources.cache / "tokenizers" / f"wordpiece-{key}.json"
    with nullcontext() if _is_tokenizer(path) else made_once(path.with_suffix(".lock"), "a tokenizer"):
        if not _is_tokenizer(path):
            normalizer = normalizers.BertNormalizer(lowercase=True)
            pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
            # Trained alone, ids of single letters follow a random hash order and ties between merges with them: the
            # letters come first, in order, as if they were special.
            parts = (pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)) for text in texts)
            letters = sorted({letter for words in parts for word, _ in words for letter in word})
            trainer = trainers.WordPieceTrainer(
                vocab_size=vocabulary,
                special_tokens=[*special, *letters, *(f"##{letter}" for letter in letters)],
                show_progress=False,
            )
            tokenizer.train_from_iterator(texts, trainer)
            tokenizer = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
            tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
            tokenizer.add_special_tokens(special)
            ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
            tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
            with whole(path, seal=True) as temporary:
                tokenizer.save(str(temporary))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _is_tokenizer(path: Path) -> bool:
    """Whether a tokenizer is there; one that is damaged is made anew."""
    from tokenizers import Tokenizer

    if not path.is_file():
        return False
    try:
        with unpanicked():
            Tokenizer.from_file(str(path)).encode("")
        sound = not is_spoilt(path)
    except Exception:  # tokenizers raises nothing more particular
        sound = False
    if not sound:
        log.warning("%s: is damaged, and made anew.", path)
    return sound


def describe_config(config: "PretrainedConfig") -> dict[str, Any]:
    """The fields of a model's config that its features depend on in evaluation mode, as JSON values."""
    others = {"transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype", "apply_spec_augment"}
    regularisation = ("dropout", "dropout_prob", "layerdrop")
    return {
        key: value
        for key, value in config.to_diff_dict().items()
        if key not in others and not key.endswith(regularisation) and not key.startswith("mask_")
    }


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """A speech checkpoint's preprocessor_config.json, {} where it has none."""
    path = folder / "preprocessor_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
