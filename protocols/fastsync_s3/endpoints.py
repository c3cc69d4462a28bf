"""How the requests to one bucket are addressed: by the name of the host or by the path."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Literal, NamedTuple

from fastsync.wire import Origin
from fastsync_s3.options import Addressing, BaseUrl

_HOST_LABELS: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# "Amazon S3 endpoints and quotas". Other partitions are left to botocore's rules.
_PARTITIONS: Final = (
    (re.compile(r"(?:us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-[0-9]+"), "amazonaws.com"),
    (re.compile(r"us-gov-[a-z]+-[0-9]+"), "amazonaws.com"),
    (re.compile(r"cn-[a-z]+-[0-9]+"), "amazonaws.com.cn"),
)
_AWS_HOST: Final = re.compile(
    r"(?:.*\.)?(?:amazonaws\.(?:com|com\.cn|eu)|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk"
    r"|csp\.hci\.ic\.gov)"
)
_REGION_IN_HOST: Final = re.compile(
    r"(?:.*\.)?s3(?:-fips)?[.-](?:dualstack\.)?([a-z]+(?:-[a-z]+)+-[0-9]+)\..*"
)


class Endpoint(NamedTuple):
    """How requests to one bucket are addressed and signed.

    `origin` is the server to connect to, `authority` the Host header, `path` what comes before "/" and
    the key: "" or "/..." without a slash at its end, encoded.
    """

    origin: Origin
    authority: str
    path: str
    style: Literal["path", "virtual"]
    region: str
    is_aws: bool


def aws_host(region: str) -> str | None:
    """The S3 endpoint of a region; None where botocore's rules have to say."""
    for regions, suffix in _PARTITIONS:
        if regions.fullmatch(region):
            return f"s3.{region}.{suffix}"
    return None


def address(
    base: BaseUrl, bucket: str, region: str, addressing: Addressing, *, is_aws: bool
) -> Endpoint:
    """How to reach a bucket at a server, or with "" the server itself.

    By the name of the host where AWS or the user wants it so and it can be: a certificate covers no
    bucket with dots, an IP address nothing in front of it.
    """
    origin = base.origin
    if not bucket:
        return Endpoint(origin, origin.authority, base.path, "path", region, is_aws)
    wants_host = addressing == "virtual" or (addressing == "auto" and is_aws)
    can_be_host = (
        _HOST_LABELS.fullmatch(bucket) is not None
        and ("." not in bucket or (origin.scheme == "http" and ".." not in bucket))
        and not _is_address(origin.host)
    )
    if wants_host and can_be_host:
        origin = origin._replace(host=f"{bucket}.{origin.host}")
        return Endpoint(origin, origin.authority, base.path, "virtual", region, is_aws)
    path = f"{base.path}/{bucket}"
    return Endpoint(origin, origin.authority, path, "path", region, is_aws)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_aws_host(host: str) -> bool:
    return _AWS_HOST.fullmatch(host) is not None


def region_in_host(host: str) -> str | None:
    """The region that the name of a host of AWS tells."""
    named = _REGION_IN_HOST.fullmatch(host)
    return named[1] if named else None
