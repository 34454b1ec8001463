"""What the end-to-end tests share."""

from __future__ import annotations

import pytest

from backend.library.files import ModelFiles
from tests.end_to_end.answers import Expected, greedy_answers


@pytest.fixture(scope="session")
def expected(starter: ModelFiles) -> list[Expected]:
    return greedy_answers(starter)
