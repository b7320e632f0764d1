"""Text models of Transformers as encoders: which class loads one, which part of it is run, and what its hidden states
hang on.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

from fourm_ser.errors import InputError, brief

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

EXPECTED = "Expected BERT, T5, Qwen or another model of text; speech encoders belong to encoder.audio"
INEXACT = {
    **dict.fromkeys(("big_bird", "bigbird_pegasus"), "attends otherwise once a batch was short"),
    **dict.fromkeys(("canine", "funnel"), "pools over padding"),
    **dict.fromkeys(("convbert", "mobilebert"), "reads the padding beside its tokens"),
    "cpmant": "counts places in the whole batch",
    "fnet": "mixes all tokens, padding included",
    **dict.fromkeys(("mra", "nystromformer", "yoso"), "approximates attention by the length of the batch"),
    **dict.fromkeys(("nllb-moe", "switch_transformers"), "lets tokens compete for its experts across the batch"),
    "reformer": "hashes tokens at random",
}
"""Model types whose features of an utterance depend on what else is in its batch, and why."""


def text_class(config: "PreTrainedConfig", source: str) -> Any:
    """The auto class that loads a model of text of such a config: of T5 and its kin the encoder alone.

    Raises:
        InputError: a model of several modalities, or one whose features depend on the batch; the error begins with the
            `source`.
    """
    kind = config.model_type
    if kind in INEXACT:
        raise InputError(
            f"{source}: {kind} {INEXACT[kind]}, so that an utterance's features would depend on its batch. Choose a "
            "checkpoint of another type."
        )
    composite = any(word in part for part in config.sub_configs for word in ("text", "vision", "audio", "encoder"))
    if composite or not hasattr(config, "hidden_size"):
        raise InputError(f"{source}: {kind} is no model of text alone. {EXPECTED}.")
    return AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel


def text_part(model: PreTrainedModel, source: str) -> PreTrainedModel:
    """The part of a model that makes its features: the encoder where there is a decoder, else all but the pooler.

    Raises:
        InputError: a model of something else than text; the error begins with the `source`.
    """
    if model.main_input_name != "input_ids":
        raise InputError(f"{source}: {model.config.model_type} is no text model. {EXPECTED}.")
    encoder = getattr(model, "encoder", None)
    part = encoder if isinstance(encoder, PreTrainedModel) else model
    if getattr(part, "pooler", None) is not None:
        part.pooler = nn.Identity()  # features are the hidden states; an unused layer would only wait for gradients
    for module in part.modules():
        if hasattr(module, "layerdrop"):
            module.layerdrop = 0.0  # hidden states are counted as they pass: a skipped layer would shift all behind it
    return part


def fixed_arguments(model: PreTrainedModel) -> dict[str, Any]:
    """What a model is always called with: a decoder keeps nothing for tokens to come."""
    takes = inspect.signature(type(model).forward).parameters
    return {"use_cache": False} if "use_cache" in takes else {}


class States(NamedTuple):
    """The hidden states that a model makes of a few tokens, each (1, tokens, width), with the graphs behind them.

    Attributes:
        hidden: What enters the first layer, then what leaves each; as Transformers has it, the last is normed.
        last: The last hidden state, behind a final norm where there is one.
    """

    hidden: Sequence[Tensor]
    last: Tensor


def states_of(model: PreTrainedModel) -> States:
    """A model's hidden states of three tokens, whichever they are."""
    training = model.training
    ids = torch.arange(3)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **fixed_arguments(model)}
    try:
        with torch.enable_grad():
            output = model.eval()(**given, output_hidden_states=True, return_dict=True)
    finally:
        model.train(training)
    return States(output.hidden_states, output.last_hidden_state)


def read_states(model: PreTrainedModel, source: str) -> States:
    """The hidden states of a model that is seen for the first time.

    Raises:
        InputError: it cannot be run on tokens, or its hidden states are not of one width; the error begins with the
            `source`.
    """
    kind = model.config.model_type
    try:
        states = states_of(model)
        shapes = {tuple(state.shape) for state in (*states.hidden, states.last)}
    except Exception as error:  # of whatever kind: the model is a stranger
        raise InputError(f"{source}: {kind} cannot be run on tokens alone ({brief(error)}). {EXPECTED}.") from error
    if shapes != {(1, 3, model.config.hidden_size)}:
        raise InputError(f"{source}: hidden states of {kind} are not all of one width here. Choose another checkpoint.")
    return states


def read_blocks(model: PreTrainedModel, states: Sequence[Tensor]) -> list[list[str]]:
    """Names of the parameters that hidden states hang on, by block, from input to output.

    The first block is what enters the first layer, then each layer has one; what several share is in the first of
    them, a final norm in the last. Layers that share all of their weights are one block. What the parts are called
    does not matter: the graphs behind the states tell it.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: set[Any] = set()
    return [block for state in states if (block := [names[key] for key in _parameters(state, seen)])]


def _parameters(state: Tensor, seen: set[Any]) -> list[int]:
    """The ids of the parameters that a tensor's graph leads to by nodes that were not `seen`, which it adds there."""
    found, waiting = [], [state.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(id(node.variable))
        waiting += [before for before, _ in node.next_functions]
    return found


def find_layers(model: PreTrainedModel, depth: int) -> str | None:
    """Where the model has its transformer layers, `depth` of them in a list; None where there is no such list.

    ALBERT has none: it passes the same few layers again and again.
    """
    lists = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return next((name for name, found in lists if len(found) == depth), None)


def cut(model: PreTrainedModel, layers: nn.ModuleList, used: int) -> None:
    """Delete the layers that hidden state `used` of a model does not hang on, as far as it stays what it is.

    Many a model norms what leaves its last layer, whichever that is: then one more is kept than are used.
    """
    expected = states_of(model).hidden[used]
    for keep in (max(1, used), used + 1):
        rest = list(layers[keep:])
        del layers[keep:]
        try:
            if torch.equal(states_of(model).hidden[used], expected):
                return
        except (AttributeError, LookupError, RuntimeError, TypeError):
            pass  # it counts its layers by its config
        layers.extend(rest)
