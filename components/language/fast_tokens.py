"""Action chunks as a few discrete tokens: FAST (Pertsch et al., 2025).

Each dimension of a chunk is transformed to frequencies (DCT-II), which are rounded and written as one string
of integers, low frequencies first, for a byte-pair encoding. Smooth motion has few frequencies, so a second
of it takes some tens of tokens rather than hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from ...schemas.errors import SpecError

_FIRST = 0x4E00  # letters for integers start here, in a block of 20,000 without spaces, marks or cases


class FastTokens:
    """Tokenizer of chunks (H, A), learned by `fit` and stored as JSON."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._scale, self._low, self._high = facts["scale"], facts["low"], facts["high"]
        self._shape = (facts["horizon"], facts["width"])
        self._tokenizer = Tokenizer.from_str(facts["tokenizer"])

    @staticmethod
    def fit(chunks: Tensor, vocabulary: int, scale: float) -> dict[str, Any]:
        """Learn a vocabulary of limited size for chunks (N, H, A), and return its facts.

        Raises:
            SpecError: The vocabulary cannot hold even the single frequencies.
        """
        numbers = (dct(chunks) * scale).round().long()
        low, high = int(numbers.min()), int(numbers.max())
        if (least := high - low + 1) > vocabulary:
            raise SpecError(
                f"frequencies of the actions take {least} different values, more than a vocabulary of {vocabulary}",
                field="vocabulary",
                source="action",
                label=f"at least {least}",
                help="normalize the actions, `{type: normalize, mode: quantiles}`, or lower `scale`",
            )
        tokenizer = Tokenizer(BPE())
        trainer = BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=[chr(_FIRST + number) for number in range(least)],
            show_progress=False,
            min_frequency=2,
        )
        tokenizer.train_from_iterator(_texts(numbers, low, high), trainer)
        horizon, width = chunks.shape[1:]
        facts = {"scale": scale, "low": low, "high": high, "horizon": horizon, "width": width}
        return {**facts, "tokenizer": tokenizer.to_str()}

    @property
    def size(self) -> int:
        """Number of tokens."""
        size: int = self._tokenizer.get_vocab_size()
        return size

    def encode(self, chunks: Tensor) -> list[list[int]]:
        """Encode each chunk (B, H, A) to tokens; frequencies beyond those in training are clamped."""
        numbers = (dct(chunks) * self._scale).round().long().cpu()
        return [
            encoding.ids for encoding in self._tokenizer.encode_batch(_texts(numbers, self._low, self._high))
        ]

    def decode(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Decode tokens to chunks (B, H, A), float32; surplus frequencies are cut, missing ones are zero."""
        horizon, width = self._shape
        numbers = torch.zeros(len(tokens), horizon * width)
        for row, ids in enumerate(tokens):
            text = "".join(self._tokenizer.id_to_token(token) or "" for token in ids)[: horizon * width]
            found = torch.tensor([ord(letter) - _FIRST + self._low for letter in text], dtype=torch.float32)
            numbers[row, : len(found)] = found
        return inverse_dct(numbers.reshape(-1, horizon, width) / self._scale)


def dct(chunks: Tensor) -> Tensor:
    """Apply the orthonormal DCT-II over the steps of chunks (B, H, A)."""
    basis = _basis(chunks.shape[1], chunks.device)
    return (basis[None, :, :, None] * chunks.float()[:, None]).sum(
        2
    )  # not a matrix product, which autocast would round


def inverse_dct(frequencies: Tensor) -> Tensor:
    """Invert `dct` for frequencies (B, H, A)."""
    basis = _basis(frequencies.shape[1], frequencies.device)
    return (basis[None, :, :, None] * frequencies.float()[:, :, None]).sum(1)


def _basis(steps: int, device: torch.device) -> Tensor:
    """Return (K, H): row k is sqrt(2 / H) cos(pi k (2 h + 1) / (2 H)), the first divided by sqrt(2)."""
    count = torch.arange(steps, dtype=torch.float64, device=device)
    basis = torch.cos(math.pi / (2 * steps) * count[:, None] * (2 * count + 1)) * math.sqrt(2 / steps)
    basis[0] /= math.sqrt(2)
    return basis.float()


def _texts(numbers: Tensor, low: int, high: int) -> list[str]:
    """Encode integers (B, H, A) as one string of letters each, low frequencies first."""
    rows = numbers.clamp(low, high).flatten(1).tolist()
    return ["".join(chr(_FIRST + number - low) for number in row) for row in rows]
