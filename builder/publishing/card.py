"""The model card of a policy, written from its run: `README.md` as the Hugging Face hub expects it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..data.hub import HubDataset
from ..data.lerobot.files import read_json
from ..saved_policy import SavedPolicy

CARD = "README.md"


def model_card(saved: SavedPolicy, repository: str | None = None, *, file: str | None = None) -> str:
    """Return the model card of a policy.

    Args:
        saved: The policy on disk; if it is in a run, the newest evaluations of this checkpoint are cited.
        repository: Name on the hub, `organization/name`, for the commands in the card.
        file: Name of the exported file beside the card, if it is not of a checkpoint.
    """
    name = saved.recipe.get("name") or "policy"
    results = list(evaluations(saved))
    data = ModelCardData(
        model_name=name,
        library_name="policysmith",
        pipeline_tag="robotics",
        tags=[
            "robotics",
            "policysmith",
            saved.recipe["policy"].get("type") or saved.recipe["policy"]["head"]["type"],
        ],
        datasets=[found for found in _datasets(saved) if found] or None,
        eval_results=[_as_metric(result["closed_loop"]) for result in results if result.get("closed_loop")]
        or None,
    )
    body = "\n".join(
        [
            f"# {name}",
            "",
            "A policy for robot manipulation, trained with policysmith.",
            *_section("Success", _success(results)),
            *_section("Use", _use(saved, repository or saved.directory.name, file)),
            *_section("Recipe", _recipe(saved)),
            *_section("Data", _data(saved)),
            *_section("Training", _training(saved)),
        ]
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def evaluations(saved: SavedPolicy) -> Iterator[dict[str, Any]]:
    """Yield the results of evaluations of this very checkpoint, as `result.json` holds them."""
    sources = [saved.run, saved.directory] if saved.run is not None else [saved.directory]
    for source in sources:
        for path in sorted((source / "evaluation").rglob("result.json")):
            result = read_json(path)
            if result.get("checkpoint") == saved.directory.name:
                yield result


def _section(title: str, lines: Iterator[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _success(results: list[dict[str, Any]]) -> Iterator[str]:
    judged = [result for result in results if result.get("closed_loop")]
    if not judged:
        yield "Not measured in closed loop."
        return
    yield "| environment | episodes | successes | rate | 95 % interval (Wilson) | policy |"
    yield "|---|---|---|---|---|---|"
    for result in judged:
        for kind in ("closed_loop", "control"):
            if (found := result.get(kind)) is None:
                continue
            low, high = (100 * end for end in found["interval_95"])
            which = "this one" if kind == "closed_loop" else "the same recipe without cameras"
            yield (
                f"| `{found['env']}` | {found['n']} | {found['successes']} | {100 * found['success_rate']:.0f} % "
                f"| {low:.0f} to {high:.0f} % | {which} |"
            )
    for result in judged:
        yield f"\nMeasured on {_listed(result.get('hardware', {}))} with `{result['command']}`."


def _as_metric(closed: Mapping[str, Any]) -> EvalResult:
    low, high = (100 * end for end in closed["interval_95"])
    return EvalResult(
        task_type="robotics",
        dataset_type=closed["env"].partition("/")[0],
        dataset_name=closed["env"],
        metric_type="success_rate",
        metric_name=f"success rate of {closed['n']} episodes (95 % interval {low:.0f} to {high:.0f} %)",
        metric_value=round(100 * closed["success_rate"], 1),
    )


def _use(saved: SavedPolicy, place: str, file: str | None) -> Iterator[str]:
    if file is not None:
        loading = {".pt2": "torch.export.load", ".onnx": "onnxruntime.InferenceSession"}[Path(file).suffix]
        yield f'`{loading}("{file}")` runs it without policysmith; `policy.json` names its inputs and outputs.'
        return
    imports = (
        ", and read the code under `imports:` of the recipe first: it needs `--allow-imports`"
        if saved.recipe.get("imports")
        else ""
    )
    yield f"Run `pip install policysmith`{imports}."
    yield ""
    yield "```python"
    yield "import policysmith.builder"
    yield "from transformers import AutoModel"
    yield ""
    yield f'policy = AutoModel.from_pretrained("{place}")'
    yield "action = policy.select_action(observation)"
    yield "```"
    yield ""
    yield "```bash"
    yield f"hf download {place} --local-dir policy"
    yield "policysmith serve policy"
    yield "```"


def _recipe(saved: SavedPolicy) -> Iterator[str]:
    policy = saved.recipe["policy"]
    for kind in ("backbones", "necks"):
        for name, part in (policy.get(kind) or {}).items():
            yield f"- {kind.removesuffix('s')} `{name}`: `{part['type']}`"
    yield f"- head: `{policy['head']['type']}`" if "head" in policy else f"- policy: `{policy['type']}`"
    digest = saved.content.get("provenance", {}).get("recipe_sha256")
    yield f"\nThe whole recipe is in `config.json`; its SHA-256 is `{digest}`." if digest else ""


def _data(saved: SavedPolicy) -> Iterator[str]:
    provenance = saved.content.get("provenance", {})
    for robot in saved.robots.names or (None,):
        section = saved.data_section(robot)
        fingerprint = saved.fingerprint(robot) if robot else provenance.get("dataset")
        path = str(section["path"])
        shown = path if HubDataset.parse(path) else Path(path).name
        yield f"- {f'{robot}: ' if robot else ''}`{shown}`, fingerprint `{fingerprint or 'unknown'}`"
    for key, spec in saved.specs.items():
        yield f"- `{key}`: {spec}"


def _datasets(saved: SavedPolicy) -> Iterator[str | None]:
    for robot in saved.robots.names or (None,):
        found = HubDataset.parse(str(saved.data_section(robot)["path"]))
        yield found.name if found else None


def _training(saved: SavedPolicy) -> Iterator[str]:
    training = saved.recipe["training"]
    step = re.search(r"\d+$", saved.directory.name)
    steps = f"{int(step[0]):,} of {training['steps']:,}" if step else f"{training['steps']:,}"
    yield f"- steps: {steps}, batch size {training['batch_size']}, seed {training['seed']}"
    if hardware := saved.description.get("hardware"):
        yield f"- hardware: {_listed(hardware)}"
    versions = saved.content.get("provenance", {}).get("versions", {})
    yield f"- versions: {', '.join(f'{name} {found}' for name, found in versions.items())}"


def _listed(hardware: Mapping[str, str]) -> str:
    return ", ".join(hardware[kind] for kind in ("gpu", "cpu") if kind in hardware) or "unknown hardware"


__all__ = ["CARD", "evaluations", "model_card"]
