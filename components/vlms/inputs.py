"""Inputs of the `vlm` backbone: cameras, one prompt, and optionally the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...schemas.errors import SpecError
from ...schemas.specs import Kind, Spec, Specs
from ..features import common_steps

_COLLATOR = "set `collator: {type: language, tokenizer: <the same model>}` to turn `task` into token ids"


@dataclass(frozen=True)
class VlmInputs:
    """Specs of the inputs, by kind."""

    cameras: dict[str, Spec]
    ids: str
    """Key of the prompt's token ids."""
    length: int | str
    """Number of tokens of the prompt."""
    vocabulary: int | None
    """Number of token ids of the tokenizer."""
    states: dict[str, Spec]

    @property
    def mask(self) -> str:
        """Key of the prompt's mask."""
        return f"{self.ids.removesuffix('.input_ids')}.attention_mask"


def read_inputs(config: Any, available: Specs) -> dict[str, Spec]:
    """Return the inputs that `reads` names, or all of the model's kinds; raise SpecError if one is absent."""
    kinds = [Kind.IMAGE, Kind.TOKEN_IDS, *([Kind.STATE] if config.state == "token" else [])]
    listing = ", ".join(f"{key} ({spec.kind})" for key, spec in available.items()) or "none"
    for position, key in enumerate(config.reads or ()):
        spec = available.get(key)
        if spec is None or spec.kind not in kinds:
            problem = "is not an input" if spec is None else f"is {spec}"
            raise SpecError(
                f"`{key}` {problem}; `{config.type}` reads {', '.join(kinds)} inputs",
                field=f"reads.{position}",
                label=problem,
                help="set `state: token` to read the state"
                if spec is not None and spec.kind is Kind.STATE
                else f"inputs are: {listing}",
            )
    chosen = {key: available[key] for key in config.reads or available}
    found = {key: spec for key, spec in chosen.items() if spec.kind in kinds}
    for kind in kinds:
        if not any(spec.kind is kind for spec in found.values()):
            raise SpecError(
                f"`{config.type}` reads {kind} inputs, and there are none",
                field="state" if kind is Kind.STATE else None if config.reads is None else "reads",
                label=f"no {kind} input",
                help=_COLLATOR if kind is Kind.TOKEN_IDS else f"inputs are: {listing}",
            )
    return found


def inputs_of(config: Any, available: Specs) -> VlmInputs:
    """Sort the inputs by kind; raise SpecError for several prompts, or states that differ in steps."""
    found = read_inputs(config, available)
    texts = [key for key, spec in found.items() if spec.kind is Kind.TOKEN_IDS]
    if len(texts) > 1:
        raise SpecError(
            f"`{config.type}` reads one prompt, and there are {len(texts)}: {', '.join(texts)}",
            field=None if config.reads is None else "reads",
            label="one prompt at a time",
            help="list the inputs to read with `reads`",
        )
    states = {key: spec for key, spec in found.items() if spec.kind is Kind.STATE}
    if states:
        common_steps(states)
    cameras = {key: spec for key, spec in found.items() if spec.kind is Kind.IMAGE}
    prompt = found[texts[0]]
    return VlmInputs(cameras, texts[0], prompt.dims[1], prompt.vocab, states)
