"""Flags of the verbs that bring a trained policy to robots."""

from __future__ import annotations

from .parser import Parser, add_checkpoint, add_device, add_imports, add_verify, port, positive, spread

GROUP = "policies"


def add(parser: Parser) -> None:
    """Add the verbs that bring a trained policy to robots."""
    _add_serve(parser)


def _add_serve(parser: Parser) -> None:
    serve = parser.add_verb(
        GROUP,
        "serve",
        "serve",
        "serve a trained policy to robots, by openpi's websocket protocol",
        "policysmith serve runs/vit_mlp",
        "policysmith serve runs/act --map observation.images.front=images/cam_high --map task=prompt",
        "policysmith serve runs/act --host 0.0.0.0 --map robot.yaml",
    )
    serve.set_defaults(module="builder.serving.command")
    add_checkpoint(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=port, default=8000, help="port, 0 for any free one (default: 8000)")
    serve.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="KEY=KEY",
        help="key of the policy and the robot's name for it, or a YAML file of such pairs; repeatable",
    )
    serve.add_argument(
        "--token", help="token that robots must send (default: that of POLICYSMITH_TOKEN, if set)"
    )
    serve.add_argument("--max-clients", type=positive, default=16, help="most robots at once (default: 16)")
    serve.add_argument(
        "--max-message",
        type=positive,
        default=32,
        metavar="MIB",
        help="largest message in MiB (default: 32)",
    )
    serve.add_argument(
        "--max-batch", type=positive, default=8, help="most observations predicted at once (default: 8)"
    )
    serve.add_argument(
        "--batch-wait",
        type=spread,
        default=2.0,
        metavar="MS",
        help="longest wait of an observation for others, in milliseconds (default: 2)",
    )
    add_imports(serve)
    add_verify(serve)
    add_device(serve)
