"""Hand-written policies are built and run by `check`; their transforms are inverted, and rest at deployment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, Trainer, TrainingArguments

from policysmith.builder import BasePolicyModel, Builder, DataCollatorRegistry
from policysmith.builder.policy.sample_pipeline import KEY
from policysmith.schemas.errors import RegistryError, SpecError

Refused = Callable[[Callable[[], Any]], Any]
STATE = "observation.state"
CHAIN: list[Any] = []


class TrialConfig(PretrainedConfig):  # type: ignore[misc]
    """Its transforms are those of the test at hand."""

    model_type = "trial_policy"
    behaviour: str = "good"
    freeze_trunk: bool = False

    def transform(self) -> tuple[Any, list[int], list[int]]:
        return list(CHAIN), [0], [0, 1, 2, 3]


@BasePolicyModel.register("trial_policy")
class TrialPolicy(BasePolicyModel):
    """One layer from the state to a chunk, with several ways to go wrong."""

    config_class = TrialConfig

    def __init__(self, config: TrialConfig) -> None:
        super().__init__(config)
        self.trunk = nn.Linear(4, 4)
        self.layer = nn.Linear(5 if config.behaviour == "misfit" else 4, 16)
        self.norm = nn.BatchNorm1d(16)
        if config.freeze_trunk:
            self.trunk.requires_grad_(False)

    def forward(self, batch: Any) -> Any:
        prediction = self.norm(self.layer(self.trunk(batch["states"]))).unflatten(1, (4, 4))
        loss = (prediction - batch["actions"]).square()
        match self.config.behaviour:
            case "vector":
                return {"loss": loss.mean((1, 2))}
            case "detached":
                return {"loss": loss.mean().detach()}
            case "bare":
                return loss.mean()
        return {"loss": loss.mean(), "prediction": prediction}

    def inference(self, batch: Any) -> Any:
        chunk = self.norm(self.layer(self.trunk(batch["states"]))).unflatten(1, (4, 4))
        match self.config.behaviour:
            case "dict":
                return {"prediction": chunk}
            case "short":
                return chunk[:, :2]
            case "cheat":
                return batch["actions"]
            case "random":
                return torch.randn_like(chunk)
        return chunk


@DataCollatorRegistry.register("trial_policy")
def collate(samples: Sequence[Any]) -> dict[str, Tensor]:
    return {
        "states": torch.stack([sample[STATE][-1] for sample in samples]),
        "actions": torch.stack([sample["action"] for sample in samples]),
    }


class Tenfold(nn.Module):
    """Changes the action, and undoes it."""

    def forward(self, sample: Any) -> Any:
        return {**sample, "action": sample["action"] * 10.0}

    def inverse(self, sample: Any) -> Any:
        return {**sample, "action": sample["action"] / 10.0}


class Forgetful(Tenfold):
    """Undoes nothing."""

    def inverse(self, sample: Any) -> Any:
        return sample


class Jitter(nn.Module):
    """Noise on the state, in training alone."""

    def forward(self, sample: Any) -> Any:
        return {**sample, STATE: sample[STATE] + torch.rand(4)} if self.training else sample


class Switch:
    """The same without torch's module."""

    on = True

    def train(self) -> None:
        self.on = True

    def eval(self) -> None:
        self.on = False

    def __call__(self, sample: Any) -> Any:
        return {**sample, STATE: sample[STATE] + float(np.random.rand())} if self.on else sample


class Compose:
    """As torchvision's."""

    def __init__(self, *transforms: Any) -> None:
        self.transforms = list(transforms)

    def __call__(self, sample: Any) -> Any:
        for transform in self.transforms:
            sample = transform(sample)
        return sample


def always_random(sample: Any) -> Any:
    return {**sample, STATE: sample[STATE] + torch.rand(4)}


def seldom_random(sample: Any) -> Any:
    return always_random(sample) if torch.rand(()) < 0.1 else sample


class TwofoldInTraining(torch.nn.Module):
    def forward(self, sample: Any) -> Any:
        return {**sample, "action": sample["action"] * (2 if self.training else 1)}


def clipped(sample: Any) -> Any:
    return {**sample, "action": sample["action"].clamp(-0.01, 0.01)}


def in_place(sample: Any) -> Any:
    sample["action"] *= 2.0
    return sample


@pytest.fixture(autouse=True)
def no_transforms() -> None:
    CHAIN.clear()


@pytest.fixture
def builder(tiny: dict[str, Any]) -> Callable[..., Builder]:
    """`builder(**options)`: a recipe of the policy."""

    def make(**options: Any) -> Builder:
        policy = {"type": "trial_policy", "execute": 2, **options}
        recipe = {**tiny, "policy": policy, "transforms": [{"type": "normalize"}]}
        recipe["data"].pop("horizon", None)
        return Builder.from_recipe(recipe)

    return make


@pytest.fixture
def seen(observation: dict[str, Any]) -> dict[str, Any]:
    return observation


class Dazzled(nn.Module):
    """Loses the state at the sight of a real image, which noise is not."""

    def forward(self, sample: Any) -> Any:
        image = sample["observation.images.corner2"].float()
        real = (image.mean() - 127.5).abs() > 2
        return {**sample, STATE: sample[STATE] * (torch.nan if real else 1.0)}


def test_real_samples_go_through_a_hand_written_policy(
    builder: Callable[..., Builder], refused: Refused
) -> None:
    builder().check(deep=True).build()
    CHAIN[:] = [Dazzled()]
    dazzled = builder().check()
    (found,) = refused(lambda: dazzled.check(deep=True))
    assert "TrialPolicy reads `states` infinite or NaN on real samples" in found.message


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        ("misfit", "TrialPolicy fails on samples of the data: RuntimeError"),
        ("vector", "returns {'loss': (2,)}; return a dict with a scalar tensor `loss`"),
        ("bare", "returns Tensor; return a dict with a scalar tensor `loss`"),
        ("detached", "depends on no trainable weight"),
        ("dict", "inference returns dict; return a tensor"),
        ("short", r"inference returns (1, 2, 4) for 1 observation"),
        ("cheat", "`action` is not finite"),
    ],
)
def test_check_builds_and_runs_a_policy(
    behaviour: str, complaint: str, builder: Callable[..., Builder], refused: Refused
) -> None:
    (finding,) = refused(builder(behaviour=behaviour).check)
    assert complaint in finding.message


def test_a_checked_policy_is_as_it_was_built(builder: Callable[..., Builder], seen: dict[str, Any]) -> None:
    made = builder()
    before = torch.get_rng_state()
    first = made.check().build()
    again = made.build()
    assert first is not again
    assert all(torch.equal(v, again.state_dict()[name]) for name, v in first.state_dict().items())
    assert torch.equal(first.select_action(seen), again.select_action(seen))
    assert len(before)


@pytest.mark.parametrize(
    ("transform", "complaint"),
    [
        (always_random, "`always_random`, is random in evaluation"),
        (seldom_random, "`seldom_random`, is random in evaluation"),
        (Compose(Jitter(), always_random), "is random in evaluation"),
        (clipped, "`clipped`, changes the action and has no `inverse`"),
        (in_place, "`in_place`, changes the action and has no `inverse`"),
        (Forgetful(), "does not restore the action"),
        (TwofoldInTraining(), "changes the action differently in training"),
        (lambda sample: None, "return a sample"),
    ],
)
@pytest.mark.parametrize("before", [[], [Tenfold()]])
def test_transforms_that_would_mislead_a_robot_are_refused(
    transform: Any, complaint: str, before: list[Any], builder: Callable[..., Builder], refused: Refused
) -> None:
    CHAIN.extend([*before, transform])
    (finding,) = refused(builder().check)
    assert complaint in finding.message
    assert f"transform {len(before)} of TrialConfig.transform()" in finding.message


@pytest.mark.parametrize("transform", [Jitter(), Switch(), Compose(Jitter(), Switch())])
def test_augmentations_rest_at_deployment(
    transform: Any, builder: Callable[..., Builder], seen: dict[str, Any]
) -> None:
    CHAIN.append(transform)
    made = builder()
    training, _ = made.datasets()
    assert not torch.equal(training[0, 1][STATE], training[0, 2][STATE])  # type: ignore[index]
    policy = made.build()
    actions = []
    for _ in range(3):
        policy.reset()
        actions.append(policy.select_action(seen))
    assert torch.equal(actions[0], actions[1])
    assert torch.equal(actions[1], actions[2])


def test_an_action_transform_is_inverted(builder: Callable[..., Builder], seen: dict[str, Any]) -> None:
    plain = builder().build()
    CHAIN.extend([Jitter(), Tenfold()])
    made = builder()
    training, _ = made.datasets()
    raw = training.source[5]["action"]  # type: ignore[attr-defined]
    sample = training[5]
    back = made.build().pipeline.inverse(sample["action"][None], [sample])[0]
    torch.testing.assert_close(back, raw, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.build().chunk(windowed(seen)), plain.chunk(windowed(seen)) - (
        plain.chunk(windowed(seen)) - mean(plain)
    ) * 0.9, atol=1e-4, rtol=1e-3)  # fmt: skip


def windowed(observation: dict[str, Any]) -> dict[str, Any]:
    return {k: v[None] if isinstance(v, Tensor) else v for k, v in observation.items()}


def mean(policy: Any) -> Tensor:
    return torch.tensor(getattr(policy.config, KEY)["statistics"]["action"]["mean"])


def test_what_a_constructor_froze_stays_frozen(builder: Callable[..., Builder], tmp_path: Path) -> None:
    policy = builder(freeze_trunk=True).build()
    policy.save_pretrained(tmp_path / "policy")
    loaded = AutoModel.from_pretrained(tmp_path / "policy")
    trains = {name: parameter.requires_grad for name, parameter in loaded.named_parameters()}
    assert trains == {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    assert not trains["trunk.weight"]
    assert trains["layer.weight"]


def test_a_generator_decides_what_is_drawn(builder: Callable[..., Builder], seen: dict[str, Any]) -> None:
    policy = builder(behaviour="random").build()

    def act(seed: int) -> Tensor:
        policy.reset()
        return policy.select_action(seen, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(act(3), act(3))
    assert not torch.equal(act(3), act(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_class_that_is_no_policy_is_not_registered() -> None:
    class NoPolicy(nn.Module):
        config_class = TrialConfig

    with pytest.raises(RegistryError, match="NoPolicy is not a BasePolicyModel"):
        BasePolicyModel.register("trial_policy")(NoPolicy)  # type: ignore[type-var]


def test_it_may_start_from_a_trained_policy(builder: Callable[..., Builder], tmp_path: Path) -> None:
    first = builder().train(output=tmp_path / "first").policy
    made = builder(init=str(tmp_path / "first"))
    started = made.build()
    assert all(torch.equal(v, started.state_dict()[name]) for name, v in first.state_dict().items())
    assert "9 of 9 tensors taken" in made.notes[0]


def test_a_stock_trainer_trains_and_judges_it_unasked(
    builder: Callable[..., Builder], tmp_path: Path
) -> None:
    made = builder()
    policy, (training, _) = made.build(), made.datasets()
    few = torch.utils.data.Subset(training, range(12))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, remove_unused_columns=False,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        policy, arguments, train_dataset=few, eval_dataset=few, data_collator=made.collate(policy)
    )
    trainer.train()
    batch = collate([few[i] for i in range(8)])
    policy.eval()
    with torch.no_grad():
        losses = [float(policy(collate([few[i] for i in part]))["loss"]) for part in (range(8), range(8, 12))]
    judged = trainer.evaluate()
    assert judged["eval_loss"] == pytest.approx((losses[0] * 8 + losses[1] * 4) / 12, rel=1e-5)
    with torch.no_grad():
        assert torch.equal(policy(**batch)["loss"], policy(batch)["loss"])
    with pytest.raises(SpecError, match="leave `gradient_checkpointing` out"):
        policy.gradient_checkpointing_enable()
