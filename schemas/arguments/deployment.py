"""Flags of the verbs that bring a trained policy to robots."""

from __future__ import annotations

from .parser import (
    Parser,
    add_checkpoint,
    add_device,
    add_format,
    add_imports,
    add_verify,
    count,
    port,
    positive,
    spread,
)

GROUP = "policies"


def add(parser: Parser) -> None:
    """Add the verbs that bring a trained policy to robots."""
    _add_serve(parser)
    _add_rollout(parser)
    _add_bench(parser)


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
    serve.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision of the weights (default: bfloat16 on a GPU, float32 elsewhere)",
    )
    add_imports(serve)
    add_verify(serve)
    add_device(serve)


def _add_rollout(parser: Parser) -> None:
    rollout = parser.add_verb(
        GROUP,
        "rollout",
        "rollout",
        "drive a robot with a trained policy, and record what happens",
        "policysmith rollout runs/vit_mlp --robot metaworld/drawer-open-v3",
        "policysmith rollout --server ws://127.0.0.1:8000 --robot my_arm.py:Arm --record recorded --episodes 10",
    )
    rollout.set_defaults(module="builder.robots.command")
    rollout.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT_OR_RUN",
        help="a checkpoint, or a run for its last checkpoint; or name a server",
    )
    rollout.add_argument("--server", metavar="URL", help="drive it with the policy of `policysmith serve`")
    rollout.add_argument("--token", help="token of the server (default: that of POLICYSMITH_TOKEN, if set)")
    rollout.add_argument(
        "--patience",
        type=spread,
        default=5.0,
        metavar="S",
        help="seconds to connect again after a loss of the server (default: 5)",
    )
    rollout.add_argument(
        "--robot", required=True, help="an environment, such as metaworld/drawer-open-v3, or FILE.py:CLASS"
    )
    rollout.add_argument("--embodiment", help="name of this robot, for a policy for several")
    rollout.add_argument("--episodes", type=positive, default=1, help="number of episodes (default: 1)")
    rollout.add_argument(
        "--seed", type=count, default=10_000, help="seed of the first episode (default: 10000)"
    )
    rollout.add_argument("--max-steps", type=positive, help="step limit (default: that of the robot)")
    rollout.add_argument("--clamp", action="store_true", help="clamp actions to the range of training")
    rollout.add_argument(
        "--watchdog",
        type=spread,
        default=0.5,
        metavar="S",
        help="stop the robot after so many seconds without an action (default: 0.5)",
    )
    rollout.add_argument(
        "--record", metavar="DIR", help="new directory for a LeRobot dataset of the episodes"
    )
    rollout.add_argument(
        "--think-ahead",
        choices=("plain", "continue"),
        help="predict the next chunk while the current one runs; `continue` continues it (real-time chunking)",
    )
    rollout.add_argument(
        "--late",
        choices=("hold", "wait"),
        default="hold",
        help="without an action in time, repeat the last one or wait (default: hold)",
    )
    rollout.add_argument(
        "--simulated-delay",
        type=count,
        default=0,
        metavar="STEPS",
        help="control steps that thinking ahead takes in a simulator, whose time stands still (default: 0)",
    )
    add_imports(rollout)
    add_verify(rollout)
    add_device(rollout)


def _add_bench(parser: Parser) -> None:
    bench = parser.add_verb(
        GROUP,
        "bench",
        "bench",
        "measure how long a trained policy takes for a chunk of actions, and where the time goes",
        "policysmith bench runs/act",
        "policysmith bench runs/act --device cuda --precision float32 --batch 4",
    )
    bench.set_defaults(module="builder.inference.command")
    add_checkpoint(bench)
    bench.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision of the engine (default: auto, bfloat16 on a GPU and float32 elsewhere)",
    )
    bench.add_argument("--batch", type=positive, default=1, help="observations at a time (default: 1)")
    bench.add_argument("--repeats", type=positive, default=100, help="chunks to time (default: 100)")
    bench.add_argument(
        "--compile", action="store_true", help="compile layers too, which takes up to minutes at the start"
    )
    add_format(bench, "json")
    add_imports(bench)
    add_verify(bench)
    add_device(bench)
