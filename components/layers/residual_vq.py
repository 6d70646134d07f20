"""Action chunks as codes: an autoencoder with residual vector quantization."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .basic import mlp

DECAY, EPS = 0.8, 1e-5
M = TypeVar("M", bound=nn.Module)


class ResidualVq(nn.Module):
    """Sequence of codebooks that each quantize the residual of the previous ones (Zeghidour et al., 2021).

    A code is the mean of its nearest vectors, from moving averages of their sum s and their count c:

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
        """Return indices (N, L), quantized vectors (N, D) and squared errors (N, L), float32.

        The gradient passes every codebook unchanged; codes have none.
        """
        residual = vectors.float()
        quantized = torch.zeros_like(residual)
        indices, errors = [], []
        for book in self.codes.float():
            index = nearest_code(residual, book)
            code = book[index]
            indices.append(index)
            errors.append(((residual - code) ** 2).mean(-1))
            quantized = quantized + residual + (code - residual).detach()
            residual = residual - code
        return torch.stack(indices, -1), quantized, torch.stack(errors, -1)

    def look_up(self, indices: Tensor) -> Tensor:
        """Return quantized vectors (N, D), float32, for indices (N, L)."""
        books = torch.arange(len(self.codes), device=indices.device)
        return self.codes.float()[books, indices].sum(1)

    @torch.no_grad()
    def start(self, vectors: Tensor, valid: Tensor, active: Tensor) -> None:
        """Initialize codes from valid vectors (N, D) and their residuals, if the scalar `active` is True."""
        residual = vectors.float()
        order = torch.where(valid, torch.rand(len(valid), device=valid.device), 2.0).argsort()
        count = valid.sum().clamp_min(1)
        chosen = order[torch.arange(self.codes.shape[1], device=valid.device) % count]
        for book, code in enumerate(self.codes):
            first = residual[chosen]
            write_if(self.codes[book], first, active)
            write_if(self.sums[book], first, active)
            write_if(self.counts[book], torch.ones_like(self.counts[book]), active)
            residual = residual - code.float()[nearest_code(residual, code.float())]

    @torch.no_grad()
    def update(self, vectors: Tensor, indices: Tensor, valid: Tensor, active: Tensor) -> None:
        """Move the codes toward the valid vectors (N, D) with indices (N, L), if `active` is True."""
        residual = vectors.float()
        for book, code in enumerate(self.codes.float().clone()):
            index = indices[:, book]
            hits = (index[:, None] == torch.arange(len(code), device=index.device)) & valid[:, None]  # (N, C)
            counts = self.counts[book].float().lerp(hits.sum(0).float(), 1.0 - DECAY)
            sums = self.sums[book].float().lerp((hits[..., None] * residual[:, None]).sum(0), 1.0 - DECAY)
            total = counts.sum()
            smoothed = (counts + EPS) / (total + len(code) * EPS) * total
            write_if(self.codes[book], sums / smoothed[:, None], active)
            write_if(self.sums[book], sums, active)
            write_if(self.counts[book], counts, active)
            residual = residual - code[index]


class ChunkVae(nn.Module):
    """Autoencoder of flat chunks (N, T * A) with a quantized latent (VQ-BeT, Lee et al., 2024)."""

    def __init__(self, size: int, hidden: int, books: int, codes: int, width: int) -> None:
        super().__init__()
        self.encoder = mlp([size, hidden, hidden, width], "relu")
        self.quantizer = ResidualVq(books, codes, width)
        self.decoder = mlp([width, hidden, hidden, size], "relu")

    def forward(self, chunks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return vectors (N, D), indices (N, L), reconstruction (N, S), errors (N, L) of chunks (N, S)."""
        vectors = self.encode(chunks)
        indices, quantized, errors = self.quantizer(vectors)
        return vectors, indices, self._decode(quantized), errors

    def encode(self, chunks: Tensor) -> Tensor:
        """Encode chunks (N, S) to vectors (N, D)."""
        vectors: Tensor = self.encoder(chunks.to(self.quantizer.codes.dtype))
        return vectors

    def codes(self, chunks: Tensor) -> Tensor:
        """Encode chunks (N, S) to indices (N, L)."""
        indices: Tensor = self.quantizer(self.encode(chunks))[0]
        return indices

    def decode(self, indices: Tensor) -> Tensor:
        """Decode indices (N, L) to chunks (N, S), float32."""
        return self._decode(self.quantizer.look_up(indices))

    def _decode(self, vectors: Tensor) -> Tensor:
        chunks: Tensor = self.decoder(vectors.to(self.quantizer.codes.dtype))
        return chunks.float()


class FrozenCopy(nn.Module, Generic[M]):
    """Copy of a module, in buffers, that no optimizer can change once it stops following the original.

    The copy is `module`; it follows tensors of the same names.
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
        """Copy the tensors of `source`, if the scalar `active` is True."""
        tensors = dict(source.named_parameters()) | dict(source.named_buffers())
        for name, buffer in self.module.named_buffers():
            write_if(buffer, tensors[name], active)


def nearest_code(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the index (N,) of the code (C, D) nearest to each vector (N, D)."""
    return ((vectors.detach()[:, None] - codes) ** 2).sum(-1).argmin(-1)


def write_if(buffer: Tensor, values: Tensor, active: Tensor) -> None:
    """Write values into a buffer, in place, if the scalar `active` is True."""
    buffer.copy_(torch.where(active, values.to(buffer.dtype), buffer))


__all__ = ["ChunkVae", "FrozenCopy", "ResidualVq", "nearest_code"]
