from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import MOST_LAYERS, Count, HeadConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import ActionHead, Facts, Feature
from ..features import action_spec, chunk_size, masked_mean, padded_steps, require_bound
from ..layers.basic import Activation, mlp
from ..layers.flattening import Tokens, flat_sizes, flatten_features
from ..randomness.generator import categorical, normal
from ..shares import WHOLE, Shares

Positive = Annotated[float, Field(gt=0.0)]


class Gmm(ActionHead):
    """Gaussian mixture over actions (BC-GMM of robomimic, Mandlekar et al., 2021), for several modes.

        p(a) = sum over modes m of w_m prod over dims d of N(a_d; mu_md, sigma_md)
        sigma = softplus(s) + min_std        loss = -log p(a)

    Every step of the chunk has a separate mixture, or all share one whose modes are whole chunks. The product
    excludes the densities of padded values. Features are read as by the head `mlp`.
    """

    accepts = (Kind.POOLED, Kind.TOKENS)

    class Config(HeadConfig):
        type: Literal["gmm"]
        modes: Count = 5
        """Number of Gaussians of a mixture."""
        mixture: Literal["step", "chunk"] = "step"
        """Unit of a mode: the action of one step, as in robomimic, or a whole chunk with consistent steps."""
        means: Literal["free", "tanh"] = "free"
        """`tanh` keeps means between -1 and 1, as in robomimic, for actions normalized to that range."""
        min_std: Positive = 1e-4
        """Smallest standard deviation, in normalized units."""
        sampling: Literal["draw", "mean"] = "draw"
        """Draw a mode and an action from it, or take the mean of the most likely mode."""
        evaluation_std: Positive | None = 1e-4
        """Standard deviation of sampled actions in evaluation, where noise only hurts; null for that of the mode."""
        hidden: list[Count] = Field(max_length=MOST_LAYERS, default_factory=lambda: [1024, 1024])
        """Sizes of the hidden layers."""
        activation: Activation = "relu"
        """Activation after each hidden layer."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate after each hidden layer."""
        tokens: Tokens = "flatten"
        """Reduction of tokens to one vector: side by side (preserves positions in an image), or their mean."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._sizes = flat_sizes(inputs, config.tokens)
        self._horizon, self._action_dim = chunk_size(inputs)
        self._mixtures = self._horizon if config.mixture == "step" else 1
        outputs = config.modes * (self._mixtures + 2 * self._horizon * self._action_dim)
        sizes = [sum(self._sizes.values()), *config.hidden, outputs]
        self.layers = mlp(sizes, config.activation, config.dropout)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A).

        Raises:
            SpecError: The number of flattened tokens varies, an option has no effect, or bounded means cannot
                reach all actions of the training data.
        """
        flat_sizes(inputs, config.tokens)
        if config.means == "tanh":
            require_bound(inputs, 1.0, "means", "set `means: free`, or")
        default = cls.Config.model_fields["evaluation_std"].default
        if config.sampling == "mean" and config.evaluation_std != default:
            raise SpecError(
                "`evaluation_std` has no effect with `sampling: mean`",
                field="evaluation_std",
                label="has no effect",
                help="set `sampling: draw`, or leave it out",
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="gmm", modes=2, hidden=[32])

    def counts(self, actions: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
        """Return the number of `mixtures`, of steps or chunks, with a value that is not padding."""
        return {"mixtures": (~self._padded(is_pad)).sum()}

    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """Return the mean negative log-likelihood over the steps or chunks that are not all padding."""
        weights, means, deviations = self.predict(features)
        actions = actions.float().masked_fill(is_pad, 0.0)[:, None]
        distances = (actions - means) / deviations
        densities = -0.5 * distances**2 - deviations.log() - 0.5 * math.log(2.0 * math.pi)
        densities = densities.masked_fill(is_pad[:, None], 0.0).sum(-1)  # (B, M, H)
        if self.config.mixture == "chunk":
            densities = densities.sum(-1, keepdim=True)
        likelihoods = torch.logsumexp(weights + densities, dim=1)  # (B, H or 1)
        return {"loss": masked_mean(-likelihoods, self._padded(is_pad), shares.get("mixtures"))}

    @torch.no_grad()
    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Return an action chunk (B, H, A), drawn by the generator or deterministic, by `sampling`."""
        weights, means, deviations = self.predict(features)
        drawn = self.config.sampling == "draw"
        scores = weights.transpose(1, 2)  # (B, H or 1, M)
        modes = categorical(scores, generator) if drawn else scores.argmax(-1)
        chosen = modes[:, None, :, None].expand(-1, 1, *means.shape[2:])
        actions: Tensor = means.gather(1, chosen)[:, 0]
        if not drawn:
            return actions
        if self.config.evaluation_std is not None and not self.training:
            spread = torch.full_like(actions, self.config.evaluation_std)
        else:
            spread = deviations.gather(1, chosen)[:, 0]
        return actions + spread * normal(tuple(actions.shape), actions.device, generator)

    def _padded(self, is_pad: Tensor) -> Tensor:
        """Return a mask of mixtures (B, H or 1) that consist of padding."""
        steps = padded_steps(is_pad)
        return steps.all(-1, keepdim=True) if self.config.mixture == "chunk" else steps

    def predict(self, features: Mapping[str, Feature]) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-weights (B, M, H or 1), means and deviations (B, M, H, A) of the modes, float32."""
        modes, shape = self.config.modes, (self.config.modes, self._horizon, self._action_dim)
        dtype = next(self.parameters()).dtype
        out: Tensor = self.layers(flatten_features(features, self._sizes, self.config.tokens, dtype)).float()
        size = modes * self._horizon * self._action_dim
        weights, means, spreads = out.split([modes * self._mixtures, size, size], dim=-1)
        means = means.unflatten(-1, shape)
        if self.config.means == "tanh":
            means = means.tanh()
        deviations = F.softplus(spreads.unflatten(-1, shape)) + self.config.min_std
        return weights.unflatten(-1, (modes, -1)).log_softmax(1), means, deviations
