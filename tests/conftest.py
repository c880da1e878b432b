"""What every test shares: no settings from the developer's environment, e2e tests marked."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Slow machines are no failures, and a red run must be red again when it is repeated.
settings.register_profile("entrogate", deadline=None, derandomize=True)
settings.load_profile("entrogate")

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ENTROGATE_"):
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE / "e2e"):
            item.add_marker(pytest.mark.e2e)
