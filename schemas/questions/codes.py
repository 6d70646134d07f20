"""The page of every error and warning: its cause, its cure, and a recipe that has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ..diagnostics import Code, ErrorCode, WarningCode


@dataclass(frozen=True)
class CodePage:
    """Explanation of a code.

    Attributes:
        cause: The rule that the recipe breaks, or the doubt, and its reason.
        cure: Ways to mend it.
        example: YAML over a good recipe, or after `-o ` an override, that has the error.
    """

    cause: str
    cure: str
    example: str


PAGES: dict[Code, CodePage] = {
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
    "E014 missing-package": CodePage(
        "An option needs a package that does not come with policysmith, such as that of a tracker.",
        "Install the extra that the message names, or take the option out.",
        "training: {track: [wandb]}",
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
    "W001 not-normalized": CodePage(
        "Actions or states reach the network in units of the robot. Dimensions with a large spread dominate the loss, "
        "and networks start far from the values that they have to predict.",
        "Add `{type: normalize, mode: mean_std}` to `transforms`. It is inverted for the actions that a robot executes.",
        "transforms: [{type: resize, size: 32}, {type: normalize_image, stats: half}]",
    ),
    "W002 frozen-random-weights": CodePage(
        "A backbone is frozen, and nothing has trained it: neither `pretrained` weights nor `policy.init`. It passes on "
        "random features.",
        "Set its `pretrained`, start from a trained policy, or do not freeze it.",
        "policy: {freeze: ['backbones.vision.*']}",
    ),
    "W003 warmup-unfinished": CodePage(
        "The learning rate rises over more steps than the run takes, so it never reaches `training.optimizer.lr`.",
        "Shorten `training.schedule.warmup`, or take more steps. A few per cent of the steps is common.",
        "training: {schedule: {warmup: 100000}}",
    ),
    "W004 no-effect": CodePage(
        "An option is set that another one, or this way of running, disables.",
        "Remove it, or change the option that the message names.",
        "training: {save_every: 10, save_minutes: 5.0}",
    ),
    "W005 epochs": CodePage(
        "Steps times samples a step see less than a tenth of the training frames, or each of them more than 10,000 times. "
        "Either is often a slip in `steps`, `batch_size`, `episodes` or `validation`.",
        "Change the steps, or silence the warning for a trial run: `silence: [W005]`.",
        "training: {steps: 1}",
    ),
    "W006 out-of-memory": CodePage(
        "Weights, gradients and the optimizer alone take more memory than this machine has.",
        "`policysmith summary RECIPE` lists what would make it fit: low-rank adapters (`lora`), 8-bit optimizer states, "
        "frozen backbones, sharding, a smaller model.",
        "policy: {head: {width: 1048576}}",
    ),
    "W007 base-differs": CodePage(
        "The policy starts from weights that were trained with other options, at another rate or on other values, so "
        "they may mean something else here.",
        "Compare the recipes with `policysmith diff`, and set what differs, or `policy.init: {statistics: recompute}`.",
        "policy: {init: trained, execute: 1}",
    ),
    "W008 frame-rates": CodePage(
        "Robots record at different rates, so that the same number of actions lasts differently.",
        "Resample one of the datasets, or silence the warning.",
        "data: {path: null, sources: {left: {path: slow}, right: {path: fast}}}",
    ),
    "W009 dropped-column": CodePage(
        "A column of the dataset holds NaN, infinities or images stored as numbers. Nothing reads it, so it is left out.",
        "Leave it out on purpose: `data: {columns: {observation.torque: null}}`.",
        "data: {path: with_nan}",
    ),
    "W010 poor-statistics": CodePage(
        "The data does not suit a transform: percentiles of a dimension coincide, or clipping removes most of its range.",
        "Choose the mode that the message suggests, or repair the data.",
        "transforms: [{type: normalize_image, stats: imagenet}, {type: normalize, mode: quantiles}]",
    ),
    "W011 long-window": CodePage(
        "A sample reads more observations than the longest episode has frames. Those before the start repeat the first.",
        "Lower `data.observation_steps`.",
        "data: {observation_steps: 1000}",
    ),
    "W012 large-validation": CodePage(
        "More episodes are held out for validation than train.",
        "Lower `data.validation`; 0.1 is common.",
        "data: {validation: 0.9}",
    ),
}
CODES: tuple[Code, ...] = (*get_args(ErrorCode), *get_args(WarningCode))


def page_of(topic: str) -> tuple[Code, CodePage] | None:
    """Return the code and page of a topic such as `E003` or `unknown-key`; None for other topics."""
    for code, page in PAGES.items():
        if topic.casefold() in (code.casefold(), *code.casefold().split(" ")):
            return code, page
    return None
