from __future__ import annotations

import pytest

from tests.processes import draw_nothing


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at figures: drawing them takes longer than short runs do."""
    draw_nothing(monkeypatch.setattr)
