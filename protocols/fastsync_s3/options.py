"""What a user may say about one S3 place: the settings of `StoreOptions.place`, read and checked."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias, cast

from fastsync.errors import UsageError
from fastsync.wire import Origin

Addressing: TypeAlias = Literal["path", "virtual", "auto"]

_SSE: Final = ("AES256", "aws:kms", "aws:kms:dsse")
_ADDRESSING: Final = ("path", "virtual", "auto")
_HOST: Final = re.compile(r"[A-Za-z0-9_.~-]+|[0-9A-Fa-f:.]+")
_PATH: Final = re.compile(r"(?:[A-Za-z0-9\-_.~/]|%[0-9A-Fa-f]{2})*")
# What goes into the scope of a signature; servers that are not AWS call theirs "auto" or "eu_west".
_REGION: Final = re.compile(r"[A-Za-z0-9._-]{1,63}")
_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 5.6.2
_VISIBLE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


class BaseUrl(NamedTuple):
    """Where a server is. `path` comes in front of every bucket: "", or "/..." without a slash at its
    end, encoded as it is sent."""

    origin: Origin
    path: str


def parse_endpoint(url: str, name: str) -> BaseUrl:
    """An endpoint's URL; `name` says who gave it. Raises UsageError, which shows no password."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _bad_endpoint(name) from error
    is_plain = "@" not in parts.netloc and not parts.query and not parts.fragment
    if (
        parts.scheme not in ("http", "https")
        or not is_plain
        or port == 0
        or not _HOST.fullmatch(host)
        or not _PATH.fullmatch(parts.path)
    ):
        raise _bad_endpoint(name)
    origin = Origin(parts.scheme, host, port or (443 if parts.scheme == "https" else 80))
    return BaseUrl(origin, parts.path.rstrip("/"))


def _bad_endpoint(name: str) -> UsageError:
    return UsageError(
        f"{name} is not the URL of a server",
        hint="write https://HOST, https://HOST:PORT or https://HOST/PATH, without a password",
    )


@dataclass(frozen=True)
class S3Options:
    """The settings of one place, checked. None: nothing was said.

    `payload_signing` None: the SHA-256 of a body is signed over plain HTTP, where nothing else protects
    it. `metadata` has lower-case names. The keys are shown by no repr.
    """

    endpoint: BaseUrl | None = None
    no_sign_request: bool = False
    aws_profile: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str | None = None
    addressing: Addressing | None = None
    no_verify_ssl: bool = False
    payload_signing: bool | None = None
    request_payer: str | None = None
    version_id: str | None = None
    content_type: str | None = None
    cache_control: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    acl: str | None = None

    @classmethod
    def of(cls, place: Mapping[str, str]) -> S3Options:
        """Read the settings of a place; keys of other protocols are left alone.

        Raises UsageError, which names the option and what it takes.
        """
        sse = _choice(place, "sse", _SSE)
        kms_key = _visible(place, "sse_kms_key_id")
        if kms_key is not None and (sse is None or not sse.startswith("aws:kms")):
            raise UsageError("--sse-kms-key-id needs --sse aws:kms")
        endpoint_url = place.get("endpoint_url")
        signing = _switch(place, "payload_signing")
        if _switch(place, "no_sha256"):
            if signing:
                raise UsageError("payload_signing and no_sha256 exclude each other")
            signing = False
        key, secret, token = map(place.get, ("access_key_id", "secret_access_key", "session_token"))
        if (not key) != (not secret) or (token and not key):
            raise UsageError("access_key_id and secret_access_key go together")
        region = place.get("region")
        if region and not _REGION.fullmatch(region):
            raise UsageError(
                "--region takes the name of a region: letters, digits, '-'", where=region
            )
        return cls(
            endpoint=parse_endpoint(endpoint_url, "--endpoint-url") if endpoint_url else None,
            no_sign_request=bool(_switch(place, "no_sign_request")),
            aws_profile=place.get("aws_profile") or None,
            access_key_id=_visible(place, "access_key_id"),
            secret_access_key=secret or None,
            session_token=_visible(place, "session_token"),
            region=region or None,
            addressing=cast("Addressing | None", _choice(place, "addressing", _ADDRESSING)),
            no_verify_ssl=bool(_switch(place, "no_verify_ssl")),
            payload_signing=signing,
            request_payer=_choice(place, "request_payer", ("requester",)),
            version_id=_visible(place, "version_id"),
            content_type=_visible(place, "content_type"),
            cache_control=_visible(place, "cache_control"),
            metadata=_metadata(place.get("metadata", "")),
            storage_class=_visible(place, "storage_class"),
            sse=sse,
            sse_kms_key_id=kms_key,
            acl=_visible(place, "acl"),
        )

    @functools.cached_property
    def write_headers(self) -> Mapping[str, str]:
        """What is sent with every object that is made, its content type aside."""
        headers = {
            "cache-control": self.cache_control,
            "x-amz-storage-class": self.storage_class,
            "x-amz-server-side-encryption": self.sse,
            "x-amz-server-side-encryption-aws-kms-key-id": self.sse_kms_key_id,
            "x-amz-acl": self.acl,
        }
        chosen = {name: value for name, value in headers.items() if value is not None}
        return chosen | {f"x-amz-meta-{name}": value for name, value in self.metadata.items()}

    @property
    def replaces_metadata(self) -> bool:
        """True when a copy within the service cannot simply keep the metadata of its source."""
        return bool(self.content_type or self.cache_control or self.metadata)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _choice(place: Mapping[str, str], key: str, allowed: Iterable[str]) -> str | None:
    value = place.get(key)
    if not value:
        return None
    if value not in allowed:
        raise UsageError(f"{_flag(key)} takes {' or '.join(allowed)}", where=value)
    return value


def _switch(place: Mapping[str, str], key: str) -> bool | None:
    value = _choice(place, key, ("true", "false"))
    return None if value is None else value == "true"


def _visible(place: Mapping[str, str], key: str) -> str | None:
    """Text that can go into a header as it is."""
    value = place.get(key)
    if not value:
        return None
    if not _VISIBLE.fullmatch(value):
        raise UsageError(f"{_flag(key)} takes printable ASCII text, no blank at its ends")
    return value


def _metadata(text: str) -> dict[str, str]:
    """Lines of name=value. Names are header names, whose case does not count; values are ASCII, which is
    all that S3 promises to give back as it was ("Working with object metadata")."""
    found: dict[str, str] = {}
    for line in filter(None, text.split("\n")):
        name, equals, value = line.partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals or not _NAME.fullmatch(name) or (value and not _VISIBLE.fullmatch(value)):
            raise UsageError(
                "--metadata takes NAME=VALUE: a name of letters, digits and '-', printable ASCII text",
                where=line,
            )
        found[name] = value
    return found
