"""Conversion of a policysmith policy for LeRobot's commands.

python -m lerobot_policy_policysmith runs/act act_lerobot
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lerobot.configs import FeatureType, PolicyFeature

import policysmith

from . import PolicysmithConfig, PolicysmithPolicy, make_policysmith_pre_post_processors


def convert(run_or_checkpoint: str | Path, output: Path) -> None:
    """Write a trained policy as LeRobot saves policies: config, weights and processors.

    Raises:
        FileExistsError: The directory is not empty.
        CheckpointError: The policy is missing, damaged or hand-written.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; choose another directory")
    model = policysmith.load(run_or_checkpoint)
    if not hasattr(model, "collator") or not hasattr(model, "head"):
        raise policysmith.CheckpointError("a hand-written policy cannot be run by LeRobot; serve it instead")
    config = PolicysmithConfig(content=json.dumps(model.content), device="cpu", push_to_hub=False)
    config.input_features = {
        key: PolicyFeature(
            type=FeatureType.VISUAL if key.startswith("observation.images.") else FeatureType.STATE,
            shape=tuple(spec.dims[2:]),
        )
        for key, spec in model.observed.required.items()
        if key.startswith("observation.")
    }
    width = len(model.content["statistics"]["action"]["mean"])
    config.output_features = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(width,))}
    policy = PolicysmithPolicy(config)
    policy.model.load_state_dict(model.state_dict())
    policy.model._assets = model._assets
    policy.save_pretrained(output)
    for processor in make_policysmith_pre_post_processors(config):
        processor.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="lerobot_policy_policysmith", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT_OR_RUN")
    parser.add_argument("output", metavar="DIR", type=Path)
    arguments = parser.parse_args()
    try:
        convert(arguments.checkpoint, arguments.output)
    except (policysmith.PolicysmithError, FileExistsError) as error:
        sys.exit(f"error: {error}")
