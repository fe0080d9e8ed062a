"""A run that changes nothing stays cheap: the number of modules that it executes, by role."""

from __future__ import annotations

import pytest
import yaml
from module_executions import COUNTED, TABLE, counts, grown, last_no_change_run


def test_no_role_executes_more_modules_than_its_table_allows() -> None:
    run = last_no_change_run(COUNTED)
    if run is None:
        pytest.fail(f"Molecule's step idempotence counts, and {COUNTED} holds none of it: ./run molecule idempotence")
    problems = grown(counts(run), yaml.safe_load(TABLE.read_text(encoding="utf-8")))
    assert not problems, (
        "\n".join(problems) + "\nDo it in fewer, or, if it has to be, make the table again: "
        "python tests/module_executions.py --write"
    )
