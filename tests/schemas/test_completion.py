"""Shell completion: what is offered for the word under the cursor, and the scripts that ask for it."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from policysmith.schemas import console
from policysmith.schemas.arguments import policysmith
from policysmith.schemas.questions.completion import SCRIPTS, candidates

ACT = str(Path(__file__).parents[2] / "recipes" / "tiny" / "act.yaml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["che"], ["check"]),
        (["data", "rec"], ["record"]),
        (["data", ""], ["record", "info", "stats", "check", "convert", "edit"]),
        (["check", ACT, "--fi"], ["--fix"]),
        (["check", ACT, "--format", "s"], ["sarif"]),
        (["list", "ba"], ["backbones"]),
        (["explain", "heads.ml"], ["heads.mlp"]),
        (["explain", "W00"], [f"W00{n}" for n in range(1, 10)]),
        (["explain", "training.sched"], ["training.schedule"]),
        (["check", ACT, "-o", "training.sched"], ["training.schedule."]),
        (["check", ACT, "-o", "policy.head.w"], ["policy.head.width="]),
        (["check", ACT, "-o", "~policy.ba"], ["~policy.backbones."]),
        (["check", ACT, "-o", "policy.backbones.p"], ["policy.backbones.proprio."]),
        (["check", ACT, "-o", "transforms.1."], None),
        (["check", "-o", "training.compile=b"], ["training.compile=blocks"]),
        (["check", ""], []),
        (["train", ACT, ""], []),
        (["nonsense", ""], []),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_the_word_under_the_cursor(words: list[str], expected: list[str] | None) -> None:
    found = candidates(words)
    if expected is None:
        assert {"transforms.1.mode=", "transforms.1.type="} <= set(found)
    elif words[0] == "nonsense":
        assert "check" in found
    else:
        assert found == expected


@pytest.mark.parametrize("verb", policysmith().verbs)
def test_every_verb_and_flag_is_offered(verb: str) -> None:
    parser = policysmith().verbs[verb]
    assert verb in candidates([verb[:3]])
    for action in parser.arguments:
        assert set(action.option_strings) <= set(candidates([verb, "-"]))


def test_an_invalid_recipe_completes_without_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("policy: {")
    assert candidates(["check", str(path), "-o", "policy.head."]) == ["policy.head.type="]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_of_a_shell_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.policysmith(["completion", shell]) == console.OK
    script = capsys.readouterr().out
    assert "policysmith --complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_bash_completes() -> None:
    answer = "from policysmith.schemas.console import policysmith as p; import sys; sys.exit(p(sys.argv[1:]))"
    script = f"""
policysmith() {{ "{sys.executable}" -c "{answer}" "$@"; }}
compopt() {{ :; }}
{SCRIPTS["bash"]}
COMP_WORDS=(policysmith check x.yaml -o training.sche); COMP_CWORD=4
_policysmith
printf '%s' "${{COMPREPLY[*]}}"
"""
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout == "training.schedule."


LIGHT = """
import sys
from policysmith.schemas.console import policysmith
code = policysmith(sys.argv[1:])
assert not {"torch", "transformers", "pydantic", "numpy"} & sys.modules.keys()
sys.exit(code)
"""


def test_completion_takes_little_time() -> None:
    """Each press of the Tab key starts a process: 0.35 s of processor time more than `python -c pass`."""

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", *command], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    words = ["--complete", "check", ACT, "-o", "policy.head.w"]
    taken = min(seconds(LIGHT, *words) for _ in range(3)) - seconds("pass")
    assert taken < 0.35
