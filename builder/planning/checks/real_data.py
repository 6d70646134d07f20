"""`check --deep`: every video is opened, and a batch of real demonstrations goes through the policy.

Transforms run on the CPU with real numbers; backbones, necks and head run on the meta device with the shapes and
types of the batch. The first and the last training episode of each dataset provide the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from ....schemas.errors import DatasetError, RecipeError, SpecError
from ....schemas.specs import Kind
from ...data.dataset import LeRobotDataset
from ...data.frames.choice import FrameChoice
from ...data.frames.probing import probe_cameras
from ...data.mixture import Mixture
from ...policy.part_modules import make_part
from ...recipe.loaded import LoadedRecipe
from ..dry_run import BATCH, blank, construct, run_once
from ..policy import PolicyPlan
from ..sources import DataPlan


def open_every_file(loaded: LoadedRecipe, data: DataPlan) -> None:
    """Open every file of the cameras. Raise RecipeError for one that is missing, damaged or too short."""
    for source in data.sources:
        try:
            layout, _ = source.table(source.episodes[:1])
            cameras = layout.choose_cameras(tuple(source.cameras.values()))
            probe_cameras(layout, cameras, layout.choose_episodes(source.episodes), files=None)
        except DatasetError as error:
            raise RecipeError(
                [loaded.diagnostic(source.place, str(error), code="E023 bad-dataset")]
            ) from error


def ends(data: DataPlan) -> LeRobotDataset | Mixture:
    """Return the samples of the first and last training episode of each dataset, decoded on demand."""
    few = [
        replace(
            source,
            training=tuple(dict.fromkeys((source.training[0], source.training[-1]))),
            frame_choice=FrameChoice("stream"),
        )
        for source in data.sources
    ]
    samples = replace(data, sources=tuple(few)).open("training")
    assert samples is not None
    return samples


def first_and_last(samples: Dataset[Any]) -> list[int]:
    """Return the indices of two samples, at the ends of the data."""
    return [round(place * (len(samples) - 1) / (BATCH - 1)) for place in range(BATCH)]  # type: ignore[arg-type]


def check_batch(loaded: LoadedRecipe, data: DataPlan, plan: PolicyPlan) -> None:
    """Take real samples through collator, transforms and network. Raise RecipeError for the part that fails."""
    samples = ends(data)
    policy = construct(loaded, data, plan)
    policy.directory = loaded.directory
    place: tuple[str | int, ...] = ("collator",)
    try:
        batch: Mapping[str, Any] = policy.collator([samples[index] for index in first_and_last(samples)])
        _compare_types(plan, batch)
        for index, site in enumerate(plan.parts.transforms):
            place = site.path
            transform: nn.Module = make_part(
                site, plan.wiring.into(index), plan.wiring.facts.get(site.key, {})
            )
            batch = transform.eval()(batch)
            check_finite(batch, f"transform `{site.config.type}` makes")
    except DatasetError as error:
        raise RecipeError([loaded.diagnostic(("data",), str(error), code="E023 bad-dataset")]) from error
    except SpecError as error:
        raise RecipeError([loaded.diagnostic(place, error)]) from error
    on_meta = {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in batch.items()}
    run_once(loaded, policy, plan, sample=False, transformed=on_meta)


def check_finite(batch: Mapping[str, Any], what: str) -> None:
    """Raise SpecError for numbers that are not finite."""
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise SpecError(
                f"{what} `{key}` infinite or NaN on real samples",
                help="`policysmith data stats` shows the values of the dataset",
            )


def _compare_types(plan: PolicyPlan, batch: Mapping[str, Any]) -> None:
    """Raise SpecError for a batch that differs from what the wiring expects of the collator."""
    for key, spec in plan.wiring.collated.items():
        if spec.kind is Kind.TEXT:
            continue
        for name, wanted in blank(key, spec).items():
            if (value := batch.get(name)) is None and name != key:
                continue
            if (
                not isinstance(value, Tensor)
                or value.dtype is not wanted.dtype
                or not _fits(spec.dims, value)
            ):
                shown = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else "nothing"
                raise SpecError(
                    f"`{name}` of real samples is {shown}, and the policy was wired for {wanted.dtype} {spec}"
                )
    check_finite(batch, "the data has")


def _fits(dims: Sequence[int | str], value: Tensor) -> bool:
    return value.ndim != len(dims) or all(
        isinstance(dim, str) or dim == size for dim, size in zip(dims, value.shape, strict=True)
    )


__all__ = ["check_batch", "check_finite", "ends", "first_and_last", "open_every_file"]
