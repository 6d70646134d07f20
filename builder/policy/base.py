"""`BasePolicyModel`: a `PreTrainedModel` that drives a robot.

No other module subclasses `PreTrainedModel`. A hand-written policy subclasses it, sets `config_class`,
implements `forward` and `inference`, and is registered:

    @BasePolicyModel.register("custom_model")
    class CustomPolicy(BasePolicyModel):
        config_class = CustomPolicyConfig

It guarantees what transformers leaves to chance: `post_init` runs once, after the outermost constructor;
weights set in a constructor survive it; a constructor may load pretrained weights; a loaded policy has every
weight of the checkpoint and every buffer; and a save is complete or absent.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ...components.layers.recomputation import recompute_all
from ...schemas.errors import RegistryError, SpecError
from ...schemas.questions.commands import rendered
from .acting.robot_interface import RobotInterface
from .registration import keywords, registry
from .registration.config_options import pin_class_attributes
from .storage import loading, manifest, saving, tied_weights

if TYPE_CHECKING:
    from ..inference.runner import Precision, Runner

P = TypeVar("P", bound="type[BasePolicyModel]")
_UPLOAD = (
    "repo_id", "token", "private", "commit_message", "commit_description", "revision", "create_pr", "tags",
)  # fmt: skip


class PolicyMeta(type):
    """Run `post_init` once, after the outermost constructor, whatever subclasses do."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        policy = super().__call__(*args, **kwargs)
        policy._trains = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        policy.post_init()
        return policy


class BasePolicyModel(RobotInterface, PreTrainedModel, metaclass=PolicyMeta):
    """Base of composed and hand-written policies.

    `forward(batch)` takes one collated batch and returns `{"loss", "prediction", ...}`; `inference(batch)`
    returns an action chunk (B, H, A); `select_action(observation)` returns the next action (A,) in the
    robot's units.
    """

    main_input_name = "batch"
    accepts_loss_kwargs = False
    base_model_prefix = ""
    builds_on_meta: ClassVar[bool] = False
    """True if the constructor can run on the meta device.

    Hand-written ones may load weights in it, so they cannot.
    """
    _trains: set[str]
    """Names of the parameters that the constructor leaves trainable; loading a checkpoint forgets them."""

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        pin_class_attributes(config)
        super().__init__(config)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # type: ignore[no-untyped-call]
        if "forward" in vars(cls):
            cls.forward = keywords.accepts_keywords(vars(cls)["forward"])  # type: ignore[method-assign]

    @classmethod
    def register(cls, name: str) -> Callable[[P], P]:
        """Return a class decorator that registers a policy for recipes and with the Auto classes.

        Raises:
            RegistryError: The name is taken, or the class or its config breaks the contract.
        """

        def decorate(policy: P) -> P:
            if not (inspect.isclass(policy) and issubclass(policy, BasePolicyModel)):
                raise RegistryError(
                    f"{registry.owner(policy)} is not a BasePolicyModel; derive it from `policysmith.BasePolicyModel`"
                )
            registry.register_policy(name, policy)
            return policy

        return decorate

    def forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Return `{"loss": scalar, "prediction": (B, H, A), ...}` for a collated batch."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement forward(batch) -> {{'loss', 'prediction'}}"
        )

    def loss_counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the number of values behind each mean in the loss of a batch, as scalars by kind of value.

        If several batches make one step (several processes, or `training.accumulate`), each receives its
        shares computed from these counts, and `forward` multiplies every mean by `share_of(batch, kind)`.
        With no counts, the default, all batches of a step have the same weight.
        """
        return {}

    @property
    def frozen_backbones(self) -> list[str]:
        """Backbones with weights none of which trains; their features can be computed once."""
        return []

    @property
    def key_value_parts(self) -> list[nn.Module]:
        """Backbones and necks whose keys and values other parts read, layer by layer."""
        return []

    def fused_transforms(self, batch: Mapping[str, Any]) -> list[list[str]]:
        """Return the chains of transforms, by type, that run as one kernel on batches like this one."""
        return []

    def runner(
        self,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        *,
        compile: bool = False,
    ) -> Runner:
        """Return the engine that runs the policy on a robot, on a copy of it.

        Args:
            device: Device to run on, by default that of the policy.
            precision: `float32` or `bfloat16`; `auto` is bfloat16 on a GPU, float32 elsewhere.
            compile: Compile layers, which makes chunks faster on a GPU and the first one slower, by up to minutes.

        Raises:
            SpecError: The precision is unknown.
        """
        from ..inference.runner import Runner  # which imports this module

        return Runner(self, device, precision, compile=compile)

    def eval(self) -> Self:
        """Set evaluation mode and return the policy itself."""
        super().eval()  # type: ignore[no-untyped-call]
        return self

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute layers in the backward pass, in all parts that can. Raise SpecError if none can."""
        reasons = recompute_all(self.recomputable())
        if reasons is not None:
            message = f"no part of {type(self).__name__} can recompute its layers: {'; '.join(reasons)}"
            raise SpecError(message, help="leave `gradient_checkpointing` out")

    def recomputable(self) -> list[nn.Module]:
        """Return the parts whose layers may be recomputed."""
        return list(self.children())

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Call `activation_checkpointing_enable`, its name since transformers 5.24."""
        self.activation_checkpointing_enable()

    def initialize_weights(self) -> None:
        """Do nothing: parts initialize their own weights, and pretrained ones must survive `post_init`.

        transformers would initialize again what it does not know in a model of its own, such as an adapter.
        """

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: `save_pretrained` writes an import shim, never a copy of the source."""

    @classmethod
    def get_init_context(cls, *args: Any, **kwargs: Any) -> Any:
        """Return transformers' contexts for a constructor, without the meta device if it cannot run there."""
        contexts = super().get_init_context(*args, **kwargs)
        if cls.builds_on_meta:
            return contexts
        return [
            context
            for context in contexts
            if not (isinstance(context, torch.device) and context.type == "meta")
        ]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a policy as transformers does, and verify its weights and buffers.

        Raises:
            WeightsError: A weight is missing, unexpected, of another shape or not finite.
            CheckpointError: The directory holds no complete checkpoint, or, unless `verify=False`, other
                files than its manifest lists.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        verify = kwargs.pop("verify", True)
        kwargs["ignore_mismatched_sizes"] = True  # reported below, with the other misfits
        load: Callable[..., Any] = super().from_pretrained
        with loading.pinned(pretrained_model_name_or_path) as source:
            saving.check_directory(source, kwargs.get("subfolder"), digests=verify)
            with loading.guarded(source, composed=cls.builds_on_meta):
                policy, info = load(source, *args, output_loading_info=True, **kwargs)
        loading.refuse_misfits(pretrained_model_name_or_path, policy, info)
        loading.refuse_not_finite(pretrained_model_name_or_path, policy)
        policy.repair_buffers()
        loading.align(policy)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(name in policy._trains)
        return (policy, info) if wants_info else policy

    def repair_buffers(self) -> None:
        """Recompute the buffers that a checkpoint does not hold, from a twin built on the CPU.

        transformers leaves them as uninitialized memory after loading (huggingface/transformers#48892).
        """
        missing = loading.unsaved_buffers(self)
        if not missing:
            return
        twin = loading.unsaved_buffers(type(self)(copy.deepcopy(self.config)))
        for name, buffer in missing.items():
            buffer.data.copy_(twin[name])

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return `{target: source}` of all weights that the policy or a module declares as tied."""
        tied: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels)
        return {**tied, **tied_weights.declared(self)}

    def save_pretrained(
        self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save the policy as transformers does, but stage it, read it back, and then move it into place.

        One of several processes writes. With `push_to_hub`, the options `repo_id`, `token`, `private` and so
        on are those of `push_to_hub()`.

        Raises:
            CheckpointError: The directory cannot be written, or what was written cannot be read back.
        """
        upload = {key: kwargs.pop(key) for key in _UPLOAD if key in kwargs}
        if not kwargs.get("is_main_process", True):
            return
        with saving.staged(Path(save_directory)) as directory:
            super().save_pretrained(directory, *args, **kwargs)
            self.save_assets(directory)
            saving.verify(directory)
            manifest.write(directory)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **upload})

    def save_assets(self, directory: Path) -> None:
        """Write what belongs beside config and weights: the resolved recipe, with the origins of its values."""
        if self.content:
            text = rendered(self.content["recipe"], (self.content.get("provenance") or {}).get("origins"))
            (directory / "recipe.lock.yaml").write_text(text, encoding="utf-8")
