"""From the observation that a robot sends to one that the policy was trained on: names, image layouts and sizes.

A robot's own names are mapped by pairs `<key of the policy>=<key of the robot>`, given one by one or in a YAML file:

    observation.images.front: images/cam_high
    observation.state: state

In a robot's keys, `images/cam_high`, `images.cam_high` and the nested `{"images": {"cam_high": ...}}` are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...components.embodiments import EMBODIMENT
from ...components.pixels import resize_images
from ...schemas.errors import SpecError
from ...schemas.paths import expanded
from ...schemas.specs import Kind, Spec, Specs
from ...schemas.wording import near
from ...schemas.yaml.document import read
from ..policy import BasePolicyModel
from .protocol import dotted, flattened

TASK, PROMPT = "task", "prompt"
"""The instruction, and its name in openpi's observations."""
MOST_LETTERS = 4096
"""Longest instruction."""
ASPECT_TOLERANCE = 0.02
"""Relative difference of aspect ratios up to which an image is resized."""


def read_map(entries: Sequence[str]) -> dict[str, str]:
    """Return the robot's key of each key of the policy, from pairs `KEY=KEY` and names of YAML files.

    Raises:
        SpecError: An entry is neither, or a key is mapped twice.
        RecipeError: A file is not valid YAML.
    """
    found: dict[str, str] = {}
    for entry in entries:
        key, equals, theirs = entry.partition("=")
        pairs: dict[Any, Any] = {key.strip(): theirs.strip()} if equals else _read_file(entry)
        for ours, name in pairs.items():
            if not (isinstance(ours, str) and isinstance(name, str) and ours and name):
                raise SpecError(
                    f"the map entry `{entry}` is not a pair of keys",
                    help="write <key of the policy>=<key of the robot>, or the same in a YAML file",
                )
            if found.setdefault(ours, name) != name:
                raise SpecError(f"`{ours}` is mapped twice, to `{found[ours]}` and `{name}`", help="keep one")
    return found


def _read_file(name: str) -> dict[Any, Any]:
    if not name.endswith((".yaml", ".yml")):
        raise SpecError(
            f"the map entry `{name}` is neither a pair nor a YAML file",
            help="write <key of the policy>=<key of the robot>, or name a file that ends in .yaml",
        )
    value = read(expanded(name)).value
    if not isinstance(value, dict):
        raise SpecError(
            f"{name} holds no map of keys",
            help="write one line `<key of the policy>: <key of the robot>` each",
        )
    return value


class Translator:
    """Translates a robot's observations for one policy.

    Args:
        policy: The policy.
        names: Keys of the robot by those of the policy, where they differ.

    Raises:
        SpecError: A key of `names` is none of the policy's.
    """

    def __init__(self, policy: BasePolicyModel, names: Mapping[str, str] | None = None) -> None:
        observed = policy.observed
        self._required, self._robots = observed.required, observed.robots
        self._own = {**observed.required, **observed.optional}
        specs = {key: Spec.from_json(spec) for key, spec in policy.content["specs"].items()}
        known = {key for key, spec in specs.items() if spec.kind is not Kind.ACTION}
        self._ignored = known - self._own.keys()
        """Keys of the training data that the policy does not read."""
        self._names = dict(names or {})
        for key in self._names:
            if key not in self._own:
                meant = near(key, self._own)
                raise SpecError(
                    f"the map names `{key}`, which the policy does not read",
                    help=f"did you mean `{meant}`?" if meant else f"it reads {_listed(self._own)}",
                )
        self._theirs = {key: dotted(self._names.get(key, key)) for key in self._own}

    @property
    def expected(self) -> dict[str, dict[str, Any]]:
        """Name, kind and shape of what a robot sends, by key of the policy."""
        return {
            key: {
                "key": self._names.get(key, key),
                "kind": str(spec.kind),
                "shape": None if spec.kind is Kind.TEXT else list(spec.dims[2:]),
                "dtype": {Kind.TEXT: "str", Kind.IMAGE: "uint8"}.get(spec.kind, "float32"),
                "required": key in self._required,
            }
            for key, spec in self._own.items()
        }

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Return an observation, values of one time step, under the policy's names and in its layout.

        Raises:
            SpecError: A key is missing or unknown, or an image cannot be resized without distortion or doubt.
        """
        given = flattened(observation)
        if TASK in self._own and TASK not in self._names and TASK not in given and PROMPT in given:
            given[TASK] = given.pop(PROMPT)
        robot = given.get(EMBODIMENT)
        own = self._robots.find(robot).own if self._robots else self._own
        wanted = {key: own[key] for key in self._own if key in own}
        lacking = [key for key in wanted if key in self._required and self._theirs[key] not in given]
        readable = {
            *self._theirs.values(),
            *self._ignored,
            TASK,
            PROMPT,
            *([EMBODIMENT] if self._robots else []),
        }
        surplus = sorted(given.keys() - readable)
        if lacking or surplus:
            raise SpecError(self._difference(lacking, surplus), help=f"expected: {self._listing(wanted)}")
        found = {key: given[self._theirs[key]] for key in wanted if self._theirs[key] in given}
        return {
            **{key: fit(self._theirs[key], value, wanted[key]) for key, value in found.items()},
            **({EMBODIMENT: robot} if self._robots else {}),
        }

    def _difference(self, lacking: Sequence[str], surplus: Sequence[str]) -> str:
        parts = []
        if lacking:
            parts.append(f"lacks {_listed([self._theirs[key] for key in lacking])}")
        if surplus:
            parts.append(f"holds {_listed(surplus)}, which the policy does not know")
        return f"the observation {' and '.join(parts)}"

    def _listing(self, specs: Specs) -> str:
        return ", ".join(f"`{self._names.get(key, key)}` {_shape(spec)}" for key, spec in specs.items())


def fit(name: str, value: Any, spec: Spec) -> Any:
    """Return a value in the layout and size of training: images (3, H, W), resized.

    Raises:
        SpecError: The image has another aspect ratio than those of training, or it is unclear which of its
            dimensions are the channels.
    """
    if isinstance(value, str) and len(value) > MOST_LETTERS:
        raise SpecError(f"`{name}` has {len(value)} letters, and the limit is {MOST_LETTERS}")
    if not isinstance(value, np.ndarray):
        return value
    array = value.copy()  # it may be a read-only view of the message
    if spec.kind is not Kind.IMAGE or array.ndim != 3 or array.dtype != np.uint8:
        return array
    height, width = (int(size) for size in spec.dims[-2:])
    image = torch.from_numpy(np.ascontiguousarray(_channels_first(name, array, (height, width))))
    return _resized(name, image, (height, width))


def _channels_first(name: str, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    first, last = image.shape[0] == 3, image.shape[-1] == 3
    if first and last and image.shape != (3, *size):
        raise SpecError(
            f"the image `{name}` has shape {image.shape}, in which the channels may be first or last",
            help=f"send it as {(3, *size)}",
        )
    return np.moveaxis(image, -1, 0) if last and not first else image


def _resized(name: str, image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[0] != 3 or tuple(image.shape[1:]) == size or 0 in image.shape:
        return image  # the policy refuses another number of channels by name
    (height, width), (h, w) = size, image.shape[1:]
    if abs(w * height - h * width) > ASPECT_TOLERANCE * h * width:
        raise SpecError(
            f"the image `{name}` is {h} x {w} pixels and those of training {height} x {width} (height x width), "
            "another aspect ratio",
            help="crop it as the training images were, or send the whole image of that camera",
        )
    return resize_images(image[None, None], size)[0, 0]


def _shape(spec: Spec) -> str:
    if spec.kind is Kind.TEXT:
        return "str"
    return f"{'uint8' if spec.kind is Kind.IMAGE else 'float32'} {tuple(spec.dims[2:])}"


def _listed(names: Any) -> str:
    return ", ".join(f"`{str(name)[:80]}`" for name in list(names)[:20])


__all__ = ["Translator", "fit", "read_map"]
