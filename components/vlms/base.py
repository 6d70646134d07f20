"""Interface of a family of vision-language models to the `vlm` backbone."""

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
from .sequence import AttentionPattern, Places


@dataclass(frozen=True)
class EncodedFrames:
    """Embeddings (F, N, D) of F frames, as they enter the sequence.

    `deep` holds features to add to the same tokens after each of the first layers of the language model
    (DeepStack).
    """

    embeddings: Tensor
    deep: Sequence[Tensor] = ()


class VlmFamily(ABC):
    """Family of vision-language models, for one config of transformers; it runs models but has no weights."""

    model: ClassVar[type[PreTrainedModel]]
    """Class without a language head."""
    with_head: ClassVar[type[PreTrainedModel]]
    """Class with a language head, whose `model` is of the class without."""
    attention: AttentionPattern
    """Attention among the tokens of a prompt in known policies of this family."""
    has_key_values: ClassVar[bool] = True
    """True if the language model has keys and values that later tokens can attend to."""

    text_models: ClassVar[tuple[str, ...]] = ("gemma", "llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen3", "qwen3_vl_text")  # fmt: skip
    """Language models that can run layer by layer."""

    def __init__(self, sizes: Any) -> None:
        self.sizes = sizes
        self.text_sizes = sizes.text_config

    @classmethod
    def parse(cls, held: dict[str, Any]) -> Any:
        """Build the config of transformers from its JSON."""
        return as_config(held)

    @classmethod
    def truncate(cls, held: dict[str, Any], depth: int | None) -> dict[str, Any]:
        """Reduce the config to the first `depth` layers of the language model."""
        if depth is None:
            return held
        text = {**held["text_config"], "num_hidden_layers": depth}
        if text.get("layer_types"):
            text["layer_types"] = text["layer_types"][:depth]
        return {**held, "text_config": text}

    def build(self) -> nn.Module:
        """Build the model, with random weights and without a language head."""
        return self.model(self.sizes)

    def loadable(self, model: Any, head: nn.Linear | None) -> PreTrainedModel:
        """Wrap the weights (and a language head) in a model of transformers, to load a checkpoint into."""
        if head is None:
            loadable: PreTrainedModel = model
            return loadable
        with torch.device("meta"):
            whole: Any = self.with_head(self.sizes)
        whole.model, whole.lm_head = model, head
        loadable = whole
        return loadable

    @property
    def depth(self) -> int:
        """Number of layers of the language model."""
        return int(self.text_sizes.num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.text_sizes.hidden_size)

    @property
    def vocabulary(self) -> int:
        return int(self.text_sizes.vocab_size)

    @property
    def max_positions(self) -> int:
        """Number of positions of the language model."""
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
        """True if the language head shares the weights of the embedding."""
        return bool(self.sizes.tie_word_embeddings)

    @property
    def axes(self) -> int:
        return 1

    def rotary(self, base: float | None) -> RotaryEmbedding | None:
        """Return the rotary embedding, with another base if given; raise SpecError for a scaled one."""
        parameters = self.text_sizes.rope_parameters
        if parameters.get("rope_type", "default") != "default":
            raise SpecError(
                f"the language model scales its rotary embedding by `{parameters['rope_type']}`, which is not supported",
                label="scaled rotary embedding",
            )
        return RotaryEmbedding(base or float(parameters["rope_theta"]), self.head_size)

    @abstractmethod
    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of tokens of an image of `size`; raise SpecError for other sizes."""

    def frame_tokens(self, size: tuple[int, int]) -> int:
        """Return the number of tokens of a frame in the sequence."""
        rows, columns = self.grid(size)
        return rows * columns

    def frame_places(self, size: tuple[int, int], device: torch.device) -> Places:
        """Return the places of these tokens."""
        return Places.sequential(self.frame_tokens(size), self.axes, device)

    @abstractmethod
    def encode_frames(self, model: Any, images: Tensor) -> EncodedFrames:
        """Encode normalized frames (F, 3, H, W) for the language model."""

    def text(self, model: Any) -> nn.Module:
        """Return the language model inside a model."""
        found: nn.Module = model.language_model
        return found

    def embedding(self, model: Any) -> nn.Embedding:
        """Return the token embedding."""
        text: Any = self.text(model)
        found: nn.Embedding = text.embed_tokens
        return found

    def prepare(self, model: Any, embeddings: Tensor, positions: Tensor) -> Tensor:
        """Prepare embeddings (B, N, D) at positions (A, B, N) for the first layer."""
        return embeddings

    def layers(self, model: Any) -> nn.ModuleList:
        """Return the layers of the language model."""
        text: Any = self.text(model)
        found: nn.ModuleList = text.layers
        return found

    def finish(self, model: Any, hidden: Tensor) -> Tensor:
        """Return hidden states of the last layer as the language head reads them."""
        text: Any = self.text(model)
        normed: Tensor = text.norm(hidden)
        return normed

    def size_error(self, size: tuple[int, int], wanted: tuple[int, int]) -> SpecError:
        """Return the error for images of `size` in a model that accepts only `wanted`."""
        side: Any = wanted[0] if wanted[0] == wanted[1] else list(wanted)
        return SpecError(
            f"the model reads images of {wanted[0]} x {wanted[1]}, not {size[0]} x {size[1]}",
            label=f"the images are {size[0]} x {size[1]}",
            help=f"add `{{type: resize, size: {side}}}` to the transforms",
        )

    def divide(self, size: tuple[int, int], unit: int, square: bool) -> tuple[int, int]:
        """Return rows and columns of `unit` x `unit` pixels; raise SpecError if they do not fill `size`."""
        if size[0] % unit or size[1] % unit or (square and size[0] != size[1]):
            near = max(unit, unit * round(max(size) / unit))
            shape = "square images" if square else "images"
            raise SpecError(
                f"the model reads {shape} whose sides are multiples of {unit}, not {size[0]} x {size[1]}",
                label=f"the images are {size[0]} x {size[1]}",
                help=f"add `{{type: resize, size: {near}}}` to the transforms",
            )
        return size[0] // unit, size[1] // unit
