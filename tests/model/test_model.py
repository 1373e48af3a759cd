"""The models hold, and each mutant of them is caught."""

from __future__ import annotations

import pytest

from tests.model.__main__ import MODELS

CASES = [
    pytest.param(run, mutant, id=f"{text.partition(':')[0]}-{mutant or 'holds'}")
    for text, run, mutants in MODELS
    for mutant in ("", *mutants)
]


@pytest.mark.parametrize(("run", "mutant"), CASES)
def test_a_model_holds_and_its_mutants_do_not(run, mutant):
    """No reachable state breaks the property; with a bug planted in the model one does."""
    result = run(mutant)

    assert bool(result.wrong) == bool(mutant), (result.wrong, result.trace)
