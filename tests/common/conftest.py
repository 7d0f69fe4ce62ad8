"""Fixtures of the tests of object stores."""

from collections.abc import Iterator

import pytest

from tests.object_store import ObjectStore, object_store


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def s3(server: ObjectStore) -> Iterator[ObjectStore]:
    yield server
    server.fault = lambda request: None
    if server.system.exists("clips/set"):
        server.system.rm("clips/set", recursive=True)
    server.requests.clear()
