"""The policies whose training steps are timed, each from a recipe of this repository, and the goals for them.

Every work has a tiny form, which runs on a CPU in seconds and says nothing of speed. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

IMAGE_HALF = {"type": "normalize_image", "stats": "half"}
NORMALIZE = {"type": "normalize", "mode": "mean_std"}
AUGMENTED = [
    {"type": "random_shift", "pixels": 8},
    {"type": "color_jitter", "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    IMAGE_HALF,
    NORMALIZE,
]
VIT_B16 = {"type": "vit", "patch_size": 16, "width": 768, "depth": 12, "heads": 12}
STATE, CONTEXT = "observation.state", "observation.context"


@dataclass(frozen=True)
class Inputs:
    """Shapes of observations and actions."""

    cameras: Mapping[str, tuple[int, int]]
    """Height and width by name."""
    states: Mapping[str, tuple[int, int]]
    """Steps and width by key."""
    action: int
    """Dimensions of an action."""


@dataclass(frozen=True)
class Goals:
    """Goals of the project on one H100."""

    speedup: float | None = None
    """Steps per second over the stock transformers.Trainer."""
    tflops: float | None = None
    ceiling: float | None = None
    """Fraction of the rate of a large matrix product in the same run."""


@dataclass(frozen=True)
class Work:
    """One policy, with the shapes and the size of its batches."""

    name: str
    title: str
    recipe: str
    """Under `recipes/`."""
    inputs: Inputs
    batch: int
    goals: Goals = field(default_factory=Goals)
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the recipe."""
    needs: tuple[str, ...] = ()
    """Packages that it requires."""
    together: bool = True
    """True if one GPU holds the policy once for every trainer, so that their blocks alternate."""
    batches: int = 4
    """Number of different batches, which repeat."""

    def changed(self, changes: Mapping[str, Any]) -> Work:
        """Return the work with more overrides of the recipe."""
        return replace(self, changes={**self.changes, **changes})


def vit_b(tiny: bool) -> list[Work]:
    title = "ViT-B/16 + MLP, all of it trained"
    goals = Goals(speedup=1.6, tflops=430)
    if tiny:
        return [_tiny("vit_b", title, "vit_mlp", goals)]
    changes = {
        "policy.backbones.vision": VIT_B16,
        "policy.freeze": [],
        "training.optimizer.groups": [],
        "transforms": AUGMENTED,
    }
    return [Work("vit_b", title, "vit_mlp_base.yaml", _seen(1), 256, goals, changes)]


def vit_b_timm(tiny: bool) -> list[Work]:
    title = "ViT-B/16 of timm + MLP, all of it trained"
    name = "test_vit" if tiny else "vit_base_patch16_224"
    [work] = vit_b(tiny)
    timm = work.changed({"policy.backbones.vision": {"type": "timm", "name": name}})
    return [replace(timm, name="vit_b_timm", title=title, needs=("timm",))]


def vit_b_frozen(tiny: bool) -> list[Work]:
    title = "ViT-B/16 at rest + MLP"
    [work] = vit_b(tiny)
    frozen = work.changed({"policy.freeze": ["backbones.vision.*"], "transforms": [IMAGE_HALF, NORMALIZE]})
    return [replace(frozen, name="vit_b_frozen", title=title, goals=Goals(speedup=25), batches=1)]


def act(tiny: bool) -> list[Work]:
    title = "ACT, ResNet-18, 2 cameras, chunk of 100"
    needs = ("timm",)
    if tiny:
        return [replace(_tiny("act", title, "act", Goals(speedup=6)), needs=needs)]
    changes = {
        "data.horizon": 100,
        "policy.backbones.vision.pretrained": None,
        "transforms": [{"type": "normalize_image", "stats": "imagenet"}, NORMALIZE],
    }
    base = Work("act", title, "act.yaml", _seen(2, state=14, action=14), 8, changes=changes, needs=needs)
    return _batches(base, {8: Goals(speedup=6), 64: Goals(speedup=2.2)})


def gr00t_dit(tiny: bool) -> list[Work]:
    title = "GR00T's flow-matching head on 600 tokens"
    tokens, width, state, action = (6, 16, 8, 8) if tiny else (600, 2048, 64, 32)
    changes = {
        "collator": {"type": "default"},
        "policy.backbones": {},
        "policy.backbones.context": {"type": "state", "reads": [CONTEXT]},
        "policy.backbones.proprio": {"type": "state", "reads": [STATE]},
        "policy.necks": {},
        "policy.head.reads": ["context.tokens", "proprio.pooled"],
        "transforms": [],
    }
    inputs = Inputs({}, {STATE: (1, state), CONTEXT: (tokens, width)}, action)
    recipe = "tiny/gr00t_n1_5.yaml" if tiny else "gr00t_n1_5.yaml"
    goals = {8: Goals(speedup=3), 32: Goals(speedup=2.4), 256: Goals(speedup=1.6)}
    if tiny:
        return [Work("gr00t_dit", title, recipe, inputs, 4, goals[8], changes)]
    works = _batches(Work("gr00t_dit", title, recipe, inputs, 8, changes=changes, batches=2), goals)
    return [replace(work, together=work.batch < 256) for work in works]


def diffusion_unet(tiny: bool) -> list[Work]:
    title = "U-Net of Diffusion Policy, 512, 1024 and 2048 channels"
    changes = {
        "policy.backbones": {},
        "policy.backbones.proprio": {"type": "state"},
        "policy.necks": {},
        "policy.head.reads": ["proprio.pooled"],
        "transforms": [{"type": "normalize", "mode": "min_max"}],
    }
    inputs = Inputs({}, {STATE: (2, 68)}, 4)
    recipe = "tiny/diffusion_policy.yaml" if tiny else "diffusion_policy.yaml"
    return [Work("diffusion_unet", title, recipe, inputs, 4 if tiny else 64, Goals(speedup=2.5), changes)]


def pi0_lora(tiny: bool) -> list[Work]:
    return [_pi0("pi0_lora", "pi0, low-rank adapters of rank 16 and expert", tiny, {"rank": 16}, 8)]


def pi0_full(tiny: bool) -> list[Work]:
    return [_pi0("pi0_full", "pi0, all of it trained", tiny, None, 8)]


WORKS: dict[str, Callable[[bool], list[Work]]] = {
    "vit_b": vit_b,
    "vit_b_timm": vit_b_timm,
    "vit_b_frozen": vit_b_frozen,
    "act": act,
    "gr00t_dit": gr00t_dit,
    "diffusion_unet": diffusion_unet,
    "pi0_lora": pi0_lora,
    "pi0_full": pi0_full,
}


def choose(names: Sequence[str], tiny: bool) -> list[Work]:
    """Return the works of these names, in the order of `WORKS`: `act` for all its batches, `act_64` for one.

    Without names, return all. Raise KeyError for an unknown name.
    """
    found = {work.name: (family, work) for family, make in WORKS.items() for work in make(tiny)}
    for name in names:
        if name not in WORKS and name not in found:
            raise KeyError(name)
    return [work for name, (family, work) in found.items() if not names or {name, family} & {*names}]


def _tiny(name: str, title: str, recipe: str, goals: Goals) -> Work:
    return Work(name, title, f"tiny/{recipe}.yaml", _seen(1, size=32), 4, goals)


def _batches(work: Work, goals: Mapping[int, Goals]) -> list[Work]:
    return [replace(work, name=f"{work.name}_{size}", batch=size, goals=aims) for size, aims in goals.items()]


def _seen(cameras: int, size: int = 224, state: int = 8, action: int = 8) -> Inputs:
    names = ("front", "wrist")[:cameras]
    return Inputs(dict.fromkeys(names, (size, size)), {STATE: (1, state)}, action)


def _pi0(name: str, title: str, tiny: bool, lora: dict[str, int] | None, batch: int) -> Work:
    goals = Goals(ceiling=0.45)
    if tiny:
        return _tiny(name, title, "pi0", goals).changed({"policy.backbones.vlm.lora": lora})
    changes = {
        "collator.tokenizer": "policysmith/tiny",
        "policy.backbones.vlm.pretrained": None,
        "policy.backbones.vlm.architecture": "google/paligemma-3b-pt-224",
        "policy.backbones.vlm.lora": lora,
        "training.ema": None,
        "transforms": [IMAGE_HALF, NORMALIZE],
    }
    return Work(name, title, "pi0.yaml", _seen(2, state=32, action=32), batch, goals, changes, together=False)
