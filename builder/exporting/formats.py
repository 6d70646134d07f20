"""Formats of exported policies: how each is written, and how it is run."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...schemas.errors import SpecError
from .program import Program

Run = Callable[[Mapping[str, Tensor]], Tensor]
"""Run an exported policy: inputs by key, to chunks (B, H, A)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """A file format."""

    file: str
    """Name of the file."""
    write: Callable[[torch.export.ExportedProgram, list[str], Path], None]
    """Write a traced program, whose inputs have these names, to a file."""
    open: Callable[[Path], Run]
    """Load a file as any user of the format would."""
    packages: tuple[str, ...] = ()
    """Packages that writing and running takes."""

    def require(self) -> None:
        """Raise SpecError if a package is not installed."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise SpecError(
                    f"`{package}` is not installed", help='run `pip install "policysmith[export]"`'
                )


def trace(program: Program) -> tuple[torch.export.ExportedProgram, bool]:
    """Trace a program, and return whether the batch size of the result is free; otherwise it is 1.

    Raises:
        SpecError: A part cannot be traced.
    """
    inputs, _ = program.example()
    try:
        return _traced(program, inputs, {key: {0: torch.export.Dim("batch")} for key in inputs}), True
    except Exception as error:
        if not re.search("[Cc]onstraints violated|ConstraintViolation", str(error)):
            raise _refusal(program, error) from error
    log.warning("a part of the policy fixes the batch size, so the file is for one robot at a time")
    inputs, _ = program.example(1)
    try:
        return _traced(program, inputs, None), False
    except Exception as error:
        raise _refusal(program, error) from error


def _traced(
    program: Program, inputs: dict[str, Tensor], free: dict[str, Any] | None
) -> torch.export.ExportedProgram:
    shapes = None if free is None else (free,)
    with _quiet(), torch.no_grad():
        return torch.export.export(program, (inputs,), dynamic_shapes=shapes, strict=False)


def _refusal(program: Program, error: Exception) -> SpecError:
    depends = "data-dependent" in str(error) or "DataDependent" in type(error).__name__
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    reason = "what it does next depends on values that it has computed" if depends else first
    return SpecError(
        f"{program.stage} cannot be written to a file: {reason}",
        help="serve the policy instead, with `policysmith serve`",
    )


def _write_torch(traced: torch.export.ExportedProgram, names: list[str], path: Path) -> None:
    with _quiet():
        torch.export.save(traced, path)


def _open_torch(path: Path) -> Run:
    with _quiet():
        module = torch.export.load(path).module()
    return lambda inputs: module(dict(inputs))


def _write_onnx(traced: torch.export.ExportedProgram, names: list[str], path: Path) -> None:
    try:
        with _quiet():
            made = torch.onnx.export(
                traced, dynamo=True, input_names=names, output_names=["action"], verbose=False
            )
            assert made is not None
            made.save(path)
    except Exception as error:
        found = re.search(r"op='([\w.]+)'", str(error))
        if found is None:
            raise
        raise SpecError(
            f"ONNX has no counterpart of the operator `{found[1]}`{_user(traced, found[1])}",
            help="use `--format torch-export`",
        ) from error


def _user(traced: torch.export.ExportedProgram, operator: str) -> str:
    """Return which part runs an operator, if the traced program still has it by its name."""
    name = operator.rpartition(".")[2]
    for node in traced.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "_opname", "") == name:
            places = [place for place, _ in (node.meta.get("nn_module_stack") or {}).values()]
            return f", which `{places[-1].removeprefix('policy.')}` runs" if places else ""
    return ""


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of optimizations that it leaves out
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    read = {entry.name for entry in session.get_inputs()}

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        arrays = {key: value.numpy() for key, value in inputs.items() if key in read}
        return torch.from_numpy(session.run(["action"], arrays)[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch about itself while it traces; what fails is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS = {
    "torch-export": Format("policy.pt2", _write_torch, _open_torch),
    "onnx": Format("policy.onnx", _write_onnx, _open_onnx, ("onnx", "onnxruntime", "onnxscript")),
}
"""Formats by name."""

__all__ = ["FORMATS", "Format", "Run", "trace"]
