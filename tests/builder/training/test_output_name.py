"""Names of runs that are not valid directory names."""

from __future__ import annotations

from pathlib import Path

import pytest

from policysmith.builder.runs import held
from policysmith.schemas.errors import CheckpointError


def test_an_output_with_too_long_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="choose another `--output`"), held(tmp_path / ("a" * 5000)):
        pass
