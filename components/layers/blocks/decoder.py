"""Layers of decoder-only language models: RMS norms, grouped attention, gated feed-forward."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import few_rows
from ...kernels.dispatch import uses_kernel
from ...kernels.modulated_norm import modulated_norm, per_token
from ..basic import zero

_WIDEST = 128
"""Widest heads for which torch has fast kernels; for a few queries of wider ones, three products are faster."""
DecoderFamily = Literal["gemma", "llama"]


def rms_normalize(tokens: Tensor, eps: float) -> Tensor:
    """Divide tokens (..., D) by their root mean square, in float32 (Zhang & Sennrich, 2019)."""
    tokens = tokens.float()
    return tokens * torch.rsqrt(tokens.pow(2).mean(-1, keepdim=True) + eps)


def gated(branch: Tensor, gate: Tensor | None) -> Tensor:
    """Multiply a branch (B, N, D) by its gate (B, D) or (B, N, D), if any."""
    return branch if gate is None else per_token(gate) * branch


class RmsNorm(nn.Module):
    """RMS norm with a learned scale, stored as the difference from 1 in Gemma and directly in Llama."""

    def __init__(self, width: int, family: DecoderFamily) -> None:
        super().__init__()
        self.offset, self.eps = (1.0, 1e-6) if family == "gemma" else (0.0, 1e-5)
        self.weight = nn.Parameter(torch.full((width,), 1.0 - self.offset))

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor | None = None,
        branch: Tensor | None = None,
        gate: Tensor | None = None,
        modulation: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        """Return tokens plus branch (B, N, D), or its parts (P, B, N, D), the norm of both, and no gate."""
        if branch is not None and branch.ndim > tokens.ndim:
            own = self.weight.expand(len(tokens), -1)
            options = {"scale": own} if self.offset else {"weight": self.weight}
            return *few_rows.summed_norm(tokens, branch, **options, rms=True, eps=self.eps), None
        tokens = tokens if branch is None else tokens + gated(branch, gate)
        normal = rms_normalize(tokens, self.eps) * (self.offset + self.weight.float())
        return tokens, normal.to(tokens.dtype), None


class AdaRmsNorm(nn.Module):
    """RMS norm with scale and shift from a condition, which also yields the gate of the next branch (pi0.5).

    y = x / rms(x) * (1 + scale) + shift, with [scale, shift, gate] = linear(condition), which starts at zero.
    """

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.modulation = zero(nn.Linear(condition_width, 3 * width))

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor | None,
        branch: Tensor | None = None,
        gate: Tensor | None = None,
        modulation: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens + gate * branch (B, N, D), its norm, and the gate of the next branch, shaped like the condition.

        Args:
            tokens: (B, N, D).
            condition: (B, C), or (B, N, C) for one of each token; None with a modulation.
            branch: (B, N, D), or its parts (P, B, N, D), to add to the tokens, if any.
            gate: From the preceding norm.
            modulation: (B, 3 * D), if it was made of the condition before.
        """
        modulation = self.modulation(condition) if modulation is None else modulation
        scale, shift, following = modulation.chunk(3, dim=-1)
        if branch is not None and branch.ndim > tokens.ndim:
            if modulation.ndim == 2:
                given = {"gate": gate, "shift": shift, "scale": scale}
                return *few_rows.summed_norm(tokens, branch, **given, rms=True, eps=1e-6), following
            branch = branch.sum(0).to(tokens.dtype)
        if modulation.ndim == 2 and uses_kernel(tokens):
            tokens, normal = modulated_norm(tokens, branch, gate, shift, scale, norm="rms", eps=1e-6)
            return tokens, normal, following
        tokens = tokens if branch is None else tokens + gated(branch, gate)
        normal = rms_normalize(tokens, 1e-6) * (1.0 + per_token(scale).float()) + per_token(shift).float()
        return tokens, normal.to(tokens.dtype), following


class GatedMlp(nn.Module):
    """down(act(gate(x)) * up(x)): GeGLU in Gemma, SwiGLU in Llama (Shazeer, 2020)."""

    def __init__(self, width: int, hidden: int, family: DecoderFamily) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.activation: nn.Module = nn.GELU(approximate="tanh") if family == "gemma" else nn.SiLU()
        self._name: few_rows.Activation = "gelu_tanh" if family == "gemma" else "silu"

        self.both: Tensor | None = None

    def pack(self) -> None:
        """Lay the weights of `gate` and `up` out as one, for inference."""
        self.both = packed(self.gate, self.up)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D), or to its parts (P, B, N, D), which a norm adds up."""
        if self.both is None:
            return branch_of(self.down, self.activation(self.gate(tokens)) * self.up(tokens))
        if few_rows.serves(tokens):
            return branch_of(self.down, few_rows.gated_linear(tokens, self.both, self._name))
        gate, up = F.linear(tokens, self.both).chunk(2, dim=-1)
        return branch_of(self.down, self.activation(gate) * up)


def branch_of(layer: nn.Linear, values: Tensor) -> Tensor:
    """Return the output (B, N, D) of a layer without bias, or its parts (P, B, N, D) where that is faster."""
    if few_rows.serves(values):
        return few_rows.linear_parts(values, layer.weight)
    out: Tensor = layer(values)
    return out


def packed(*layers: nn.Linear) -> Tensor:
    """Return the weights (sum of out, in) of layers without bias that read the same, which become views of it."""
    together = torch.cat([layer.weight.detach() for layer in layers])
    parts = together.split([layer.out_features for layer in layers])
    for layer, part in zip(layers, parts, strict=True):
        layer.weight.data = part
    return together


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Apply attention of heads that share keys and values in G groups (GQA, Ainslie et al., 2023).

    Maps query (B, h, N, E), key and value (B, G, M, E) to (B, N, h * E). The heads of a group become queries
    of one head, so keys are not copied and kernels need no support for groups: mask broadcasts to
    (B, 1, h / G * N, M).
    """
    groups, count = key.shape[1], query.shape[2]
    folded = query.unflatten(1, (groups, -1)).flatten(2, 3)  # (B, G, h / G * N, E)
    if query.is_cuda and not torch.is_grad_enabled() and query.shape[-1] > _WIDEST:
        scores = folded @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        mixed = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
    else:
        mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    heads: Tensor = mixed.unflatten(2, (-1, count)).flatten(1, 2)  # (B, h, N, E)
    return heads.transpose(1, 2).flatten(2)
