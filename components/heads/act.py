from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import Count, Depth, HeadConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import ActionHead, Facts, Feature
from ..features import action_spec, chunk_size, features_of, masked_mean, padded_steps, select
from ..layers.basic import joined_mask
from ..layers.blocks.detr import (
    DetrActivation,
    DetrDecoder,
    DetrEncoder,
    DetrSizes,
    NormOrder,
    map_positions,
    step_positions,
    xavier,
)
from ..shares import WHOLE, Shares

Weight = Annotated[float, Field(ge=0.0)]


class Act(ActionHead):
    """Action Chunking with Transformers (ACT, Zhao et al., 2023): learned queries of a conditional VAE.

    In training an encoder maps the actions a to the distribution of a latent, N(mu, diag(exp(v))):

        z = mu + exp(v / 2) eps        loss = mean |a - decoded(z)| + kl_weight * KL
        KL = mean over samples of sum -(1 + v - mu^2 - exp(v)) / 2

    In evaluation z is 0 and the loss has no KL term. The transformer of DETR decodes; it encodes [z, pooled
    features, tokens], each projected to `width`. Latent and pooled features have learned positions, tokens of
    feature maps the two-dimensional sinusoids of DETR, frame by frame, and other tokens learned ones. Tokens
    of a varying number, such as text, have none, because their backbone has already encoded their order.
    """

    accepts = (Kind.TOKENS, Kind.POOLED)
    averages_values = True

    class Config(HeadConfig):
        type: Literal["act"]
        width: Count = 512
        """Size of a token."""
        heads: Count = 8
        """Number of attention heads, which share `width`."""
        feedforward: Count = 3200
        """Hidden size of the feed-forward layers."""
        encoder_layers: Depth = 4
        """Number of layers that encode the features."""
        decoder_layers: Depth = 1
        """Number of layers that decode the actions; ACT has 7, but uses only the first."""
        norm: NormOrder = "post"
        """Position of the norms: after the residual sum, or before the branches."""
        activation: DetrActivation = "relu"
        """Activation of the feed-forward layers."""
        dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
        """Dropout rate of attention weights and branches."""
        latent: Count = 32
        """Size of the latent."""
        variational: bool = True
        """Train the latent by an encoder of the actions; otherwise it is always 0."""
        kl_weight: Weight = 10.0
        """Weight of the KL divergence between the latent's distribution and N(0, 1)."""
        posterior_layers: Depth = 4
        """Number of layers of the encoder of the actions."""
        posterior_reads: list[str] | None = None
        """Pooled features that the encoder of the actions also sees, such as `proprio`; by default all. May be empty."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, action_dim = chunk_size(inputs)
        features, width = features_of(inputs), config.width
        pooled = {key: spec for key, spec in features.items() if spec.kind is Kind.POOLED}
        self._features = {**pooled, **features}
        self._names = {key: key.replace(".", "_") for key in self._features}  # no dots in module names
        sizes = DetrSizes(
            width, config.heads, config.feedforward, config.dropout, config.activation, config.norm
        )
        self.project = nn.ModuleDict(
            {self._names[key]: nn.Linear(spec.width, width) for key, spec in self._features.items()}
        )
        self.latent = nn.Linear(config.latent, width)
        self.positions = nn.Parameter(torch.randn(1 + len(pooled), width))
        self.token_positions = nn.ParameterDict(
            {
                self._names[key]: nn.Parameter(torch.randn(spec.dims[1], width))
                for key, spec in features.items()
                if spec.kind is Kind.TOKENS and spec.grid is None and isinstance(spec.dims[1], int)
            }
        )
        self.encoder, self.decoder = (
            DetrEncoder(sizes, config.encoder_layers),
            DetrDecoder(sizes, config.decoder_layers),
        )
        xavier(self.encoder)
        xavier(self.decoder)
        self.queries = nn.Parameter(torch.randn(self._horizon, width))
        self.out = nn.Linear(width, action_dim)
        self.posterior = Posterior(sizes, config, inputs) if config.variational else None

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A); raise SpecError for a bad width or an idle option."""
        features = features_of(inputs)
        if config.width % config.heads or config.width % 4:
            raise SpecError(
                f"a width of {config.width} cannot be shared by {config.heads} heads and 4 parts of a position",
                field="width",
                label=f"not a multiple of 4 and {config.heads}",
                help="choose a `width` that is a multiple of 4 and of `heads`",
            )
        posterior_features(config, features)
        for option in ("kl_weight", "posterior_layers", "posterior_reads"):
            if not config.variational and getattr(config, option) != cls.Config.model_fields[option].default:
                raise SpecError(
                    f"`{option}` has no effect without a variational latent",
                    field=option,
                    label="has no effect",
                    help="set `variational: true`, or leave it out",
                )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        layers = {"encoder_layers": 1, "posterior_layers": 1}
        sizes: dict[str, Any] = {"width": 16, "heads": 2, "feedforward": 32, "latent": 4, **layers}
        return cls.Config(type="act", dropout=0.0, **sizes)

    def counts(self, actions: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
        """Return the numbers of `values` that are not padding, and of `samples` that have any."""
        return {**super().counts(actions, is_pad), "samples": (~is_pad).flatten(1).any(-1).sum()}

    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """Return the mean absolute error without padding, `l1`, and in training the divergence, `kl`."""
        actions = actions.float().masked_fill(is_pad, 0.0)
        if self.posterior is None or not self.training:
            errors = (self._decode(features) - actions).abs()
            return {"loss": masked_mean(errors, is_pad, shares.get("values"))}
        mean, log_variance = self.posterior(features, actions, padded_steps(is_pad))
        latent = mean + (log_variance / 2.0).exp() * torch.randn_like(mean)
        error = masked_mean((self._decode(features, latent) - actions).abs(), is_pad, shares.get("values"))
        divergence = -0.5 * (1.0 + log_variance - mean**2 - log_variance.exp()).sum(-1, keepdim=True)
        empty = is_pad.flatten(1).all(-1, keepdim=True)
        divergence = masked_mean(divergence, empty, shares.get("samples"))
        return {
            "loss": error + self.config.kl_weight * divergence,
            "l1": error.detach(),
            "kl": divergence.detach(),
        }

    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Return the chunk (B, H, A) for a latent of 0, independent of the generator."""
        return self._decode(features)

    def encode(
        self, features: Mapping[str, Feature], latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return encoded tokens (B, N, D), positions (1, N, D) and mask (B, N) for a latent (B, L) or 0."""
        dtype, device = self.queries.dtype, self.queries.device
        if latent is None:
            size = features[next(iter(self._features))].values.shape[0]
            latent = torch.zeros(size, self.config.latent, device=device)
        parts: list[tuple[Tensor, Tensor | None]] = [(self.latent(latent.to(dtype))[:, None], None)]
        positions: list[Tensor] = [self.positions]
        for key, spec in self._features.items():
            feature, name = features[key], self._names[key]
            tokens = self.project[name](feature.values.to(dtype))
            parts.append((tokens if tokens.ndim == 3 else tokens[:, None], feature.mask))
            if spec.kind is Kind.TOKENS:
                positions.append(self._token_positions(name, spec, tokens))
        tokens, mask = torch.cat([tokens for tokens, _ in parts], dim=1), joined_mask(*parts)
        placed = torch.cat(positions)[None]
        return self.encoder(tokens, placed, mask), placed, mask

    def _token_positions(self, name: str, spec: Spec, tokens: Tensor) -> Tensor:
        """Return positions (N, D) of the tokens of a feature."""
        if spec.grid is not None:
            frames, height, width = spec.grid
            places = map_positions(height, width, self.config.width, tokens.device).to(tokens.dtype)
            return places.repeat(frames, 1)
        learned: Tensor | None = self.token_positions.get(name)
        return tokens.new_zeros(tokens.shape[1:]) if learned is None else learned

    def _decode(self, features: Mapping[str, Feature], latent: Tensor | None = None) -> Tensor:
        """Return actions (B, H, A), float32."""
        tokens, positions, mask = self.encode(features, latent)
        actions: Tensor = self.out(self.decoder(self.queries[None], tokens, positions, mask))
        return actions.float()


class Posterior(nn.Module):
    """Distribution of the latent for a chunk: a transformer over [class token, pooled features, actions].

    Padded steps are hidden from it. Positions are fixed: sines and cosines of the place in the sequence.
    """

    steps: Tensor

    def __init__(self, sizes: DetrSizes, config: Act.Config, inputs: Specs) -> None:
        super().__init__()
        horizon, action_dim = chunk_size(inputs)
        read = posterior_features(config, features_of(inputs))
        self._keys = {key: key.replace(".", "_") for key in read}
        width = sizes.width
        self.token = nn.Parameter(torch.randn(1, width))
        self.project = nn.ModuleDict({self._keys[key]: nn.Linear(read[key].width, width) for key in read})
        self.action = nn.Linear(action_dim, width)
        self.encoder = DetrEncoder(sizes, config.posterior_layers)
        self.out = nn.Linear(width, 2 * config.latent)
        with torch.device("cpu"):  # in float64, which some devices lack
            table = step_positions(1 + len(read) + horizon, width)
        self.register_buffer("steps", table.to(self.token.device))

    def forward(
        self, features: Mapping[str, Feature], actions: Tensor, is_pad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, L), float32, for actions (B, H, A) and is_pad (B, H)."""
        dtype = self.token.dtype
        states = [self.project[name](features[key].values.to(dtype)) for key, name in self._keys.items()]
        first = torch.stack([self.token.expand(actions.shape[0], -1), *states], dim=1)  # (B, 1 + states, D)
        tokens = torch.cat([first, self.action(actions.to(dtype))], dim=1)
        valid = F.pad(~is_pad, (first.shape[1], 0), value=True)
        encoded = self.encoder(tokens, self.steps.to(dtype)[None], valid)
        mean, log_variance = self.out(encoded[:, 0]).float().chunk(2, dim=-1)
        return mean, log_variance


def posterior_features(config: Act.Config, features: Specs) -> dict[str, Spec]:
    """Return the pooled features that the encoder of the actions sees; raise SpecError for an unknown one."""
    if config.posterior_reads is None:
        return {key: spec for key, spec in features.items() if spec.kind is Kind.POOLED}
    entries: Sequence[str] = config.posterior_reads
    return select(entries, features, (Kind.POOLED,), "posterior_reads")
