"""Dry run of a composed policy on the meta device: one training step, its shapes checked."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...components.base import Feature
from ...components.embodiments import ACTION_PADDING, EMBODIMENT, padding_mask
from ...components.kernels.eight_bit import moment_bytes
from ...components.pretrained import lora
from ...schemas.diagnostics import Diagnostic, in_order
from ...schemas.errors import PolicysmithError, RecipeError, SpecError
from ...schemas.specs import Kind, Spec
from ...schemas.yaml.nodes import KeyPath
from .. import compat
from ..policy import RecipeConfig, RecipePolicy
from ..policy.freezing import freeze
from ..policy.part_modules import make_part
from ..policy.recipe_policy import ROBOTS
from ..policy.registration.named_classes import recipe_name_conflict
from ..policy.storage.tied_weights import undeclared
from ..recipe.loaded import LoadedRecipe
from ..wiring.parts import Site
from ..wiring.solve import Wiring, remarks
from .checks.doubts import normalization_doubts, transform_doubts
from .checks.unused import unused
from .policy import PolicyPlan, config_content
from .sources import DataPlan
from .summary import Summary, part_sizes

BATCH = 2
"""Samples of a dry run."""
_SIZES = {"B": BATCH, "L": 5}
"""Sizes that stand for symbols in specs."""
_DEFECT = "a defect of this part"


def dry_run(
    loaded: LoadedRecipe,
    data: DataPlan,
    plan: PolicyPlan,
    filled: Callable[[RecipePolicy], Collection[str]] = lambda policy: (),
) -> Summary:
    """Build and run a policy on the meta device, and return its sizes.

    Args:
        loaded: The recipe.
        data: The datasets.
        plan: The wired policy.
        filled: Names of the parameters of a policy that come from a trained one.

    Raises:
        RecipeError: The name is taken, a part does not do what it published, weights files on this machine do
            not fit, or a pattern matches nothing.
    """
    if reason := recipe_name_conflict(loaded.sections.name):
        raise RecipeError([loaded.diagnostic(("name",), reason, code="E007 invalid-value")])
    policy = construct(loaded, data, plan)
    policy.directory = loaded.directory
    idle = unused(policy, run_once(loaded, policy, plan))
    problems = [
        *_check_weights(loaded, policy, plan),
        *_check_collator(loaded, policy, data),
        *undeclared_ties(loaded, policy, ("policy",)),
        *unmatched_patterns(loaded, policy, loaded.resolved()["policy"]["freeze"]),
    ]
    known = filled(policy)
    warned = tuple(_random_and_frozen(loaded, policy, plan, known))
    freeze(policy, list(idle))
    sizes, trains = part_sizes(policy)
    if not any(trains.values()):
        label, help = "nothing is left to train", "narrow the patterns"
        error = SpecError("every parameter is frozen", label=label, help=help)
        problems.append(loaded.diagnostic(("policy", "freeze"), error))
    if problems:
        raise RecipeError(in_order(problems))
    trainable = [p for p in policy.parameters() if p.requires_grad]
    adapted = {f"backbones.{name}": lora.count_adapters(module) for name, module in policy.backbones.items()}
    return Summary(
        name=loaded.sections.name,
        parameters=sum(p.numel() for p in policy.parameters()),
        trainable=sum(p.numel() for p in trainable),
        frozen=policy.frozen,
        parts=sizes,
        trains=trains,
        adapted={name: layers for name, layers in adapted.items() if layers},
        features={
            key: spec
            for specs in (*plan.wiring.necks.values(), plan.wiring.features)
            for key, spec in specs.items()
        },
        action=plan.wiring.action,
        unused=idle,
        moments=moment_bytes(trainable, eight_bit=loaded.sections.training.optimizer.states == "8bit"),
        warnings=(
            *warned,
            *normalization_doubts(loaded, plan),
            *transform_doubts(loaded, plan),
            *_remarks(loaded, plan),
        ),
    )


def _remarks(loaded: LoadedRecipe, plan: PolicyPlan) -> list[Diagnostic]:
    transforms = plan.parts.transforms
    inputs = [plan.wiring.into(index) for index in range(len(transforms))]
    found = remarks(transforms, inputs, plan.wiring.facts)
    return [loaded.diagnostic(place, text, code="W010 poor-statistics") for place, text in found]


def _check_collator(loaded: LoadedRecipe, policy: RecipePolicy, data: DataPlan) -> list[Diagnostic]:
    """Return a finding if the collator refuses demonstrations, such as too long an instruction."""
    try:
        policy.collator.check(data.instructions, data.samples)
    except PolicysmithError as error:
        return [loaded.diagnostic(("collator",), error if isinstance(error, SpecError) else str(error))]
    return []


def _random_and_frozen(
    loaded: LoadedRecipe, policy: RecipePolicy, plan: PolicyPlan, filled: Collection[str]
) -> Iterator[Diagnostic]:
    """Yield a warning for every backbone with frozen weights that nothing has trained."""
    for name, site in plan.parts.backbones.items():
        if getattr(site.config, "pretrained", None) is not None:
            continue
        frozen = [
            parameter.numel()
            for own, parameter in policy.backbones[name].named_parameters(f"backbones.{name}")
            if not parameter.requires_grad and own not in filled
        ]
        if frozen and any(site.part.Config.model_fields.keys() & {"pretrained"}):
            fault = SpecError(
                f"{sum(frozen):,} weights of `backbones.{name}` are random and frozen, so it learns nothing",
                help="set its `pretrained`, start from a trained policy (`policy.init`), or do not freeze it",
            )
            yield loaded.diagnostic(site.path, fault, code="W002 frozen-random-weights")


def undeclared_ties(loaded: LoadedRecipe, policy: Any, path: KeyPath) -> list[Diagnostic]:
    """Return findings for tensors that share memory without a declaration, which no checkpoint could hold."""
    return [
        loaded.diagnostic(
            path,
            SpecError(
                f"`{first}` and `{second}` share memory, but are not declared as tied",
                label=_DEFECT,
                help='declare it on their module, `_tied_weights_keys = {"<target>": "<source>"}`, or copy the tensor',
            ),
        )
        for first, second in undeclared(policy)
    ]


def unmatched_patterns(
    loaded: LoadedRecipe, policy: nn.Module, freeze: Iterable[str] = ()
) -> list[Diagnostic]:
    """Return findings for patterns of the recipe that match no parameter."""
    names = [name for name, _ in policy.named_parameters()]
    patterns: list[tuple[KeyPath, str]] = [(("policy", "freeze", i), p) for i, p in enumerate(freeze)]
    groups = loaded.sections.training.optimizer.groups
    patterns += [(("training", "optimizer", "groups", i, "match"), g.match) for i, g in enumerate(groups)]
    return [
        *_idle_groups(loaded, policy),
        *_unmatched(loaded, names, patterns),
    ]


def _idle_groups(loaded: LoadedRecipe, policy: nn.Module) -> Iterator[Diagnostic]:
    """Yield findings for groups of the optimizer whose parameters all belong to earlier groups."""
    groups = loaded.sections.training.optimizer.groups
    taken: set[str] = set()
    for index, group in enumerate(groups):
        own = {name for name, _ in policy.named_parameters() if fnmatch.fnmatchcase(name, group.match)}
        if own and own <= taken:
            error = SpecError(
                f"all parameters that match `{group.match}` belong to earlier groups",
                label="never applies",
                help="put it before them: the first matching group applies",
            )
            place = ("training", "optimizer", "groups", index, "match")
            yield loaded.diagnostic(place, error, code="E007 invalid-value")
        taken |= own


def _unmatched(
    loaded: LoadedRecipe, names: list[str], patterns: list[tuple[KeyPath, str]]
) -> list[Diagnostic]:
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


def construct(loaded: LoadedRecipe, data: DataPlan, plan: PolicyPlan) -> RecipePolicy:
    """Return the policy on the meta device. Raise RecipeError for the part that fails."""
    config = RecipeConfig(**config_content(loaded, data, plan.facts))
    try:
        with torch.device("meta"):
            return RecipePolicy(config)
    except Exception as error:
        site = _culprit(plan)
        path = site.path if site is not None else ("policy",)
        raise RecipeError([_defect(loaded, path, site, "cannot be built", error)]) from error


def _culprit(plan: PolicyPlan) -> Site | None:
    """Return the part that cannot be built alone."""
    for site, inputs in plan.sites():
        try:
            with torch.device("meta"):
                make_part(site, inputs, plan.wiring.facts.get(site.key, {}))
        except Exception:  # noqa: BLE001  (the caller reports it)
            return site
    return None


def _defect(
    loaded: LoadedRecipe, path: KeyPath, site: Site | None, problem: str, error: Exception
) -> Diagnostic:
    """Return a finding for an error in a part's own code, or for its SpecError."""
    if isinstance(error, SpecError):
        return loaded.diagnostic(path, error)
    name = f"`{site.config.type}`" if site is not None else "the policy"
    message = f"{name} {problem}: {type(error).__name__}: {error}"
    return loaded.diagnostic(path, SpecError(message, label=_DEFECT, help="the recipe is not at fault"))


def run_once(
    loaded: LoadedRecipe,
    policy: RecipePolicy,
    plan: PolicyPlan,
    *,
    sample: bool = True,
    transformed: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Return the loss of a training step of two samples on the meta device, after a prediction if `sample`.

    `transformed` is a batch of real samples to use in place of blank ones, after the transforms.

    Raise RecipeError for the part that fails.
    """
    parts, wiring = plan.parts, plan.wiring
    batch = {k: v for key, spec in wiring.collated.items() for k, v in blank(key, spec).items()}
    batch = batch if transformed is None else {**transformed}
    if policy.robots:
        batch[ACTION_PADDING] = policy.robots.action_padding(batch[EMBODIMENT])
    policy.train()
    site = parts.head
    try:
        with compat.meta_nonzero():
            remaining = zip(parts.transforms, policy.transforms, strict=True) if transformed is None else ()
            for index, (site, transform) in enumerate(remaining):
                batch = transform(batch)
                shapes = {key: value.shape for key, value in batch.items() if isinstance(value, torch.Tensor)}
                _compare(site, wiring.into(index + 1), shapes)
            robots = {key: Feature(batch[key]) for key in ROBOTS if key in batch}
            features = dict(robots)
            walk = policy.walk(batch)
            for site in (*parts.backbones.values(), *(parts.necks[name] for name in wiring.necks)):
                _, made = next(walk)
                if transformed is None:  # real instructions have other lengths than blank ones
                    _check_features(site, wiring, made)
                features |= made
            site = parts.head
            ordered = {**{key: features[key] for key in wiring.features}, **robots}
            losses = policy.head.loss(ordered, batch["action"], padding_mask(batch))
            if "loss" not in losses or any(value.ndim for value in losses.values()):
                raise SpecError('returns no scalar "loss"', label=_DEFECT)
            if sample:
                _compare(site, {"action": wiring.action}, {"action": policy.head.sample(ordered).shape})
    except Exception as error:
        problem = "fails on inputs of the published shapes"
        raise RecipeError([_defect(loaded, site.path, site, problem, error)]) from error
    loss: torch.Tensor = losses["loss"]
    return loss


def _check_features(site: Site, wiring: Wiring, features: Mapping[str, Feature]) -> None:
    """Raise SpecError for features of a part that differ from what it published."""
    read = [wiring.features, *wiring.necks.values()]
    expected = {key: spec for specs in read for key, spec in specs.items() if key in features}
    _compare(site, expected, {key: feature.values.shape for key, feature in features.items()})
    for key, feature in features.items():
        shape = tuple(feature.values.shape)
        if feature.mask is not None and tuple(feature.mask.shape) != (shape[0], shape[-2]):
            raise SpecError(f"`{key}` is {shape}, but its mask is {tuple(feature.mask.shape)}", label=_DEFECT)


def _compare(site: Site, published: Mapping[str, Spec], given: Mapping[str, torch.Size]) -> None:
    for key, spec in published.items():
        if spec.kind is Kind.TEXT or (key in given and _agrees(spec, given[key])):
            continue
        shape = tuple(given[key]) if key in given else "nothing"
        raise SpecError(
            f"part `{site.config.type}` published {spec} for `{key}` but returns {shape}",
            label=_DEFECT,
            help="fix `specs` or `forward` of the part; the recipe is not at fault",
        )


def _agrees(spec: Spec, shape: torch.Size) -> bool:
    """Return whether a shape fits a spec; a symbol stands for one size throughout."""
    known = [_SIZES.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.dims]
    return len(known) == len(shape) and all(
        isinstance(d, str) or d == s for d, s in zip(known, shape, strict=True)
    )


def blank(key: str, spec: Spec) -> dict[str, Any]:
    """Return values of a spec for a batch of two, on the meta device."""
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


def _check_weights(loaded: LoadedRecipe, policy: RecipePolicy, plan: PolicyPlan) -> list[Diagnostic]:
    """Return findings for weights files on this machine that cannot be read or do not fit; ask no hub."""
    found = []
    for name, site in plan.parts.backbones.items():
        source = getattr(site.resolved_config(loaded.directory), "pretrained", None)
        if not isinstance(source, str) or not (source.startswith("package://") or Path(source).exists()):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns that copies to the meta device keep nothing
                policy.load_pretrained(name)
        except PolicysmithError as error:
            found.append(loaded.diagnostic(site.location, str(error), code="E024 bad-weights"))
    return found


def _examples(names: list[str]) -> list[str]:
    by_part: dict[str, str] = {}
    for name in names:
        by_part.setdefault(".".join(name.split(".")[:2]), f"`{name}`")
    return list(by_part.values())[:4]


__all__ = ["BATCH", "construct", "dry_run", "run_once", "undeclared_ties", "unmatched_patterns"]
