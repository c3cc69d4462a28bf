"""Who we are to an S3 service, and where its buckets are.

Credentials and endpoints come from botocore's chain and rules, with two exceptions that cost two
milliseconds instead of three hundred: static credentials and plain endpoints are read by `shared`.
aiobotocore is imported when it is needed, and never follows a redirect: it would hand the session token to
its target.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from fastsync.backend import StoreOptions
from fastsync.errors import AccessRefused, FastsyncError, Unsupported, UsageError, from_os_error
from fastsync.redaction import conceal
from fastsync.wire import Origin, Outgoing, Wire, WireOptions
from fastsync_s3.endpoints import Endpoint, address, aws_host, is_aws_host, region_in_host
from fastsync_s3.failures import (
    NO_CREDENTIALS,
    NO_CREDENTIALS_HINT,
    from_botocore,
    map_error,
    redirect,
    region_from_error,
)
from fastsync_s3.options import Addressing, BaseUrl, S3Options, parse_endpoint
from fastsync_s3.shared import (
    Shared,
    configured_endpoint,
    configured_region,
    needs_rules,
    read_shared,
    static_credentials,
    table_of,
    text_of,
)
from fastsync_s3.signing import Credentials, Signer

DEFAULT_REGION: Final = "us-east-1"

_CHECK_EVERY_S: Final = 30.0  # botocore renews credentials minutes before they end
_REFRESH_EVERY_S: Final = 10.0
# A request that was signed with the old credentials may still be on its way.
_REFRESH_HOLDS_S: Final = 900.0
_IDLE_S: Final = 15.0

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
_DIRECTORY_BUCKET: Final = re.compile(r".*--(?:x|op)-s3")


def is_bucket_name(name: str) -> bool:
    """Whether it can be one, by the loosest of the rules there ever were."""
    return _BUCKET.fullmatch(name) is not None


class Control:
    """Credentials and endpoints for places with the same settings."""

    def __init__(self, options: S3Options, store: StoreOptions) -> None:
        self.options = options
        self._store = store
        self._shared: Shared | None = None
        self._credentials: Credentials | None = None
        self._check_at = -math.inf
        self._refreshed_at = -math.inf
        self._changed_at = -math.inf
        self._lock = asyncio.Lock()
        self._session: Any = None

    @property
    def identity(self) -> tuple[bool, str | None, str | None]:
        """Equal where the credentials are the same; without their secrets."""
        options = self.options
        return (options.no_sign_request, options.aws_profile, options.access_key_id)

    @property
    def shared(self) -> Shared:
        """The shared files: two small ones, read once. Raises ConfigError."""
        if self._shared is None:
            self._shared = read_shared(self.options.aws_profile)
        return self._shared

    @property
    def ca_file(self) -> str | None:
        """Certificates to trust instead of the system's."""
        return os.environ.get("AWS_CA_BUNDLE") or text_of(self.shared.settings, "ca_bundle")

    @staticmethod
    def proxy_for(origin: Origin) -> str | None:
        """The proxy that the environment (or the system, where it has such a setting) names."""
        if sys.platform not in ("darwin", "win32") and not any(
            name.lower() in ("http_proxy", "https_proxy") for name in os.environ
        ):
            return None
        from urllib.request import getproxies, proxy_bypass

        if proxy_bypass(origin.authority):
            return None
        proxy = getproxies().get(origin.scheme)
        if not proxy or "://" in proxy:
            return proxy or None
        return "http://" + proxy.removeprefix("//")

    # -- credentials -------------------------------------------------------------------------------------

    async def credentials(self) -> Credentials | None:
        """What to sign with now; None for anonymous requests. Cheap unless they have to be renewed.

        Raises AccessRefused, ConfigError, Transient.
        """
        if self.options.no_sign_request:
            return None
        if time.monotonic() >= self._check_at:
            async with self._lock:
                if time.monotonic() >= self._check_at:
                    await self._find()
        return self._credentials

    async def refresh(self) -> bool:
        """After the server called the credentials expired: True if there are other ones by now."""
        if self.options.no_sign_request:
            return False
        async with self._lock:
            now = time.monotonic()
            if now - self._refreshed_at >= _REFRESH_EVERY_S:
                self._refreshed_at = now
                old = self._credentials
                self._shared = self._session = None
                await self._find()
                if self._credentials != old:
                    self._changed_at = now
            return now - self._changed_at < _REFRESH_HOLDS_S

    async def _find(self) -> None:
        static = self._static()
        if static is not None:
            self._credentials, self._check_at = static, math.inf
            conceal(static.secret_key, static.token)
            return
        with self._as_ours("s3://", "find credentials"):
            session = await self._opened_session()
            found = await session.get_credentials()
            if found is None:
                raise AccessRefused(NO_CREDENTIALS, hint=NO_CREDENTIALS_HINT)
            key, secret, token = (await found.get_frozen_credentials())[:3]
        self._credentials = Credentials(key, secret, token)
        conceal(secret, token)
        self._check_at = time.monotonic() + _CHECK_EVERY_S

    def _static(self) -> Credentials | None:
        options = self.options
        if options.access_key_id is not None and options.secret_access_key is not None:
            return Credentials(
                options.access_key_id, options.secret_access_key, options.session_token
            )
        return static_credentials(self.shared, by_environment=options.aws_profile is None)

    def masked(self, text: str) -> str:
        """What a server says, without the secrets that it was told; some say all of it back."""
        if (known := self._credentials) is not None:
            for secret in (known.secret_key, known.token):
                if secret:
                    text = text.replace(secret, "***")
        return text

    @contextlib.contextmanager
    def _as_ours(self, where: str, action: str) -> Iterator[None]:
        """The border to botocore: what it raises becomes ours, at `where`."""
        try:
            yield
        except FastsyncError as error:
            error.at(where)
            raise
        except Exception as error:
            mapped = from_botocore(error, where, action)
            if mapped is None and isinstance(error, OSError):  # of files that a profile names
                mapped = from_os_error(error, where)
            if mapped is None:
                raise
            mapped.message = self.masked(mapped.message)
            raise mapped from error

    # -- endpoints ---------------------------------------------------------------------------------------

    async def endpoint(self, bucket: str, *, region: str | None = None) -> Endpoint:
        """How to reach a bucket, or with "" the service itself; `region` is what the service said where
        the bucket is, if it did.

        Raises UsageError, ConfigError, Unsupported, Transient, AccessRefused.
        """
        if bucket and not is_bucket_name(bucket):
            raise UsageError(
                "not the name of a bucket",
                where=bucket,
                hint="3 to 63 letters, digits, dots and hyphens; a key goes after a slash: s3://BUCKET/KEY",
            )
        shared = self.shared
        base = self._base()
        region = region or self._region()
        if base is not None:
            return self._at(base, bucket, region)
        if _DIRECTORY_BUCKET.fullmatch(bucket):
            raise Unsupported("directory buckets and outposts need sessions of their own")
        if region is None:
            region = await self._discover(bucket) if bucket else DEFAULT_REGION
        host = None if needs_rules(shared) else aws_host(region)
        if host is None:
            return await self._by_rules(bucket, region)
        base = BaseUrl(Origin("https", host, 443), "")
        return address(base, bucket, region, self._addressing(), is_aws=True)

    def _base(self) -> BaseUrl | None:
        return self.options.endpoint or configured_endpoint(self.shared)

    @property
    def region(self) -> str:
        """The region that is configured: where new buckets are made."""
        return self._region() or DEFAULT_REGION

    def _region(self) -> str | None:
        return self.options.region or configured_region(self.shared)

    def _at(self, base: BaseUrl, bucket: str, region: str | None) -> Endpoint:
        host = base.origin.host
        is_aws = is_aws_host(host)
        if region is None:
            region = (region_in_host(host) if is_aws else None) or DEFAULT_REGION
        return address(base, bucket, region, self._addressing(), is_aws=is_aws)

    def _addressing(self) -> Addressing:
        chosen = self.options.addressing
        if chosen is None:
            chosen = table_of(self.shared.settings, "s3").get("addressing_style")
        return chosen if chosen in ("path", "virtual") else "auto"

    async def _discover(self, bucket: str) -> str:
        """The region of a bucket of AWS, which tells it to anybody, with any status ("HeadBucket"). Of a
        bucket that does not exist it tells nothing."""
        origin = Origin("https", f"s3.{DEFAULT_REGION}.amazonaws.com", 443)
        wire = Wire(origin, self._wire_options(origin))
        try:
            signer = Signer(origin.authority, DEFAULT_REGION)
            head = signer.head(None, "HEAD", f"/{bucket}")
            reply = await wire.ask(Outgoing(head, is_head=True))
        finally:
            await wire.aclose()
        if reply.status == 429 or reply.status >= 500:
            raise map_error(
                reply.status, "", "", reply.headers, f"s3://{bucket}", "find the bucket"
            )
        return region_from_error(reply.headers, b"") or DEFAULT_REGION

    def _wire_options(self, origin: Origin) -> WireOptions:
        return WireOptions(
            connections=1,
            connect_timeout_s=self._store.request_timeout_s,
            request_timeout_s=self._store.request_timeout_s,
            stall_timeout_s=self._store.stall_timeout_s,
            min_rate=self._store.min_rate,
            verify=not self.options.no_verify_ssl,
            ca_file=self.ca_file,
            proxy=self.proxy_for(origin),
            protocol="s3",
        )

    async def _by_rules(self, bucket: str, region: str) -> Endpoint:
        """As botocore's rules have it: where it would send a request, and what it would sign."""
        from urllib.parse import parse_qs, urlsplit

        with self._as_ours(f"s3://{bucket}", "find the bucket"):
            session = await self._opened_session()
            addressing = self._addressing()
            config = _aio().AioConfig(
                signature_version="s3v4",
                s3={
                    # With "auto", presigned URLs lead to the global endpoint, which redirects.
                    "addressing_style": "virtual" if addressing == "auto" else addressing,
                    "us_east_1_regional_endpoint": "regional",
                },
                warm_up_loader_caches=True,
            )
            # Nothing is sent, so nothing real has to be signed.
            async with session.create_client(
                "s3",
                region_name=region,
                config=config,
                aws_access_key_id="none",
                aws_secret_access_key="none",
            ) as client:
                call: tuple[str, dict[str, str]] = ("list_buckets", {})
                if bucket:
                    call = ("get_object", {"Bucket": bucket, "Key": "k"})
                url = await client.generate_presigned_url(call[0], Params=call[1])
        parts = urlsplit(url)
        path = parts.path[: -len("k")] if bucket else parts.path
        base = parse_endpoint(f"{parts.scheme}://{parts.netloc}{path}", "the endpoint")
        scope = parse_qs(parts.query)["X-Amz-Credential"][0].split("/")
        style: Literal["path", "virtual"] = "path" if base.path else "virtual"
        return Endpoint(base.origin, base.origin.authority, base.path, style, scope[2], True)

    # -- aiobotocore -------------------------------------------------------------------------------------

    async def _opened_session(self) -> Any:
        if self._session is None:
            aio = await asyncio.to_thread(_aio)
            session = aio.AioSession(profile=self.options.aws_profile)
            if region := os.environ.get("AWS_REGION"):  # botocore knows AWS_DEFAULT_REGION only
                session.set_config_variable("region", region)
            # What the chain itself asks (STS, SSO) is asked in the same way.
            session.set_default_client_config(self._client_config(aio))
            static = self._static()
            if static is not None:
                session.set_credentials(*static)
            self._session = session
        return self._session

    def _client_config(self, aio: _Aio) -> Any:
        timeout_s = self._store.request_timeout_s
        return aio.AioConfig(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=timeout_s,
            read_timeout=timeout_s,
            max_pool_connections=max(1, self._store.streams),
            http_session_cls=aio.Session,
            connector_args={
                "keepalive_timeout": _IDLE_S,
                "socket_factory": functools.partial(_socket, timeout_s),
            },
            warm_up_loader_caches=True,
        )


class _Aio(NamedTuple):
    AioConfig: Any
    AioSession: Any
    Session: Any
    UNSIGNED: Any


@functools.cache
def _aio() -> _Aio:
    """What we use of aiobotocore: importing it takes a third of a second."""
    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
    from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]
    from botocore import UNSIGNED  # type: ignore[import-untyped]

    class Session(AIOHTTPSession):  # type: ignore[misc]
        """Goes where it is sent, and not where a server sends it."""

        async def _get_session(self, proxy_url: str | None) -> _WithoutRedirects:
            return _WithoutRedirects(await super()._get_session(proxy_url))

        async def send(self, request: Any) -> Any:
            response = await super().send(request)
            # Before botocore sees it, which has ways of its own to go there.
            if 300 <= response.status_code < 400:
                raise redirect(response.headers, None)
            return response

    return _Aio(AioConfig, AioSession, Session, UNSIGNED)


class _WithoutRedirects:
    """aiohttp's session as aiobotocore uses it. It takes no setting for this, only an argument."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **more: Any) -> Any:
        return await self._session.request(method, **more, allow_redirects=False)


def _socket(timeout_s: float, address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol = address[:3]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))
    return sock
