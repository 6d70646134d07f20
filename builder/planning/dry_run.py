"""Runs a policy once on the meta device, before any weight exists, and holds every shape against the wiring."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...components.base import Feature
from ...components.embodiments import ACTION_PADDING, EMBODIMENT, padding_mask
from ...components.pretrained import lora
from ...schemas.diagnostics import Diagnostic, in_order
from ...schemas.errors import PolicysmithError, RecipeError, SpecError
from ...schemas.nodes import KeyPath
from ...schemas.specs import Kind, Spec
from ..composed import Summary, content
from ..fine_tuning.transfer import Taken
from ..policy import RecipeConfig, RecipePolicy
from ..policy.freezing import freeze
from ..policy.named_classes import refusal
from ..policy.recipe_policy import ROBOTS, make
from ..policy.tied_weights import undeclared
from ..recipe.load import LoadedRecipe
from ..training.optim.fused_adamw import moment_bytes
from ..wiring.parts import Site
from ..wiring.solve import Wiring, remarks
from .policy import PolicyPlan
from .sources import DataPlan
from .unused import unused

_SIZES = {"B": 2, "L": 5}


def rehearse(
    loaded: LoadedRecipe, data: DataPlan, plan: PolicyPlan, start: Callable[[RecipePolicy], Taken | None]
) -> Summary:
    """Sizes of the policy. Weights files in reach are read, and nothing is kept.

    `start` tells what the policy takes of a trained one.

    Raises RecipeError for a name that is taken, a part that does otherwise than it published, weights that do not
    fit, and patterns that match nothing.
    """
    if reason := refusal(loaded.recipe.name):
        raise RecipeError([loaded.diagnostic(("name",), reason, code="E007 invalid-value")])
    policy = _construct(loaded, data, plan)
    policy.directory = loaded.directory
    idle = unused(policy, _run(loaded, policy, plan))
    problems = [
        *_weights(loaded, policy, plan),
        *_collated(loaded, policy, data),
        *shared(loaded, policy, ("policy",)),
        *unmatched(loaded, policy, loaded.resolved()["policy"]["freeze"]),
    ]
    taken = start(policy)
    parts: dict[str, nn.Module] = {f"backbones.{name}": module for name, module in policy.backbones.items()}
    parts |= {f"necks.{name}": module for name, module in policy.necks.items()}
    parts["head"] = policy.head
    warned = tuple(_random_and_frozen(policy, plan, taken))
    freeze(policy, list(idle))
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()}
    trains = {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad) for name, module in parts.items()
    }
    if not any(trains.values()):
        label, help = "nothing is left to train", "narrow the patterns"
        error = SpecError("every parameter is frozen", label=label, help=help)
        problems.append(loaded.diagnostic(("policy", "freeze"), error))
    if problems:
        raise RecipeError(in_order(problems))
    adapted = {f"backbones.{name}": lora.count_adapters(module) for name, module in policy.backbones.items()}
    return Summary(
        name=loaded.recipe.name,
        parameters=sum(p.numel() for p in policy.parameters()),
        trainable=sum(p.numel() for p in policy.parameters() if p.requires_grad),
        frozen=policy.frozen,
        parts=count,
        trains=trains,
        adapted={name: layers for name, layers in adapted.items() if layers},
        features={
            key: spec
            for specs in (*plan.wiring.necks.values(), plan.wiring.features)
            for key, spec in specs.items()
        },
        action=plan.wiring.action,
        unused=idle,
        moments=moment_bytes(
            [p for p in policy.parameters() if p.requires_grad],
            eight_bit=loaded.recipe.training.optimizer.states == "8bit",
        ),
        warnings=(*warned, *_remarks(plan)),
    )


def _remarks(plan: PolicyPlan) -> list[str]:
    transforms = plan.parts.transforms
    inputs = [plan.wiring.into(index) for index in range(len(transforms))]
    return remarks(transforms, inputs, plan.wiring.facts)


def _collated(loaded: LoadedRecipe, policy: RecipePolicy, data: DataPlan) -> list[Diagnostic]:
    """Findings for demonstrations that the collator refuses, such as an instruction of too many tokens."""
    try:
        policy.collator.check(data.instructions, data.samples)
    except PolicysmithError as error:
        return [loaded.diagnostic(("collator",), error if isinstance(error, SpecError) else str(error))]
    return []


def _random_and_frozen(policy: RecipePolicy, plan: PolicyPlan, taken: Taken | None) -> Iterator[str]:
    """Warnings of backbones with frozen weights that nothing has trained before."""
    filled = set() if taken is None else taken.names.keys()
    for name, site in plan.parts.backbones.items():
        if getattr(site.config, "pretrained", None) is not None:
            continue
        frozen = [
            parameter.numel()
            for own, parameter in policy.backbones[name].named_parameters(f"backbones.{name}")
            if not parameter.requires_grad and own not in filled
        ]
        if frozen and any(site.part.Config.model_fields.keys() & {"pretrained"}):
            yield (
                f"{sum(frozen):,} weights of `backbones.{name}` are random and frozen, so it learns nothing; set "
                f"`pretrained` of it, start from a trained policy (`policy.init`), or do not freeze it"
            )


def shared(loaded: LoadedRecipe, policy: Any, path: KeyPath) -> list[Diagnostic]:
    """Findings for tensors that share memory without a declaration, which no checkpoint could hold."""
    return [
        loaded.diagnostic(
            path,
            SpecError(
                f"`{first}` and `{second}` share memory, but are not declared as tied",
                label="a defect of this part",
                help='declare it on their module, `_tied_weights_keys = {"<target>": "<source>"}`, or copy the tensor',
            ),
        )
        for first, second in undeclared(policy)
    ]


def unmatched(loaded: LoadedRecipe, policy: nn.Module, freeze: Iterable[str] = ()) -> list[Diagnostic]:
    """Findings for patterns of the recipe that match no parameter."""
    names = [name for name, _ in policy.named_parameters()]
    patterns: list[tuple[KeyPath, str]] = [(("policy", "freeze", i), p) for i, p in enumerate(freeze)]
    groups = loaded.recipe.training.optimizer.groups
    patterns += [(("training", "optimizer", "groups", i, "match"), g.match) for i, g in enumerate(groups)]
    return [
        loaded.diagnostic(
            path,
            SpecError(
                f"no parameter matches `{pattern}`",
                label="matches nothing",
                help=f"parameters are named like {', '.join(_examples(names))}",
            ),
            code="E007 invalid-value",
        )
        for path, pattern in patterns
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names)
    ]


def _construct(loaded: LoadedRecipe, data: DataPlan, plan: PolicyPlan) -> RecipePolicy:
    """The policy on the meta device. Raises RecipeError for the part that fails."""
    config = RecipeConfig(**content(loaded, data, plan))
    try:
        with torch.device("meta"):
            return RecipePolicy(config)
    except Exception as error:
        site = _culprit(plan)
        path = site.path if site is not None else ("policy",)
        raise RecipeError([_defect(loaded, path, site, "cannot be built", error)]) from error


def _culprit(plan: PolicyPlan) -> Site | None:
    """The part that cannot be built by itself."""
    for site, inputs in plan.sites():
        try:
            with torch.device("meta"):
                make(site, inputs, plan.wiring.facts.get(site.key, {}))
        except Exception:  # noqa: BLE001  (whatever it was is reported by the caller)
            return site
    return None


def _defect(
    loaded: LoadedRecipe, path: KeyPath, site: Site | None, what: str, error: Exception
) -> Diagnostic:
    """An error of a part's own code; a SpecError speaks for itself."""
    if isinstance(error, SpecError):
        return loaded.diagnostic(path, error)
    name = f"`{site.config.type}`" if site is not None else "the policy"
    message = f"{name} {what}: {type(error).__name__}: {error}"
    defect = SpecError(message, label="a defect of this part", help="the recipe is not at fault")
    return loaded.diagnostic(path, defect)


def _run(loaded: LoadedRecipe, policy: RecipePolicy, plan: PolicyPlan) -> torch.Tensor:
    """The loss of one training step, and one sample. Raises RecipeError for the part that fails."""
    parts, wiring = plan.parts, plan.wiring
    batch = {k: v for key, spec in wiring.collated.items() for k, v in _blank(key, spec).items()}
    if policy.robots:
        batch[ACTION_PADDING] = policy.robots.action_padding(batch[EMBODIMENT])
    policy.train()
    features: dict[str, Feature] = {}
    site = parts.head
    try:
        for index, (site, transform) in enumerate(zip(parts.transforms, policy.transforms, strict=True)):
            batch = transform(batch)
            shapes = {key: value.shape for key, value in batch.items() if isinstance(value, torch.Tensor)}
            _compare(site, wiring.into(index + 1), shapes)
        robots = {key: Feature(batch[key]) for key in ROBOTS if key in batch}
        features |= robots
        for name, site in parts.backbones.items():
            features |= _published(site, wiring, policy.encode(name, batch))
        for name in wiring.necks:
            site = parts.necks[name]
            features |= _published(site, wiring, policy.pass_on(name, features))
        site = parts.head
        ordered = {**{key: features[key] for key in wiring.features}, **robots}
        losses = policy.head.loss(ordered, batch["action"], padding_mask(batch))
        if "loss" not in losses or any(value.ndim for value in losses.values()):
            raise SpecError('gives no scalar "loss"', label="a defect of this part")
        _compare(site, {"action": wiring.action}, {"action": policy.head.sample(ordered).shape})
    except Exception as error:
        what = "fails on inputs of the published shapes"
        raise RecipeError([_defect(loaded, site.path, site, what, error)]) from error
    loss: torch.Tensor = losses["loss"]
    return loss


def _published(site: Site, wiring: Wiring, found: dict[str, Feature]) -> dict[str, Feature]:
    """The features of one part, held against what it published."""
    read = [wiring.features, *wiring.necks.values()]
    expected = {key: spec for specs in read for key, spec in specs.items() if key in found}
    _compare(site, expected, {key: feature.values.shape for key, feature in found.items()})
    _compare_masks(found)
    return found


def _compare(site: Site, published: Mapping[str, Spec], given: Mapping[str, torch.Size]) -> None:
    for key, spec in published.items():
        if spec.kind is Kind.TEXT or (key in given and _agrees(spec, given[key])):
            continue
        shape = tuple(given[key]) if key in given else "nothing"
        raise SpecError(
            f"part `{site.config.type}` published {spec} for `{key}` but gives {shape}",
            label="a defect of this part",
            help="mend `specs` or `forward` of the part; the recipe is not at fault",
        )


def _compare_masks(features: Mapping[str, Feature]) -> None:
    for key, feature in features.items():
        shape = tuple(feature.values.shape)
        if feature.mask is not None and tuple(feature.mask.shape) != (shape[0], shape[-2]):
            raise SpecError(
                f"`{key}` is {shape}, but its mask is {tuple(feature.mask.shape)}",
                label="a defect of this part",
            )


def _agrees(spec: Spec, shape: torch.Size) -> bool:
    """Whether a shape is one of the spec's; a symbol stands for one size throughout."""
    known = [_SIZES.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.dims]
    return len(known) == len(shape) and all(
        isinstance(d, str) or d == s for d, s in zip(known, shape, strict=True)
    )


def _blank(key: str, spec: Spec) -> dict[str, Any]:
    """Values of a spec for a batch of two, on the meta device."""
    if spec.kind is Kind.TEXT:
        return {key: ["", ""]}
    shape = [dim if isinstance(dim, int) else _SIZES[dim] for dim in spec.dims]
    if spec.kind is Kind.TOKEN_IDS:
        ids = torch.zeros(shape, dtype=torch.int64, device="meta")
        return {key: ids, key.removesuffix("input_ids") + "attention_mask": torch.ones_like(ids)}
    if spec.kind is Kind.EMBODIMENT:
        return {key: torch.zeros(shape, dtype=torch.int64, device="meta")}
    dtype = torch.uint8 if spec.kind is Kind.IMAGE else torch.float32
    value = torch.zeros(shape, dtype=dtype, device="meta")
    if spec.kind is Kind.ACTION:
        return {key: value, "action_is_pad": torch.zeros(value.shape[:2], dtype=torch.bool, device="meta")}
    return {key: value}


def _weights(loaded: LoadedRecipe, policy: RecipePolicy, plan: PolicyPlan) -> list[Diagnostic]:
    """Findings for weights on this machine that cannot be read or do not fit; a hub is not asked."""
    found = []
    for name, site in plan.parts.backbones.items():
        source = getattr(site.opened(loaded.directory), "pretrained", None)
        if not isinstance(source, str) or not (source.startswith("package://") or Path(source).exists()):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of weights copied to meta, which keeps nothing
                policy.load_pretrained(name)
        except PolicysmithError as error:
            found.append(loaded.diagnostic(site.location, str(error), code="E024 bad-weights"))
    return found


def _examples(names: list[str]) -> list[str]:
    by_part: dict[str, str] = {}
    for name in names:
        by_part.setdefault(".".join(name.split(".")[:2]), f"`{name}`")
    return list(by_part.values())[:4]


__all__ = ["rehearse", "shared", "unmatched"]
