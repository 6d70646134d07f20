"""Specs survive JSON, as a checkpoint holds them."""

from __future__ import annotations

import json

import pytest

from policysmith.schemas.specs import Kind, Range, Spec


@pytest.mark.parametrize(
    "spec",
    [
        Spec(Kind.IMAGE, ("B", 1, 3, 96, 96), "camera `top`", range=Range.BYTES),
        Spec(Kind.STATE, ("B", 1, 4), range=Range.NORMALIZED),
        Spec(Kind.TOKEN_IDS, ("B", "L"), vocab=7),
        Spec(Kind.TOKENS, ("B", 6, 8), grid=(1, 2, 3)),
        Spec(Kind.IMAGE, ("B", 1, 3, 8, 8), normalized_by=((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))),
    ],
)
def test_round_trip(spec: Spec) -> None:
    again = Spec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert type(again.range) is type(spec.range)


def test_specs_of_an_older_checkpoint_are_read() -> None:
    older = {"kind": "image", "dims": ["B", 1, 3, 8, 8]}
    assert Spec.from_json(older).range is None
    taken = [[0.5, 0.4, 0.3], [0.2, 0.2, 0.2]]
    spec = Spec.from_json({**older, "range": "normalised", "normalised_by": taken})
    assert spec.range is Range.NORMALIZED
    assert spec.normalized_by == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
