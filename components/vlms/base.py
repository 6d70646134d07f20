"""What a family of vision-language models must tell to be read by the `vlm` backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...schemas.errors import SpecError
from ..layers.rotary import RotaryEmbedding
from ..pretrained.models import as_config
from .sequence import Attention, Places


@dataclass(frozen=True)
class Seen:
    """What a model makes of F frames: embeddings (F, N, D) of what it puts into the sequence for each of them.

    `deep` holds what is added to the same tokens after each of the first layers of the language model (DeepStack).
    """

    embeddings: Tensor
    deep: Sequence[Tensor] = ()


class Family(ABC):
    """One family, for one config of transformers. It holds no weights, it knows how to use those of a model."""

    model: ClassVar[type[PreTrainedModel]]
    """The class without a language head."""
    with_head: ClassVar[type[PreTrainedModel]]
    """The class with it, whose `model` is of the class without."""
    attention: Attention
    """How the tokens of a prompt see each other, in the policies that are known for this family."""
    grows: ClassVar[bool] = True
    """Whether the language model has keys and values that later tokens can attend to."""

    texts: ClassVar[tuple[str, ...]] = ("gemma", "llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen3", "qwen3_vl_text")  # fmt: skip
    """Language models that can be read layer by layer."""

    def __init__(self, sizes: Any) -> None:
        self.sizes = sizes
        self.text_sizes = sizes.text_config

    @classmethod
    def parse(cls, held: dict[str, Any]) -> Any:
        """The config as transformers has it, of its JSON."""
        return as_config(held)

    @classmethod
    def cut(cls, held: dict[str, Any], depth: int | None) -> dict[str, Any]:
        """The config with no more of the language model than is read: its first `depth` layers."""
        if depth is None:
            return held
        text = {**held["text_config"], "num_hidden_layers": depth}
        if text.get("layer_types"):
            text["layer_types"] = text["layer_types"][:depth]
        return {**held, "text_config": text}

    def build(self) -> nn.Module:
        """The model, with random weights and without a language head."""
        return self.model(self.sizes)

    def carrier(self, model: Any, head: nn.Linear | None) -> PreTrainedModel:
        """A model of transformers with these weights (and this language head) in it, to load a checkpoint into."""
        if head is None:
            carrier: PreTrainedModel = model
            return carrier
        with torch.device("meta"):
            whole: Any = self.with_head(self.sizes)
        whole.model, whole.lm_head = model, head
        carrier = whole
        return carrier

    @property
    def depth(self) -> int:
        """Layers of the language model."""
        return int(self.text_sizes.num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.text_sizes.hidden_size)

    @property
    def vocabulary(self) -> int:
        return int(self.text_sizes.vocab_size)

    @property
    def longest(self) -> int:
        """Positions of the language model."""
        return int(self.text_sizes.max_position_embeddings)

    @property
    def head_size(self) -> int:
        text = self.text_sizes
        return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)

    @property
    def key_value_heads(self) -> int:
        return int(self.text_sizes.num_key_value_heads)

    @property
    def tied(self) -> bool:
        """Whether the language head is the embedding."""
        return bool(self.sizes.tie_word_embeddings)

    @property
    def axes(self) -> int:
        return 1

    def rotary(self, base: float | None) -> RotaryEmbedding | None:
        """The rotary embedding, with another base where one is given; raises SpecError for a scaled one."""
        parameters = self.text_sizes.rope_parameters
        if parameters.get("rope_type", "default") != "default":
            raise SpecError(
                f"the language model scales its rotary embedding by `{parameters['rope_type']}`, which is not supported",
                label="scaled rotary embedding",
            )
        return RotaryEmbedding(base or float(parameters["rope_theta"]), self.head_size)

    @abstractmethod
    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens for an image of `size`; raises SpecError for one that the model cannot see."""

    def frame_tokens(self, size: tuple[int, int]) -> int:
        """Tokens that a frame takes in the sequence."""
        rows, columns = self.grid(size)
        return rows * columns

    def frame_places(self, size: tuple[int, int], device: torch.device) -> Places:
        """Where these tokens are."""
        return Places.in_line(self.frame_tokens(size), self.axes, device)

    @abstractmethod
    def see(self, model: Any, images: Tensor) -> Seen:
        """Frames (F, 3, H, W), normalised, as the language model gets them."""

    def text(self, model: Any) -> nn.Module:
        """The language model inside a model."""
        found: nn.Module = model.language_model
        return found

    def embedding(self, model: Any) -> nn.Embedding:
        """The embedding of its tokens."""
        text: Any = self.text(model)
        found: nn.Embedding = text.embed_tokens
        return found

    def enter(self, model: Any, embeddings: Tensor, positions: Tensor) -> Tensor:
        """Embeddings (B, N, D) at positions (A, B, N) as the first layer reads them."""
        return embeddings

    def layers(self, model: Any) -> nn.ModuleList:
        """The layers of the language model."""
        text: Any = self.text(model)
        found: nn.ModuleList = text.layers
        return found

    def leave(self, model: Any, hidden: Tensor) -> Tensor:
        """Hidden states after the last layer, as the language head reads them."""
        text: Any = self.text(model)
        normed: Tensor = text.norm(hidden)
        return normed

    def expected(self, size: tuple[int, int], wanted: tuple[int, int]) -> SpecError:
        """The error for images of `size` where the model sees `wanted` only."""
        side: Any = wanted[0] if wanted[0] == wanted[1] else list(wanted)
        return SpecError(
            f"the model sees images of {wanted[0]} x {wanted[1]}, not {size[0]} x {size[1]}",
            label=f"the images are {size[0]} x {size[1]}",
            help=f"add `{{type: resize, size: {side}}}` to the transforms",
        )

    def divided(self, size: tuple[int, int], unit: int, square: bool) -> tuple[int, int]:
        """Rows and columns of `unit` x `unit` pixels; raises SpecError where they do not fill an image of `size`."""
        if size[0] % unit or size[1] % unit or (square and size[0] != size[1]):
            near = max(unit, unit * round(max(size) / unit))
            shape = "square images" if square else "images"
            raise SpecError(
                f"the model sees {shape} whose sides are multiples of {unit}, not {size[0]} x {size[1]}",
                label=f"the images are {size[0]} x {size[1]}",
                help=f"add `{{type: resize, size: {near}}}` to the transforms",
            )
        return size[0] // unit, size[1] // unit
