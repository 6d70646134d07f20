"""Validation of a recipe against a vision-language model, before anything is built."""

from __future__ import annotations

from typing import Any

from ...schemas.errors import SpecError
from ..base import Facts
from ..images.specs import IMAGE_STATISTICS, check_normalization, frame_size, frames
from . import FAMILIES, family_of
from .base import VlmFamily
from .inputs import VlmInputs

_HALF_RANGE = ("paligemma", "smolvlm", "openvla")
"""Families that read images in [-1, 1]."""


def validate_vlm(config: Any, inputs: VlmInputs, facts: Facts) -> tuple[VlmFamily, int | str]:
    """Return the family and the number of tokens N before the queries; raise SpecError for unfit options."""
    named = "pretrained" if config.pretrained is not None else "architecture"
    source = getattr(config, named)
    text, known = facts["config"]["text_config"], FAMILIES[facts["config"]["model_type"]].text_models
    if text["model_type"] not in known:
        raise SpecError(
            f"the language model of `{source}` is `{text['model_type']}`, which cannot run layer by layer",
            field=named,
            label=f"has a `{text['model_type']}` language model",
            help=f"language models are: {', '.join(known)}",
        )
    whole = family_of(facts["config"], None)
    for name, most in (("depth", whole.depth), ("layer", config.depth or whole.depth)):
        if (value := getattr(config, name)) is not None and value > most:
            raise SpecError(
                f"`{name}` is {value}, but there are {most} layers",
                field=name,
                label=f"there are {most} layers",
                help=f"set `{name}` to {most} or less",
            )
    if facts["config"]["model_type"] in _HALF_RANGE:
        mean, std = (list(values) for values in IMAGE_STATISTICS["half"])
        check_normalization(inputs.cameras, {"mean": mean, "std": std}, source)
    family = family_of(facts["config"], config.depth)
    for name in ("rope", "decoder"):
        if getattr(config, name) and not family.has_key_values:
            raise SpecError(
                f"`{source}` is an encoder, which does not use `{name}`",
                field=name,
                label="unused",
                help=f"leave `{name}` out",
            )
    try:
        family.rotary(config.rope)
        size = frame_size(inputs.cameras)
        try:
            each = family.frame_tokens(size)
        except SpecError as error:
            error.source = next(iter(inputs.cameras))
            raise
    except SpecError as error:
        error.field = error.field or (None if error.trait == "range" else named)
        raise
    if inputs.vocabulary is not None and inputs.vocabulary > family.vocabulary:
        raise SpecError(
            f"the tokenizer has {inputs.vocabulary} token ids, but `{source}` has {family.vocabulary} embeddings",
            field=named,
            source=inputs.ids,
            label=f"has {family.vocabulary} embeddings",
            help="use the tokenizer that the model was trained with",
        )
    if isinstance(inputs.length, str):
        return family, "N"
    steps = next((int(spec.dims[1]) for spec in inputs.states.values()), 0)
    count = config.soft_prompts + frames(inputs.cameras) * each + inputs.length + steps
    if count + config.queries > family.max_positions:
        raise SpecError(
            f"the sequence has {count + config.queries} tokens, {inputs.length} of them the prompt's, but `{source}` "
            f"reads at most {family.max_positions}",
            field=named,
            source=inputs.ids,
            label=f"reads at most {family.max_positions} tokens",
            help="lower `max_length` of the collator, or read fewer cameras or steps",
        )
    return family, count
