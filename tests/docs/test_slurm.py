"""The batch files of the documentation: their syntax, and the commands that they run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from policysmith.schemas.arguments import policysmith

FOLDER = Path(__file__).parents[2] / "docs" / "slurm"
FAKE = {
    "policysmith": 'printf "%s\\n" policysmith "$@" >> "$TOLD"',
    "srun": '"$@"',
    "torchrun": 'printf "%s\\n" "$@" >> "$TOLD"',
    "scontrol": "echo first; echo second",
}


@pytest.mark.parametrize("name", ["sweep.sbatch", "multi_node.sbatch"])
def test_a_batch_file_runs_a_command_that_exists(name: str, tmp_path: Path) -> None:
    text = (FOLDER / name).read_text()
    assert text.startswith("#!/bin/bash\n")
    assert "#SBATCH --" in text
    for program, code in FAKE.items():
        (tmp_path / program).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / program).chmod(0o755)
    told = tmp_path / "told"
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "TOLD": str(told),
        "SLURM_ARRAY_TASK_ID": "4",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
    }
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)
    subprocess.run(["bash", str(FOLDER / name)], check=True, env=environment, cwd=tmp_path)
    words = told.read_text().splitlines()
    if "--rdzv-endpoint" in words:
        assert words[words.index("--rdzv-endpoint") + 1] == "first:29500"
        assert words[words.index("--nnodes") + 1] == "2"
    args = policysmith().parse_args(words[words.index("policysmith") + 1 :])
    assert args.function == "train"
    assert args.resume
    if name == "sweep.sbatch":
        assert args.override == ["training.optimizer.lr=3e-4", "policy.head.hidden=[512]"]
