"""Flags of the verbs about trained policies."""

from __future__ import annotations

from .parser import Parser, add_checkpoint, add_device, add_imports, add_verify, count, positive

GROUP = "policies"


def add(parser: Parser) -> None:
    """Add the verbs about trained policies."""
    _add_evaluate(parser)

    export = parser.add_verb(
        GROUP,
        "export",
        "export",
        "write a trained policy as a checkpoint, or as one file to run elsewhere",
        "policysmith export runs/vit_mlp --output exported",
        "policysmith export runs/act --output act_onnx --format onnx",
        "policysmith export runs/pi0_lora --output exported --merge",
    )
    add_checkpoint(export)
    export.add_argument("--output", metavar="DIR", required=True, help="new directory")
    export.add_argument(
        "--format",
        choices=("checkpoint", "torch-export", "onnx"),
        default="checkpoint",
        help="form of the policy (default: checkpoint)",
    )
    export.add_argument("--merge", action="store_true", help="merge low-rank adapters into the weights")
    add_imports(export)
    add_verify(export)

    push = parser.add_verb(
        GROUP,
        "push",
        "push",
        "upload a trained policy to the Hugging Face hub, with a model card",
        "policysmith push runs/vit_mlp my-lab/drawer-open",
        "policysmith push runs/vit_mlp my-lab/drawer-open --private --revision seed-1",
    )
    push.set_defaults(module="builder.publishing.command")
    add_checkpoint(push)
    push.add_argument("repository", metavar="ORGANIZATION/NAME", help="repository, created if it is missing")
    push.add_argument("--private", action="store_true", help="create a private repository")
    push.add_argument("--revision", metavar="BRANCH", help="branch, created if it is missing (default: main)")

    import_lerobot = parser.add_verb(
        GROUP,
        "import-lerobot",
        "import_lerobot",
        "convert a LeRobot policy into a checkpoint",
        "policysmith import-lerobot act_aloha --data datasets/aloha --output imported",
    )
    import_lerobot.add_argument("directory", metavar="DIR", help="LeRobot policy: config.json and weights")
    import_lerobot.add_argument(
        "--data", metavar="PATH", required=True, help="LeRobot dataset with its observations and actions"
    )
    import_lerobot.add_argument(
        "--output", metavar="DIR", required=True, help="directory of the new checkpoint"
    )

    export_lerobot = parser.add_verb(
        GROUP,
        "export-lerobot",
        "export_lerobot",
        "convert a trained policy into a LeRobot policy",
        "policysmith export-lerobot runs/act --output act_lerobot",
    )
    add_checkpoint(export_lerobot)
    export_lerobot.add_argument("--output", metavar="DIR", required=True, help="new directory for the policy")


def _add_evaluate(parser: Parser) -> None:
    evaluate = parser.add_verb(
        GROUP,
        "evaluate",
        "evaluate",
        "evaluate a trained policy, in simulation and on held-out episodes",
        "policysmith evaluate runs/vit_mlp",
        "policysmith evaluate runs/vit_mlp --env metaworld/drawer-open-v3 --episodes 50 --control blind",
        "policysmith evaluate runs/vit_mlp --open-loop",
    )
    add_checkpoint(evaluate)
    evaluate.add_argument("--env", help="environment (default: that of the recipe)")
    evaluate.add_argument("--embodiment", help="robot to evaluate, of several (default: that of the recipe)")
    evaluate.add_argument(
        "--episodes", type=positive, help="number of rollouts (default: that of the recipe)"
    )
    evaluate.add_argument(
        "--seed", type=count, help="seed of the first rollout (default: that of the recipe)"
    )
    evaluate.add_argument(
        "--control", choices=("none", "blind"), help="compare with the same recipe trained without cameras"
    )
    evaluate.add_argument(
        "--open-loop", action="store_true", help="only the error on held-out episodes, without a simulator"
    )
    evaluate.add_argument("--output", metavar="DIR", help="directory of the report (default: in the run)")
    add_imports(evaluate)
    add_verify(evaluate)
    add_device(evaluate)
