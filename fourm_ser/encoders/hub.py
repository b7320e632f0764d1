"""Weights and tokenizers of Transformers: those of a checkpoint, or drawn by a seed and trained on transcripts."""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from fourm_ser.encoders.attention import speed_up
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.checkpoints import cached_folder, checkpoint_folder, fetch_weights
from fourm_ser.errors import InputError, brief
from fourm_ser.files import whole

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")
ENCODER_FILES = ("preprocessor_config.json", *TOKENIZER_FILES)  # beside weights and config


def load_transformer(
    *,
    checkpoint: str | None,
    weights: str,
    architecture: dict[str, Any],
    overrides: dict[str, Any],
    modality: str,
    init_seed: int,
) -> "PreTrainedModel":
    """A Hugging Face model in fp32 with the weights that the config names, and never with others.

    They are `pretrained`, of the checkpoint; `random`, drawn by `init_seed` for the architecture (`model_type` and
    fields of the model's config); or a folder's. The overrides are fields that hold whatever the weights.

    Raises:
        InputError: weights that cannot be had, or that do not fit the architecture.
    """
    if weights == "random":
        config = AutoConfig.for_model(**{**architecture, **overrides})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init_seed)
            return speed_up(AutoModel.from_config(config))
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
        model, report = AutoModel.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported, and refused below
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UnpicklingError) as error:
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


def hidden_size(arguments: Mapping[str, Any], modality: str) -> int | None:
    """How wide the hidden states are of the model that an encoder of these arguments has; None where no config tells.

    Raises:
        InputError: a checkpoint that cannot be had.
    """
    weights = arguments.get("weights")
    try:
        if weights == "random":
            return int(AutoConfig.for_model(**arguments["architecture"]).hidden_size)
        source = arguments["checkpoint"] if weights == "pretrained" else weights
        if source is None:
            return None
        folder = checkpoint_folder(str(source), [], f"encoder.{modality}.checkpoint")
        return int(AutoConfig.from_pretrained(folder, trust_remote_code=False).hidden_size)
    except (KeyError, TypeError, ValueError, OSError, AttributeError):
        return None  # what is wrong with it, loading says


def load_tokenizer(source: str, weights: str, vocabulary: int, resources: Resources) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint, or for `wordpiece` a small one that is trained on the corpus's transcripts.

    With `random` weights the hub is not asked: a tokenizer that is not on this machine already is replaced by a trained
    one, which the log says.

    Raises:
        InputError: the tokenizer cannot be had.
    """
    if source == "wordpiece":
        return train_wordpiece(resources, vocabulary)
    if weights == "random" and not Path(source).expanduser().is_dir():
        at_hand = cached_folder(source, TOKENIZER_FILES)
        if at_hand is not None and any((at_hand / name).is_file() for name in VOCABULARY_FILES):
            with suppress(OSError, ValueError):
                return AutoTokenizer.from_pretrained(at_hand, trust_remote_code=False)
        log.warning(
            "text encoder: the tokenizer of %s is not on this machine; with random weights a WordPiece tokenizer "
            "trained on the corpus's transcripts serves instead",
            source,
        )
        return train_wordpiece(resources, vocabulary)
    folder = checkpoint_folder(source, TOKENIZER_FILES, "encoder.text.checkpoint")
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        # transformers would make up a tokenizer that knows no word
        raise InputError(
            f"{source}: none of {', '.join(VOCABULARY_FILES)} there. Expected what save_pretrained writes."
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no tokenizer that can be loaded: {brief(error)}") from error


def train_wordpiece(resources: Resources, vocabulary: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer of at most `vocabulary` tokens, trained once on the transcripts and cached.

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
    key = hashlib.blake2b(json.dumps([vocabulary, texts]).encode(), digest_size=12).hexdigest()
    path = resources.cache / "tokenizers" / f"wordpiece-{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
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
                special_tokens=[*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)],
                show_progress=False,
            )
            tokenizer.train_from_iterator(texts, trainer)
            tokenizer = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
            tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
            tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
            ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
            tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
            with whole(path) as temporary:
                tokenizer.save(str(temporary))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


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
