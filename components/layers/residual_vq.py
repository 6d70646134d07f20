"""Action chunks as a few codes: an auto-encoder with residual vector quantisation."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .basic import mlp

DECAY, EPS = 0.8, 1e-5
M = TypeVar("M", bound=nn.Module)


class ResidualVq(nn.Module):
    """Codebooks that follow each other: each quantises what those before it left (Zeghidour et al., 2021).

    A code is the mean of the vectors it was nearest to, as moving averages of their sum s and their count c:

        s <- 0.8 s + 0.2 sum x      c <- 0.8 c + 0.2 n      code = s / smoothed c

    Codebooks are buffers, computed in float32. They start as vectors of the first batch.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, books: int, codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(books, codes, width) * 0.02)
        self.register_buffer("counts", torch.ones(books, codes))
        self.register_buffer("sums", self.codes.clone())

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (N, D) -> their codes' indices (N, L), quantised vectors (N, D), squared errors (N, L), float32.

        The gradient passes every codebook as if it did nothing, and codes have none.
        """
        residual = vectors.float()
        quantised = torch.zeros_like(residual)
        indices, errors = [], []
        for book in self.codes.float():
            index = nearest(residual, book)
            code = book[index]
            indices.append(index)
            errors.append(((residual - code) ** 2).mean(-1))
            quantised = quantised + residual + (code - residual).detach()
            residual = residual - code
        return torch.stack(indices, -1), quantised, torch.stack(errors, -1)

    def look_up(self, indices: Tensor) -> Tensor:
        """Quantised vectors (N, D), float32, for indices (N, L)."""
        books = torch.arange(len(self.codes), device=indices.device)
        return self.codes.float()[books, indices].sum(1)

    @torch.no_grad()
    def start(self, vectors: Tensor, valid: Tensor, active: Tensor) -> None:
        """Where `active`, a scalar, make valid ones of the vectors (N, D) the codes, and what they leave the next ones."""
        residual = vectors.float()
        order = torch.where(valid, torch.rand(len(valid), device=valid.device), 2.0).argsort()
        count = valid.sum().clamp_min(1)
        chosen = order[torch.arange(self.codes.shape[1], device=valid.device) % count]
        for book, code in enumerate(self.codes):
            first = residual[chosen]
            keep(self.codes[book], first, active)
            keep(self.sums[book], first, active)
            keep(self.counts[book], torch.ones_like(self.counts[book]), active)
            residual = residual - code.float()[nearest(residual, code.float())]

    @torch.no_grad()
    def update(self, vectors: Tensor, indices: Tensor, valid: Tensor, active: Tensor) -> None:
        """Where `active`, move the codes towards the valid vectors (N, D) that had the indices (N, L)."""
        residual = vectors.float()
        for book, code in enumerate(self.codes.float().clone()):
            index = indices[:, book]
            hits = (index[:, None] == torch.arange(len(code), device=index.device)) & valid[:, None]  # (N, C)
            counts = self.counts[book].float().lerp(hits.sum(0).float(), 1.0 - DECAY)
            sums = self.sums[book].float().lerp((hits[..., None] * residual[:, None]).sum(0), 1.0 - DECAY)
            total = counts.sum()
            smoothed = (counts + EPS) / (total + len(code) * EPS) * total
            keep(self.codes[book], sums / smoothed[:, None], active)
            keep(self.sums[book], sums, active)
            keep(self.counts[book], counts, active)
            residual = residual - code[index]


class ChunkVae(nn.Module):
    """Encodes flat chunks (N, T * A) as codes and decodes them (VQ-BeT, Lee et al., 2024)."""

    def __init__(self, size: int, hidden: int, books: int, codes: int, width: int) -> None:
        super().__init__()
        self.encoder = mlp([size, hidden, hidden, width], "relu")
        self.quantizer = ResidualVq(books, codes, width)
        self.decoder = mlp([width, hidden, hidden, size], "relu")

    def forward(self, chunks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Chunks (N, S) -> vectors (N, D), indices (N, L), reconstruction (N, S), squared errors (N, L)."""
        vectors = self.encode(chunks)
        indices, quantised, errors = self.quantizer(vectors)
        return vectors, indices, self._decoded(quantised), errors

    def encode(self, chunks: Tensor) -> Tensor:
        """Chunks (N, S) -> vectors (N, D)."""
        vectors: Tensor = self.encoder(chunks.to(self.quantizer.codes.dtype))
        return vectors

    def codes(self, chunks: Tensor) -> Tensor:
        """Chunks (N, S) -> indices (N, L)."""
        indices: Tensor = self.quantizer(self.encode(chunks))[0]
        return indices

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (N, L) -> chunks (N, S), float32."""
        return self._decoded(self.quantizer.look_up(indices))

    def _decoded(self, vectors: Tensor) -> Tensor:
        chunks: Tensor = self.decoder(vectors.to(self.quantizer.codes.dtype))
        return chunks.float()


class Settled(nn.Module, Generic[M]):
    """A copy of a module, in buffers, that stops following it: what is trained no longer, whatever an optimiser does.

    The copy is `module`, and follows the tensors of the same names.
    """

    module: M

    def __init__(self, module: M) -> None:
        super().__init__()
        for owner in module.modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                delattr(owner, name)
                owner.register_buffer(name, parameter.detach())
        self.module = module

    @torch.no_grad()
    def follow(self, source: M, active: Tensor) -> None:
        """Where `active`, a scalar, become the same as `source`."""
        tensors = dict(source.named_parameters()) | dict(source.named_buffers())
        for name, buffer in self.module.named_buffers():
            keep(buffer, tensors[name], active)


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index (N,) of the code (C, D) that is nearest to each vector (N, D)."""
    return ((vectors.detach()[:, None] - codes) ** 2).sum(-1).argmin(-1)


def keep(buffer: Tensor, values: Tensor, active: Tensor) -> None:
    """Write values into a buffer, in place, where `active`, a scalar, is True."""
    buffer.copy_(torch.where(active, values.to(buffer.dtype), buffer))


__all__ = ["ChunkVae", "ResidualVq", "Settled", "nearest"]
