"""`policysmith explain`: sections, parts, options, and what is none of them."""

from __future__ import annotations

import pytest

from policysmith.schemas import console


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("policy", ["The network.", "registered parts", "freeze", "hand-written policy"]),
        ("policy.execute", ["Actions run from each chunk"]),
        ("policy.freeze", ["Glob patterns of parameters that do not train"]),
        ("training.optimizer", ["AdamW", "weight_decay"]),
        ("training.optimizer.groups.lr_scale", ["Factor on the learning rate"]),
        ("evaluation", ["Closed-loop evaluation", "control"]),
        ("backbones.vit", ["Vision Transformer", "patch_size"]),
        ("backbones.vit.patch_size", ["Side of a patch"]),
    ],
)
def test_what_is_explained(topic: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert console.policysmith(["explain", topic]) == 0
    written = capsys.readouterr().out
    assert all(word in written for word in words)


@pytest.mark.parametrize(
    ("topic", "cure"),
    [
        ("policy.nonsense", "`policy` has: type, backbones, necks, head, init, freeze, execute"),
        ("data.path.foo.bar", "`data.path` has: no options"),
        ("nonsense", "choose from: recipe, name"),
        ("backbones.vit.nonsense", "`backbones.vit` has: type, reads"),
        ("backbones", "explain one of backbones.conv"),
        ("backbones.vt", "did you mean `vit`?"),
    ],
)
def test_what_is_not_there(topic: str, cure: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.policysmith(["explain", topic]) == console.BUILD_FAILED
    assert cure in capsys.readouterr().err
