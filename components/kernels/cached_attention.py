"""Attention of few queries to cached keys and values, and to keys and values of their own, without gradients.

    out = softmax(scale * rotate(query) [keys, rotate(own keys)]^T) [values, own values]

A few tokens, such as an action chunk, attend in every step of a sampler to a long prefix whose keys and values
never change. Heads that share keys and values (GQA, Ainslie et al., 2023) are rows of one product, the keys are
divided among programs (Flash-Decoding, Dao et al., 2023), and neither prefix nor own keys are copied.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dispatch import operator, uses_kernel

WIDTH = 256
"""The widest heads that the program supports."""
OptionalTensor = Tensor | None


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own: tuple[Tensor, Tensor] | None = None,
    places: tuple[Tensor, Tensor] | None = None,
    mask: OptionalTensor = None,
    scale: float | None = None,
) -> Tensor:
    """Attend from each query to the keys of its sample and group.

    Args:
        query: (B, S, h, E) before rotation, with E even and at most `WIDTH`.
        key: Cached keys (B, G, N, E); h / G heads in turn share a group.
        value: Their values, alike.
        own: Keys, before rotation, and values of the S tokens, each (B, S, G, E).
        places: Cosines and sines (B, 1, S, E / 2) of the tokens' rotary positions, float32; None rotates nothing.
        mask: bool (B or 1, 1, S, N + S), True for visible keys, or (B or 1, 1, h / G * S, N + S) for the heads of a
            group one after another. A query that sees nothing gathers zeros.
        scale: Factor of the scores, 1 / sqrt(E) by default.

    Returns:
        (B, S, h * E).

    Raises:
        ValueError: Unfit shapes or dtypes.
    """
    keys, values = (None, None) if own is None else own
    cosine, sine = (None, None) if places is None else places
    if not _fit(query, key, value, keys, values, cosine, sine, mask):
        given = query, key, value, keys, values, cosine, sine, mask
        kinds = [None if x is None else f"{x.dtype} {tuple(x.shape)}" for x in given]
        raise ValueError(f"query, keys, values, table and mask do not fit: {', '.join(map(str, kinds))}")
    out: Tensor = _forward(
        query,
        key,
        value,
        keys,
        values,
        cosine,
        sine,
        mask,
        query.shape[-1] ** -0.5 if scale is None else scale,
    )
    return out


def _fit(
    query: Tensor, key: Tensor, value: Tensor, keys: OptionalTensor, values: OptionalTensor,
    cosine: OptionalTensor, sine: OptionalTensor, mask: OptionalTensor,
) -> bool:  # fmt: skip
    batch, tokens, heads, width = query.shape
    if key.ndim != 4 or width % 2 or width > WIDTH or heads % key.shape[1]:
        return False
    groups, count = key.shape[1:3]
    own, table = (batch, tokens, groups, width), (batch, 1, tokens, width // 2)
    seen = count + (0 if keys is None else tokens)
    rows = tokens, heads // groups * tokens
    return (
        all(x.shape == (batch, groups, count, width) and x.dtype == query.dtype for x in (key, value))
        and all(x is None or (x.shape == own and x.dtype == query.dtype) for x in (keys, values))
        and all(x is None or (x.shape == table and x.dtype == torch.float32) for x in (cosine, sine))
        and (
            mask is None
            or (
                mask.shape[0] in (1, batch)
                and mask.shape[1] == 1
                and mask.shape[2] in rows
                and mask.shape[3] == seen
            )
        )
    )


def serves(query: Tensor) -> bool:
    """Return whether the kernel is the faster choice: no gradients, and half precision on a GPU."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    return half and not torch.is_grad_enabled() and uses_kernel(query)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own: tuple[Tensor, Tensor] | None = None,
    places: tuple[Tensor, Tensor] | None = None,
    mask: OptionalTensor = None,
    scale: float | None = None,
) -> Tensor:
    """Compute `cached_attention` in plain torch."""
    keys, values = (None, None) if own is None else own
    cosine, sine = (None, None) if places is None else places
    return _forward_reference(
        query,
        key,
        value,
        keys,
        values,
        cosine,
        sine,
        mask,
        query.shape[-1] ** -0.5 if scale is None else scale,
    )


def _forward_reference(
    query: Tensor, key: Tensor, value: Tensor, keys: OptionalTensor, values: OptionalTensor,
    cosine: OptionalTensor, sine: OptionalTensor, mask: OptionalTensor, scale: float,
) -> Tensor:  # fmt: skip
    groups, tokens = key.shape[1], query.shape[1]
    if mask is not None and mask.shape[2] == tokens:
        mask = mask.repeat(1, 1, query.shape[2] // groups, 1)
    turned, own = query.transpose(1, 2), None if keys is None else keys.transpose(1, 2)  # (B, heads, S, E)
    if cosine is not None and sine is not None:
        turned = _rotate(turned, cosine, sine)
        own = None if own is None else _rotate(own, cosine, sine)
    if own is not None and values is not None:
        key = torch.cat([key, own], dim=2)
        value = torch.cat([value, values.transpose(1, 2)], dim=2)
    precise = torch.promote_types(query.dtype, torch.float32)
    rows = turned.unflatten(1, (groups, -1)).flatten(2, 3).to(precise)  # (B, G, h / G * S, E)
    scores = scale * rows @ key.to(precise).transpose(-1, -2)
    scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    weights = weights if mask is None else weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    mixed = (weights @ value.to(precise)).unflatten(2, (-1, tokens)).flatten(1, 2)  # (B, h, S, E)
    out: Tensor = mixed.transpose(1, 2).flatten(2).to(query.dtype)
    return out.contiguous()


def _rotate(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = values.to(torch.promote_types(values.dtype, torch.float32)).chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(values.dtype)


_forward = operator(
    "cached_attention",
    "forward",
    "(Tensor query, Tensor key, Tensor value, Tensor? keys, Tensor? values, Tensor? cosine, Tensor? sine, "
    "Tensor? mask, float scale) -> Tensor",
    _forward_reference,
)


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, keys: OptionalTensor, values: OptionalTensor,
    cosine: OptionalTensor, sine: OptionalTensor, mask: OptionalTensor, scale: float,
) -> Tensor:  # fmt: skip
    return query.new_empty(*query.shape[:2], query.shape[2] * query.shape[3])


__all__ = ["cached_attention", "reference", "serves"]
