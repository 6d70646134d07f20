"""VQ-BeT against LeRobot's: the codes of chunks, and the network that predicts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.heads import vqbet
from policysmith.components.heads.vqbet import Vqbet
from policysmith.components.layers.batch_norms import group_norms
from policysmith.components.layers.residual_vq import ChunkVae
from policysmith.schemas.specs import Kind, Spec

from .golden import Golden, digest, load

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VAE, HEAD = "vqbet.action_head.vqvae_model.", "vqbet.action_head.map_to_cbet_preds_"
STAGES = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}
BLOCK = {
    "ln_1": "attention_norm",
    "attn.c_attn": "query_key_value",
    "attn.c_proj": "mix",
    "ln_2": "feedforward_norm",
    "mlp": "feedforward",
}


def vae_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of the autoencoder by our names, with counts of 1 and codes as sums."""
    codes = torch.cat([weights[f"{VAE}vq_layer.layers.{book}._codebook.embed"] for book in range(2)])
    state = {
        name.removeprefix(VAE): value for name, value in weights.items() if "coder." in name and VAE in name
    }
    held = {"codes": codes, "counts": torch.ones(codes.shape[:2]), "sums": codes.clone()}
    return {**state, **{f"quantizer.{name}": value for name, value in held.items()}}


def padded(weight: Tensor, *shape: int) -> Tensor:
    """Pad the weight with zeros to the right and below."""
    whole = torch.zeros(shape)
    whole[tuple(slice(size) for size in weight.shape)] = weight
    return whole


def head_of(golden: Golden, weights: dict[str, Tensor]) -> Vqbet:
    """Build a head with the golden's weights, zero-padded from sizes 12, 16 and 14 to 16."""
    config = Vqbet.Config(
        type="vqbet",
        vae_steps=1,
        windows=3,
        observation_steps=2,
        codes=5,
        code_width=6,
        vae_hidden=10,
        width=16,
        depth=2,
        heads=2,
        dropout=0.0,
    )
    inputs = {
        "vision.tokens": Spec(Kind.TOKENS, ("B", 2, 8)),
        "state.tokens": Spec(Kind.TOKENS, ("B", 2, 5)),
        "action": Spec(Kind.ACTION, ("B", 5, 4)),
    }
    head = Vqbet(config, inputs, {})
    gpt = "vqbet.policy.transformer."
    state = {
        "trained": torch.tensor(1),
        "query": padded(weights["vqbet.action_token"][0, 0], 16),
        "transformer.embed.weight": padded(weights[f"{gpt}wte.weight"], 16, 16),
        "transformer.embed.bias": weights[f"{gpt}wte.bias"],
        "transformer.positions": weights[f"{gpt}wpe.weight"][: 2 * 3 + 2],
        "transformer.norm.weight": weights[f"{gpt}ln_f.weight"],
        "transformer.norm.bias": weights[f"{gpt}ln_f.bias"],
        "transformer.out.weight": padded(weights["vqbet.policy.lm_head.weight"], 16, 16),
    }
    for name, value in weights.items():
        if name.startswith(f"{gpt}h."):
            index, _, rest = name.removeprefix(f"{gpt}h.").partition(".")
            theirs = next(theirs for theirs in BLOCK if rest.startswith(theirs))
            state[f"transformer.blocks.{index}.{BLOCK[theirs]}{rest.removeprefix(theirs)}"] = value
    for ours, theirs in (("vision", "rgb_feature"), ("state", "state")):
        weight = weights[f"vqbet.{theirs}_projector.0.weight"]
        state[f"project.{ours}_tokens.weight"] = padded(weight, 16, weight.shape[1])
        state[f"project.{ours}_tokens.bias"] = padded(weights[f"vqbet.{theirs}_projector.0.bias"], 16)
    for ours, theirs in (("code_scores", "bin"), ("offsets", "offset")):
        weight = weights[f"{HEAD}{theirs}.0.weight"]
        state[f"{ours}.weight"], state[f"{ours}.bias"] = (
            padded(weight, len(weight), 16),
            weights[f"{HEAD}{theirs}.0.bias"],
        )
    for name, value in vae_weights(weights).items():
        state[f"vae.{name}"] = state[f"settled.module.{name}"] = value
    head.load_state_dict(state)
    return head.eval()


def image_features(golden: Golden, weights: dict[str, Tensor]) -> Tensor:
    """Return keypoints of the images (B, T, 8): a ResNet with group norms, spatial softmax, linear, ReLU."""
    network: Any = timm.create_model("resnet18", num_classes=0)
    group_norms(network)
    prefix = "vqbet.rgb_encoder.backbone."
    stages = {}
    for name, value in weights.items():
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            stages[f"{STAGES[int(index)]}.{rest}"] = value
    network.load_state_dict(stages)
    images = golden.inputs["observation.images.front"]
    with torch.no_grad():
        maps = network.forward_features(images.flatten(0, 1))
    weight, bias = (weights[f"vqbet.rgb_encoder.pool.nets.{name}"] for name in ("weight", "bias"))
    shares = (
        torch.nn.functional.conv2d(maps, weight, bias).flatten(2).softmax(-1).unflatten(-1, maps.shape[-2:])
    )
    rows, columns = (torch.linspace(-1.0, 1.0, size) for size in maps.shape[-2:])
    points = torch.stack([shares.sum(-2) @ columns, shares.sum(-1) @ rows], dim=-1).flatten(1)
    weight, bias = (weights[f"vqbet.rgb_encoder.out.{name}"] for name in ("weight", "bias"))
    return (points @ weight.T + bias).relu().unflatten(0, images.shape[:2])


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("vqbet")


@pytest.fixture(scope="module")
def weights(golden: Golden) -> dict[str, Tensor]:
    return golden.weights()


@pytest.fixture
def head(golden: Golden, weights: dict[str, Tensor]) -> Vqbet:
    return head_of(golden, weights)


@pytest.fixture(scope="module")
def features(golden: Golden, weights: dict[str, Tensor]) -> dict[str, Feature]:
    state = Feature(golden.inputs["observation.state"])
    return {"vision.tokens": Feature(image_features(golden, weights)), "state.tokens": state}


def test_transformer_gives_the_same_for_the_queries_from_now_on(
    golden: Golden, head: Vqbet, features: dict[str, Feature]
) -> None:
    hidden = head._hidden(features).unflatten(0, (3, 3))
    torch.testing.assert_close(hidden[..., :14], golden.outputs["features"][:, 1:], **CLOSE)
    assert not hidden[..., 14:].any()


def test_samples(
    golden: Golden, head: Vqbet, features: dict[str, Feature], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = golden.draws["sampling.multinomial.0"].reshape(3, 4, 2)[:, 1:].flatten(0, 1)
    monkeypatch.setattr(vqbet, "categorical", lambda scores, generator: drawn)
    sample = head.sample(features)
    assert sample.shape == (3, 5, 4)
    torch.testing.assert_close(sample[:, :3], golden.outputs["sample"], **CLOSE)


def test_losses_and_gradients_of_all_windows(
    golden: Golden, head: Vqbet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot's loss also counts a window that began in the past, for which our data has no actions."""
    hidden = padded(golden.outputs["features"].flatten(0, 1), 12, 16)
    monkeypatch.setattr(head, "_hidden", lambda features: hidden)
    monkeypatch.setattr(vqbet, "categorical", lambda scores, generator: golden.draws["codes"])
    chunks, expected = golden.outputs["targets"].flatten(1), golden.outputs
    scores, _ = head._draw(hidden)
    torch.testing.assert_close(scores, expected["logits"], **CLOSE)
    decoded = head.settled.module.decode(golden.draws["codes"])
    torch.testing.assert_close(decoded, expected["decoded"].flatten(1), **CLOSE)
    predicted = head._predict(hidden, golden.draws["codes"])
    torch.testing.assert_close(predicted, expected["prediction"].flatten(0, 1), **CLOSE)
    assert torch.equal(head.settled.module.codes(chunks), expected["target_codes"])
    terms = head._prediction_loss({}, chunks, torch.zeros_like(chunks, dtype=torch.bool))
    torch.testing.assert_close(terms["code"], expected["code_loss"], **CLOSE)
    torch.testing.assert_close(terms["offset"], expected["offset_loss"], **CLOSE)
    torch.testing.assert_close(terms["loss"], expected["loss"], **CLOSE)
    terms["loss"].backward()
    for layer, name in ((head.code_scores, "bin"), (head.offsets, "offset")):
        for kind, gradient in (("weight", layer.weight.grad[:, :14]), ("bias", layer.bias.grad)):
            key = f"{HEAD}{name}.0.{kind}"
            torch.testing.assert_close(digest(key, gradient), golden.gradients[key], **CLOSE)


def test_a_step_of_the_codes() -> None:
    golden = load("vqbet_vae")
    vae = ChunkVae(12, 10, 2, 5, 6)
    vae.load_state_dict(vae_weights(golden.weights()))
    chunks, valid = golden.inputs["chunks"].flatten(1), torch.ones(8, dtype=torch.bool)
    vectors, indices, decoded, errors = vae(chunks)
    vae.quantizer.update(vectors, indices, valid, torch.tensor(True))
    expected = golden.outputs
    reconstruction, commitment = (decoded - chunks).abs().mean(), errors.mean(0).sum()
    loss = reconstruction + 5.0 * commitment
    loss.backward()
    assert torch.equal(indices, expected["codes"])
    torch.testing.assert_close(reconstruction, expected["l1"], **CLOSE)
    torch.testing.assert_close(commitment, expected["commitment"], **CLOSE)
    torch.testing.assert_close(loss, expected["loss"], **CLOSE)
    for name, theirs in (("codes", "codebooks"), ("counts", "counts"), ("sums", "sums")):
        torch.testing.assert_close(getattr(vae.quantizer, name), expected[theirs], **CLOSE)
    for name, parameter in vae.named_parameters():
        key = f"{VAE}{name}"
        torch.testing.assert_close(digest(key, parameter.grad), golden.gradients[key], **CLOSE)
