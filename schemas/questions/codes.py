"""The page of every error code: its cause, its cure, and a recipe that has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ..diagnostics import ErrorCode


@dataclass(frozen=True)
class CodePage:
    """Explanation of an error code.

    Attributes:
        cause: The rule that the recipe breaks, and its reason.
        cure: Ways to mend it.
        example: YAML over a good recipe, or after `-o ` an override, that has the error.
    """

    cause: str
    cure: str
    example: str


PAGES: dict[ErrorCode, CodePage] = {
    "E001 invalid-yaml": CodePage(
        "The text is not YAML 1.2, so it has no keys and values to look at.",
        "Look at the marked place and the line above it: a missing colon, bracket, quote or space is most common. "
        "Indent with spaces.",
        "training: {steps: 100",
    ),
    "E002 duplicate-key": CodePage(
        "A mapping has the same key twice. YAML parsers silently keep the last one; recipes do not.",
        "Remove one of the two lines.",
        "training: {steps: 100, steps: 200}",
    ),
    "E003 unknown-key": CodePage(
        "A section or a part has no such key. Keys that have no effect are refused, because they look as if they had.",
        "Correct the spelling, or move the key to the place that the message suggests. `policysmith explain` lists "
        "the keys of a section or part.",
        "policy: {head: {feedfoward: 64}}",
    ),
    "E004 missing-key": CodePage(
        "A section or a part needs a key that has no default.",
        "Add the key; the notes list the choices.",
        "policy: {necks: {pooled: {reads: [vision]}}}",
    ),
    "E005 wrong-type": CodePage(
        'A value has the wrong type. Types are strict: `"8"` is a string and `8.0` is not an integer.',
        "Write the value as the label shows.",
        "training: {steps: many}",
    ),
    "E006 unknown-type": CodePage(
        "No part or policy is registered under this `type`.",
        "Correct the spelling, or register your own part in a file under `imports:` and run with `--allow-imports`. "
        "`policysmith list` shows all types.",
        "policy: {head: {type: mpl}}",
    ),
    "E007 invalid-value": CodePage(
        "A value has the right type, but lies outside its range or choices.",
        "Choose a value within the limits that the message states.",
        "training: {steps: 0}",
    ),
    "E008 refused-yaml": CodePage(
        "The text is YAML that recipes do not allow: tags, several documents, directives, or a size or depth that "
        "no recipe needs.",
        "Delete the marked part. Recipes are plain data.",
        "meta: !!python/name:os.system {}",
    ),
    "E009 unreadable-file": CodePage(
        "The recipe, or a recipe under `base`, does not exist, cannot be read, or is not UTF-8 text.",
        "Check the path. A base is relative to the recipe that names it.",
        "base: missing.yaml",
    ),
    "E010 bad-override": CodePage(
        "An override does not have the form `path=value` or `~path`, or its path does not exist.",
        "Count list items from 0, and quote keys that contain a dot.",
        "-o transforms.7.type=resize",
    ),
    "E011 import-refused": CodePage(
        "The recipe imports Python code. A recipe from elsewhere could run anything, so this needs your consent.",
        "Read the files, then add `--allow-imports`.",
        "imports: [own_parts.py]",
    ),
    "E012 import-failed": CodePage(
        "A file or module under `imports:`, or the module of a part, raised an error.",
        "Run the file with Python to see the whole traceback.",
        "imports: [missing_module]",
    ),
    "E013 bad-reference": CodePage(
        "A `${...}` names a variable that does not exist, an environment variable that is not set, or has another "
        "form. A variable that nothing refers to is also an error.",
        "Define the variable under `vars:`, or write a default: `${env:NAME:-value}`. `$${` writes a plain `${`.",
        "training: {steps: '${vars.steps}'}",
    ),
    "E020 bad-wiring": CodePage(
        "Parts do not fit together: a part reads an output that does not exist or has another kind, or an option "
        "contradicts another.",
        "Follow the label; related places are marked as well.",
        "policy: {head: {reads: [visoin.tokens, proprio.pooled]}}",
    ),
    "E021 dim-mismatch": CodePage(
        "Two sizes contradict each other. A size in a recipe is an assertion.",
        "Change one of the marked sizes, or remove it: sizes follow from the data and the parts.",
        "policy: {backbones: {vision: null}, head: {type: mlp, in_dim: 3}}",
    ),
    "E022 missing-input": CodePage(
        "A part reads a camera, a state or an instruction that the data does not have.",
        "Read one that it has, or map columns: `data: {columns: {observation.state: [arm, gripper]}}`.",
        "policy: {backbones: {proprio: {reads: [observation.torque]}}}",
    ),
    "E023 bad-dataset": CodePage(
        "The dataset does not exist, is damaged, or contradicts the `data` section.",
        "`policysmith data info DIR` shows what a dataset holds. Paths are relative to the recipe.",
        "data: {path: missing_dataset}",
    ),
    "E024 bad-weights": CodePage(
        "Pretrained weights do not exist, cannot be downloaded, or do not fit the part.",
        "Check the path or the name on the hub; without a network, download them first.",
        "policy: {backbones: {vision: {pretrained: missing_weights.safetensors}}}",
    ),
    "E025 unknown-embodiment": CodePage(
        "A robot is named that the data does not have, or has to be named because there are several.",
        "Name one of the entries of `data.sources`.",
        "data: {path: null, sources: {left: {path: left}, right: {path: right}}}\n"
        "evaluation: {env: metaworld/drawer-open-v3, embodiment: rigth}",
    ),
}
CODES: tuple[ErrorCode, ...] = get_args(ErrorCode)


def page_of(topic: str) -> tuple[ErrorCode, CodePage] | None:
    """Return the code and page of a topic such as `E003` or `unknown-key`; None for other topics."""
    for code, page in PAGES.items():
        if topic.casefold() in (code.casefold(), *code.casefold().split(" ")):
            return code, page
    return None
