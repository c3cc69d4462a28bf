"""Fixtures of S3 servers, started when the first test asks; see s3_servers.py and hostile_s3.py.

The real servers serve a whole session, so a test takes a bucket of its own: ``moto.new_bucket()``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hostile_s3 import HostileS3
from s3_servers import (
    Certificate,
    S3Server,
    certificate,
    running_moto,
    running_rclone,
    running_versitygw,
)

if TYPE_CHECKING:
    from tests.conftest import Fastsync


@pytest.fixture(scope="session")
def tls_certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """With versions, for buckets that ask for them."""
    with running_versitygw(tmp_path_factory.mktemp("versitygw"), versions=True) as server:
        yield server


@pytest.fixture(scope="session")
def versitygw_tls(
    tmp_path_factory: pytest.TempPathFactory, tls_certificate: Certificate
) -> Iterator[S3Server]:
    with running_versitygw(tmp_path_factory.mktemp("versitygw"), tls_certificate) as server:
        yield server


@pytest.fixture
def s3(fastsync: Fastsync, versitygw: S3Server) -> S3Server:
    """The server that most tests of the command take, and that the command is led to."""
    fastsync.environ |= versitygw.environ
    return versitygw


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.new_bucket()


@pytest.fixture
def hostile_s3() -> Iterator[HostileS3]:
    """Empty, honest and without a script: all of that is the test's."""
    with HostileS3() as server:
        yield server


@pytest.fixture
def trap() -> Iterator[HostileS3]:
    """Another host, for what should never go there: its `requests` are asserted to be none."""
    with HostileS3() as server:
        yield server
