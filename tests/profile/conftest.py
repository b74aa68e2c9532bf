"""A profile that uses every field, as a document and as a `Profile`."""

import copy
from typing import Any

import pytest
from profile_document import DOCUMENT

from sinkscope.profile import Profile


@pytest.fixture
def document() -> dict[str, Any]:
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def profile() -> Profile:
    return Profile.model_validate(DOCUMENT)
