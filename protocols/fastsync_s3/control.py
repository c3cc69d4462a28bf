"""Who we are to an S3 service, where its buckets are, and what its errors mean.

Credentials and endpoints come from botocore's chain and rules, with two exceptions that cost two
milliseconds instead of three hundred: static credentials and plain endpoints are read from the environment
and the shared files here, and only where botocore cannot come to another answer (tests compare the two).
aiobotocore is imported when it is needed, and never follows a redirect: it would hand the session token to
its target.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from fastsync.backend import StoreOptions
from fastsync.errors import (
    AccessRefused,
    Changed,
    ConfigError,
    Conflict,
    DestinationFull,
    FastsyncError,
    IntegrityError,
    ListingError,
    NameRefused,
    NotFound,
    Overtaken,
    PermissionRefused,
    Stalled,
    Throttled,
    Transient,
    Unsupported,
    UsageError,
    from_os_error,
)
from fastsync.redaction import conceal
from fastsync.wire import Headers, Origin, Outgoing, Wire, WireOptions
from fastsync_s3.documents import parse_error
from fastsync_s3.options import Addressing, BaseUrl, S3Options, parse_endpoint
from fastsync_s3.signing import Credentials, Signer

DEFAULT_REGION: Final = "us-east-1"

_CHECK_EVERY_S: Final = 30.0  # botocore renews credentials minutes before they end
_REFRESH_EVERY_S: Final = 10.0
# A request that was signed with the old credentials may still be on its way.
_REFRESH_HOLDS_S: Final = 900.0
_IDLE_S: Final = 15.0
_MAX_TEXT: Final = 300

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
_HOST_LABELS: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION: Final = re.compile(r"[a-z0-9-]{1,63}")
_DIRECTORY_BUCKET: Final = re.compile(r".*--(?:x|op)-s3")
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
_SECURITY_HINT: Final = "name a profile with --aws-profile or AWS_PROFILE, or log in again"
_NO_CREDENTIALS: Final = "there are no credentials for S3"
_NO_CREDENTIALS_HINT: Final = (
    "name a profile with --aws-profile or AWS_PROFILE, set AWS_ACCESS_KEY_ID and"
    " AWS_SECRET_ACCESS_KEY, or use --no-sign-request for public buckets"
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


# -- The shared files ------------------------------------------------------------------------------------


class Shared(NamedTuple):
    """What ~/.aws/config and ~/.aws/credentials say for one profile.

    `settings` are those of both files, `by_credentials` and `by_config` those of one (None: the profile
    is not in it); `services` are the sections that a profile may refer to.
    """

    settings: Mapping[str, Any]
    by_credentials: Mapping[str, Any] | None
    by_config: Mapping[str, Any] | None
    services: Mapping[str, Mapping[str, Any]]


def read_shared(profile: str | None) -> Shared:
    """Read the files as botocore does; `profile` None is that of the environment. Raises ConfigError.

    Source: botocore.configloader, and `Session.full_config` and `get_scoped_config` of botocore.session.
    """
    environ = os.environ
    named = profile
    for variable in ("AWS_DEFAULT_PROFILE", "AWS_PROFILE"):
        named = environ.get(variable) if named is None else named
    config = _sections(environ.get("AWS_CONFIG_FILE", "~/.aws/config"))
    credentials = _sections(environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
    profiles: dict[str, Mapping[str, Any]] = {}
    services: dict[str, Mapping[str, Any]] = {}
    for title, settings in config.items():
        if title == "default":
            profiles[title] = settings
        elif title.startswith("profile"):
            profiles.update(_named(title, settings))
        elif title.startswith("services"):
            services.update(_named(title, settings))
    name = "default" if named is None else named
    by_config, by_credentials = profiles.get(name), credentials.get(name)
    if named is not None and by_config is None and by_credentials is None:
        raise ConfigError(
            "there is no such AWS profile", where=named, hint="`aws configure list-profiles`"
        )
    settings = {**(by_config or {}), **(by_credentials or {})}
    return Shared(settings, by_credentials, by_config, services)


def _sections(file: str) -> dict[str, dict[str, Any]]:
    path = os.path.expanduser(os.path.expandvars(file))
    if not os.path.isfile(path):
        return {}
    import configparser

    parser = configparser.RawConfigParser()
    try:
        parser.read([path])
        return {
            title: {name: _nested(text) for name, text in parser.items(title)}
            for title in parser.sections()
        }
    except (configparser.Error, ValueError):
        # Without what they say: they quote the lines, and these have secrets.
        raise ConfigError("not a valid AWS configuration file", where=path) from None


def _nested(text: str) -> str | dict[str, str]:
    """The value of a setting; one that begins on the next line is a table."""
    if not text.startswith("\n"):
        return text
    pairs = [line.split("=", 1) for line in text.splitlines() if line.strip()]
    return {name.strip(): value.strip() for name, value in pairs}


def _named(title: str, settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    import shlex

    try:
        words = shlex.split(title)
    except ValueError:
        return {}
    return {words[1]: settings} if len(words) == 2 else {}


# Settings of a profile that say nothing of where credentials come from. With any other, botocore is asked.
_HARMLESS: Final = frozenset(
    """
    aws_access_key_id aws_secret_access_key aws_session_token aws_security_token aws_account_id
    region output endpoint_url ignore_configured_endpoint_urls services s3 ca_bundle
    use_fips_endpoint use_dualstack_endpoint max_attempts retry_mode defaults_mode
    request_checksum_calculation response_checksum_validation tcp_keepalive parameter_validation
    sdk_ua_app_id cli_pager cli_auto_prompt cli_history cli_timestamp_format cli_binary_format
    sts_regional_endpoints x_security_token_expires x_principal_arn
    """.split()  # noqa: SIM905 (a list would take a line for each)
)


def static_credentials(shared: Shared, *, by_environment: bool) -> Credentials | None:
    """The credentials that botocore's chain finds, if they are written down and never change; else None.

    `by_environment` is False where the user names a profile, which then counts alone. Source: the order of
    botocore.credentials.create_credential_resolver.
    """
    environ = os.environ
    if by_environment:
        if environ.get("AWS_ACCESS_KEY_ID"):
            if environ.get("AWS_CREDENTIAL_EXPIRATION"):
                return None
            token = environ.get("AWS_SECURITY_TOKEN") or environ.get("AWS_SESSION_TOKEN")
            secret = environ.get("AWS_SECRET_ACCESS_KEY")
            return Credentials(environ["AWS_ACCESS_KEY_ID"], secret, token) if secret else None
        if "AWS_WEB_IDENTITY_TOKEN_FILE" in environ or "AWS_ROLE_ARN" in environ:
            return None
    if not _HARMLESS.issuperset(shared.settings):
        return None
    for settings in (shared.by_credentials, shared.by_config):
        if settings is not None and "aws_access_key_id" in settings:
            key = _text(settings, "aws_access_key_id")
            secret = _text(settings, "aws_secret_access_key")
            token = settings.get("aws_security_token", settings.get("aws_session_token"))
            if key and secret and (token is None or (token and isinstance(token, str))):
                return Credentials(key, secret, token)
            return None
    return None


# -- Endpoints -------------------------------------------------------------------------------------------


def configured_endpoint(shared: Shared) -> BaseUrl | None:
    """The endpoint that environment or profile name for S3. Raises ConfigError.

    Source: "Service-specific endpoints" in the AWS SDKs and Tools Reference Guide; botocore's
    ConfiguredEndpointProvider.
    """
    settings = shared.settings
    ignored = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    if ignored is None:
        ignored = settings.get("ignore_configured_endpoint_urls")
    if str(ignored).lower() == "true":
        return None
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(variable):
            return _parsed(os.environ[variable], variable)
    url = None
    if "services" in settings:
        name = settings["services"]
        services = shared.services.get(name) if isinstance(name, str) else None
        if not services:
            raise ConfigError("the AWS profile names services that are nowhere", where=str(name))
        url = _text(_table(services, "s3"), "endpoint_url")
    url = url or _text(settings, "endpoint_url")
    return _parsed(url, "the endpoint_url of the AWS profile") if url else None


def _parsed(url: str, name: str) -> BaseUrl:
    try:
        return parse_endpoint(url, name)
    except UsageError as error:
        raise ConfigError(error.message, hint=error.hint) from error


def configured_region(shared: Shared) -> str | None:
    """As the AWS command line has it: AWS_REGION before AWS_DEFAULT_REGION before the profile's."""
    environ = os.environ
    found = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    return found or _text(shared.settings, "region")


def needs_rules(shared: Shared) -> bool:
    """Whether AWS's endpoints are chosen by more than a region."""
    settings, s3 = shared.settings, _table(shared.settings, "s3")
    switches = (
        os.environ.get("AWS_USE_FIPS_ENDPOINT", settings.get("use_fips_endpoint")),
        os.environ.get("AWS_USE_DUALSTACK_ENDPOINT", settings.get("use_dualstack_endpoint")),
        s3.get("use_dualstack_endpoint"),
        s3.get("use_accelerate_endpoint"),
    )
    other_rules = os.environ.get("AWS_DATA_PATH") or settings.get("data_path")
    return bool(other_rules) or any(str(switch).lower() == "true" for switch in switches)


def aws_host(region: str) -> str | None:
    """The S3 endpoint of a region; None where botocore's rules have to say."""
    for regions, suffix in _PARTITIONS:
        if regions.fullmatch(region):
            return f"s3.{region}.{suffix}"
    return None


def address(
    base: BaseUrl, bucket: str, region: str, addressing: Addressing, *, is_aws: bool
) -> Endpoint:
    """How to reach a bucket at a server.

    By the name of the host where AWS or the user wants it so and it can be: a certificate covers no
    bucket with dots, an IP address nothing in front of it.
    """
    origin = base.origin
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


def _text(settings: Mapping[str, Any], name: str) -> str | None:
    text = settings.get(name)
    return text if text and isinstance(text, str) else None


def _table(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = settings.get(name)
    return table if isinstance(table, dict) else {}


def region_from_error(headers: Headers | Mapping[str, str], body: bytes) -> str | None:
    """The region that a refusal names, if it looks like one: nothing else of it leads anywhere."""
    told = headers.get("x-amz-bucket-region")
    if told is None and body:
        told = parse_error(body).region
    return told if told is not None and _REGION.fullmatch(told) else None


# -- The door --------------------------------------------------------------------------------------------


class Control:
    """Credentials, endpoints and bucket calls for places with the same settings. Closed by `aclose`."""

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
        self._client: Any = None
        self._client_lock = asyncio.Lock()
        self._open = contextlib.AsyncExitStack()

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
        return os.environ.get("AWS_CA_BUNDLE") or _text(self.shared.settings, "ca_bundle")

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

    async def aclose(self) -> None:
        """Idempotent."""
        self._client = None
        await self._open.aclose()

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
                self._shared = self._session = self._client = None
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
        with _as_ours("s3://", "find credentials"):
            session = await self._opened_session()
            found = await session.get_credentials()
            if found is None:
                raise AccessRefused(_NO_CREDENTIALS, hint=_NO_CREDENTIALS_HINT)
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

    # -- endpoints ---------------------------------------------------------------------------------------

    async def endpoint(self, bucket: str, *, region: str | None = None) -> Endpoint:
        """How to reach a bucket; `region` is what the service said where it is, if it did.

        Raises UsageError, ConfigError, Unsupported, Transient, AccessRefused.
        """
        if not _BUCKET.fullmatch(bucket):
            raise UsageError(
                "not the name of a bucket",
                where=bucket,
                hint="letters, digits, dots and hyphens; a key goes after a slash: s3://BUCKET/KEY",
            )
        shared = self.shared
        base = self._base()
        region = region or self._region()
        if base is not None:
            return self._at(base, bucket, region)
        if _DIRECTORY_BUCKET.fullmatch(bucket):
            raise Unsupported("directory buckets and outposts need sessions of their own")
        if region is None:
            region = await self._discover(bucket)
        host = None if needs_rules(shared) else aws_host(region)
        if host is None:
            return await self._by_rules(bucket, region)
        base = BaseUrl(Origin("https", host, 443), "")
        return address(base, bucket, region, self._addressing(), is_aws=True)

    def _base(self) -> BaseUrl | None:
        return self.options.endpoint or configured_endpoint(self.shared)

    def _region(self) -> str | None:
        return self.options.region or configured_region(self.shared)

    def _at(self, base: BaseUrl, bucket: str, region: str | None) -> Endpoint:
        host = base.origin.host
        is_aws = _AWS_HOST.fullmatch(host) is not None
        if region is None:
            named = _REGION_IN_HOST.fullmatch(host) if is_aws else None
            region = named[1] if named else DEFAULT_REGION
        return address(base, bucket, region, self._addressing(), is_aws=is_aws)

    def _addressing(self) -> Addressing:
        chosen = self.options.addressing
        if chosen is None:
            chosen = _table(self.shared.settings, "s3").get("addressing_style")
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
            verify=not self.options.no_verify_ssl,
            ca_file=self.ca_file,
            proxy=self.proxy_for(origin),
        )

    async def _by_rules(self, bucket: str, region: str) -> Endpoint:
        """As botocore's rules have it: where it would send a request, and what it would sign."""
        from urllib.parse import parse_qs, urlsplit

        with _as_ours(f"s3://{bucket}", "find the bucket"):
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
                url = await client.generate_presigned_url(
                    "get_object", Params={"Bucket": bucket, "Key": "k"}
                )
        parts = urlsplit(url)
        base = parse_endpoint(f"{parts.scheme}://{parts.netloc}{parts.path[:-1]}", "the endpoint")
        scope = parse_qs(parts.query)["X-Amz-Credential"][0].split("/")
        style: Literal["path", "virtual"] = "path" if base.path else "virtual"
        return Endpoint(base.origin, base.origin.authority, base.path, style, scope[2], True)

    # -- buckets -----------------------------------------------------------------------------------------

    async def list_buckets(self) -> list[tuple[str, int | None]]:
        """The names of all buckets of the account, and when each was made, in Unix nanoseconds.

        Raises ListingError for an answer that is no list of buckets.
        """
        found: list[tuple[str, int | None]] = []
        with _as_ours("s3://", "list the buckets"):
            client = await self._opened_client()
            # Unpaged requests are for accounts with less than 10 000 buckets ("ListBuckets").
            pages = {} if self._base() is not None else {"PaginationConfig": {"PageSize": 1000}}
            async for page in client.get_paginator("list_buckets").paginate(**pages):
                if "Buckets" not in page:
                    raise ListingError("the server's answer is no list of buckets", where="s3://")
                for bucket in page["Buckets"]:
                    name, created = bucket.get("Name", ""), bucket.get("CreationDate")
                    if not _BUCKET.fullmatch(name):
                        raise ListingError(
                            "the server's list of buckets cannot be trusted", where="s3://"
                        )
                    created_ns = None if created is None else int(created.timestamp()) * 10**9
                    found.append((name, created_ns))
        return found

    async def create_bucket(self, bucket: str) -> None:
        """Make a bucket, in the region that is configured. Raises Conflict when it exists."""
        where = f"s3://{bucket}"
        if not _BUCKET.fullmatch(bucket):
            raise UsageError("not the name of a bucket", where=bucket)
        region = self._region() or DEFAULT_REGION
        more: dict[str, Any] = {}
        if region != DEFAULT_REGION:
            more["CreateBucketConfiguration"] = {"LocationConstraint": region}
        with _as_ours(where, "make the bucket"):
            client = await self._opened_client()
            # In us-east-1, making one's own bucket again is a success ("CreateBucket").
            try:
                await client.head_bucket(Bucket=bucket)
            except (client.exceptions.ClientError, AccessRefused):
                await client.create_bucket(Bucket=bucket, **more)
                return
        raise Conflict("the bucket exists", where=where)

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

    async def _opened_client(self) -> Any:
        async with self._client_lock:
            if self._client is None:
                session = await self._opened_session()
                base = self._base()
                more: dict[str, Any] = {"s3": {"addressing_style": self._addressing()}}
                if base is not None and not _AWS_HOST.fullmatch(base.origin.host):
                    more["s3"] = {"addressing_style": "path"}
                    more["request_checksum_calculation"] = "when_required"
                    more["response_checksum_validation"] = "when_required"
                if self.options.no_sign_request:
                    more["signature_version"] = _aio().UNSIGNED
                client = session.create_client(
                    "s3",
                    region_name=self._region() or DEFAULT_REGION,
                    endpoint_url=None if base is None else f"{base.origin}{base.path}",
                    verify=False if self.options.no_verify_ssl else self.ca_file,
                    config=_aio().AioConfig(**more),
                )
                self._client = await self._open.enter_async_context(client)
            return self._client


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
                raise _redirect(response.headers, None)
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


# -- Errors ----------------------------------------------------------------------------------------------


class _Meaning(NamedTuple):
    kind: type[FastsyncError]
    text: str
    hint: str | None = None


_NO_BUCKET: Final = _Meaning(NotFound, "the bucket does not exist")
_NO_OBJECT: Final = _Meaning(NotFound, "no such object")
_CHANGED: Final = _Meaning(Overtaken, "the object is not the one that was listed")
_BUSY: Final = _Meaning(Throttled, "the server asks for patience")
_FAILED: Final = _Meaning(Transient, "the server failed")
_DAMAGED: Final = _Meaning(IntegrityError, "the bytes did not arrive as they were sent")
_UNABLE: Final = _Meaning(Unsupported, "the server cannot do this")
_FULL: Final = _Meaning(DestinationFull, "there is no space left", "free some or raise the quota")
_TOO_LARGE: Final = _Meaning(Unsupported, "the object is larger than the server takes")
_FORBIDDEN: Final = _Meaning(PermissionRefused, "access denied")
_EXPIRED: Final = _Meaning(AccessRefused, "the credentials have expired", _SECURITY_HINT)
_BAD_KEY: Final = _Meaning(AccessRefused, "the server does not know the access key", _SECURITY_HINT)
_BAD_TOKEN: Final = _Meaning(AccessRefused, "the session token is not valid", _SECURITY_HINT)
_BAD_SECRET: Final = _Meaning(
    AccessRefused,
    "the server does not accept the signature",
    "is the secret access key the one of this access key, and the endpoint right?",
)
_CLOSED: Final = _Meaning(AccessRefused, "the account has no access", "see the AWS console")
_ARCHIVED: Final = _Meaning(
    Unsupported, "the object is archived", "restore it first: `aws s3api restore-object`"
)
_TAKEN: Final = _Meaning(Conflict, "the bucket exists")
_BAD_PART: Final = _Meaning(IntegrityError, "the server does not have the parts it was sent")
_NO_KEY: Final = _Meaning(
    PermissionRefused, "the encryption key cannot be used", "see --sse-kms-key-id"
)
_OTHER_REGION: Final = _Meaning(
    AccessRefused, "the server wants another region", "name it with --region"
)

# Codes of "Error responses" in the Amazon S3 API Reference, and some that other servers made up.
_CODES: Final[Mapping[str, _Meaning]] = {
    "NoSuchKey": _NO_OBJECT,
    "NoSuchVersion": _Meaning(NotFound, "no such version of the object"),
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchUpload": _Meaning(NotFound, "no such upload"),
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _CLOSED,
    "AccountProblem": _CLOSED,
    "NotSignedUp": _CLOSED,
    "InvalidAccessKeyId": _BAD_KEY,
    "InvalidClientTokenId": _BAD_KEY,
    "UnrecognizedClientException": _BAD_KEY,
    "XAdminUserNotFound": _BAD_KEY,  # versitygw, with status 404
    "SignatureDoesNotMatch": _BAD_SECRET,
    "AuthFailure": _BAD_SECRET,
    "InvalidToken": _BAD_TOKEN,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "PreconditionFailed": _CHANGED,
    "ConditionalRequestConflict": _Meaning(Transient, "somebody else wrote at the same time"),
    "ErrDirectoryNotEmpty": _Meaning(Conflict, "the directory is not empty"),  # versitygw
    "OperationAborted": _Meaning(Transient, "somebody else changes the bucket"),
    "BucketAlreadyExists": _Meaning(Conflict, "the bucket exists, and may be somebody else's"),
    "BucketAlreadyOwnedByYou": _TAKEN,
    "SlowDown": _BUSY,
    "SlowDownRead": _BUSY,
    "SlowDownWrite": _BUSY,
    "ServiceUnavailable": _BUSY,
    "RequestLimitExceeded": _BUSY,
    "ThrottlingException": _BUSY,
    "TooManyRequests": _BUSY,
    "InternalError": _FAILED,
    "RequestTimeout": _Meaning(Transient, "the server waited too long for our bytes"),
    "IncompleteBody": _Meaning(Transient, "the body was cut on its way"),
    "BadDigest": _DAMAGED,
    "InvalidDigest": _DAMAGED,
    "ChecksumMismatch": _DAMAGED,
    "XAmzContentChecksumMismatch": _DAMAGED,
    "XAmzContentSHA256Mismatch": _DAMAGED,
    "InvalidPart": _BAD_PART,
    "InvalidPartOrder": _BAD_PART,
    "EntityTooLarge": _TOO_LARGE,
    "EntityTooSmall": _Meaning(
        Unsupported, "a part is smaller than the server takes", "raise --chunk-size"
    ),
    "InvalidRange": _Meaning(Changed, "the object is shorter than it was listed"),
    "InvalidObjectState": _ARCHIVED,
    "ObjectNotInActiveTierError": _ARCHIVED,
    "NotImplemented": _UNABLE,
    "XNotImplemented": _UNABLE,
    "MethodNotAllowed": _UNABLE,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "KeyTooLongError": _Meaning(NameRefused, "the key is too long", "1024 bytes at most"),
    "InvalidBucketName": _Meaning(UsageError, "not the name of a bucket"),
    "InvalidStorageClass": _Meaning(
        Unsupported, "no such storage class there", "see --storage-class"
    ),
    "InvalidEncryptionAlgorithmError": _Meaning(
        Unsupported, "no such encryption there", "see --sse"
    ),
    "AccessControlListNotSupported": _Meaning(
        Unsupported, "the bucket takes no access control lists", "leave out --acl"
    ),
    "MetadataTooLarge": _Meaning(
        Unsupported, "more metadata than the server takes", "2 KB at most"
    ),
    "KMS.DisabledException": _NO_KEY,
    "KMS.InvalidStateException": _NO_KEY,
    "KMS.KMSInvalidStateException": _NO_KEY,
    "KMS.NotFoundException": _NO_KEY,
}
# For answers without a code: those to HEAD have no body.
_STATUSES: Final[Mapping[int, _Meaning]] = {
    401: _Meaning(AccessRefused, "the server wants other credentials", _SECURITY_HINT),
    403: _FORBIDDEN,
    404: _NO_OBJECT,
    405: _UNABLE,
    408: _FAILED,
    409: _Meaning(Conflict, "something stands in the way"),
    412: _CHANGED,
    413: _TOO_LARGE,
    416: _Meaning(Changed, "the object is shorter than it was listed"),
    429: _BUSY,
    501: _UNABLE,
    503: _BUSY,
    507: _FULL,
}
_SKEWED: Final = ("RequestTimeTooSkewed", "RequestExpired")


def map_error(
    status: int,
    code: str,
    message: str,
    headers: Headers | Mapping[str, str],
    where: str,
    action: str,
) -> FastsyncError:
    """The error of ours for one of the server's.

    `code` and `message` are those of its document, "" without one; `action` is what was asked, such as
    "get the object". Codes count more than statuses, which servers do not agree about. What a caller may
    know better: 412 is Overtaken, also where an object that was read changed.
    """
    if code in _SKEWED:
        return AccessRefused(_skew(headers), where=where, hint="set the clock of this computer")
    meaning = _CODES.get(code)
    if status == 405 and headers.get("x-amz-delete-marker") == "true":
        meaning = _NO_OBJECT
    if meaning is None and 300 <= status < 400 and status != 304:
        return _redirect(headers, where)
    if meaning is None:
        meaning = _STATUSES.get(status) or (_FAILED if status >= 500 else None)
    if meaning is _NO_OBJECT and action.endswith("bucket"):
        meaning = _NO_BUCKET
    if meaning is None:
        said = f"{code}: {message}" if message else code or f"status {status}, without a reason"
        hint = None if code else "are credentials, region and endpoint right?"
        return FastsyncError(_cut(f"could not {action}: {said}"), where=where, hint=hint)
    kind, text, hint = meaning
    if meaning is _OTHER_REGION and (region := region_from_error(headers, b"")):
        hint = f"--region {region}"
    elif kind is not NotFound and (message or code not in _CODES):
        text = _cut(f"could not {action}: {text}: {message or status}")
    if issubclass(kind, Transient):
        return kind(
            text, where=where, hint=hint, retry_after_s=_retry_after(headers.get("retry-after"))
        )
    return kind(text, where=where, hint=hint)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."


def _redirect(headers: Headers | Mapping[str, str], where: str | None) -> FastsyncError:
    """A redirect is not followed: only a region's name may lead elsewhere."""
    region = region_from_error(headers, b"")
    if region is not None:
        return AccessRefused(
            "the bucket is in another region", where=where, hint=f"--region {region}"
        )
    from urllib.parse import urlsplit

    try:
        host = urlsplit(headers.get("location") or "").hostname or "another place"
    except ValueError:
        host = "another place"
    return AccessRefused(
        f"a redirect to {_cut(host)!a} was refused",
        where=where,
        hint="check --endpoint-url and --region",
    )


def _seconds_of(date: str | None) -> float | None:
    """Unix seconds of an HTTP date."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _skew(headers: Headers | Mapping[str, str]) -> str:
    there = _seconds_of(headers.get("date"))
    if there is None:
        return "the server's clock differs from ours by too much"
    return f"the server's clock differs from ours by {round(there - time.time()):+d} s"


def _retry_after(text: str | None) -> float | None:
    """Seconds to wait, of either form of the header (RFC 9110 10.2.3)."""
    if not text:
        return None
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    then = _seconds_of(text)
    return None if then is None else max(0.0, then - time.time())


@contextlib.contextmanager
def _as_ours(where: str, action: str) -> Iterator[None]:
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
        raise mapped from error


def from_botocore(error: Exception, where: str, action: str) -> FastsyncError | None:
    """The error of ours for one of botocore's; None for what is none of its."""
    from botocore import exceptions as its
    from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

    if isinstance(error, its.ClientError):
        return _from_client_error(error, where, action)
    if isinstance(error, ResponseParserError):
        return ListingError("the server's answer is not understood", where=where)
    if not isinstance(error, its.BotoCoreError):
        return None
    # Not what they say: files are quoted with their secrets.
    if isinstance(error, its.ConfigParseError):
        return ConfigError("not a valid AWS configuration file", where=error.kwargs.get("path"))
    said = _cut(str(error))
    if isinstance(error, its.ProfileNotFound | its.InvalidConfigError | its.ConfigNotFound):
        return ConfigError(said, where=where)
    if isinstance(error, its.NoCredentialsError):
        return AccessRefused(_NO_CREDENTIALS, where=where, hint=_NO_CREDENTIALS_HINT)
    if isinstance(error, its.SSLError):
        return AccessRefused(said, where=where, hint="AWS_CA_BUNDLE names certificates to trust")
    if isinstance(error, its.ConnectTimeoutError | its.ReadTimeoutError):
        return Stalled(said, where=where)
    if isinstance(error, its.HTTPClientError | its.ConnectionError):
        return Transient(said, where=where)
    if isinstance(error, its.ParamValidationError | its.ValidationError):
        return UsageError(said, where=where)
    if isinstance(error, its.NoRegionError | its.InvalidRegionError | its.EndpointProviderError):
        return UsageError(said, where=where, hint="name a region with --region")
    if isinstance(error, its.PaginationError):
        return ListingError(said, where=where)
    # What is left is about credentials: none, half of them, a login that has ended.
    return AccessRefused(said, where=where, hint=_SECURITY_HINT)


def _from_client_error(error: Any, where: str, action: str) -> FastsyncError:
    told, about = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    code = str(told.get("Code", ""))
    mapped = map_error(
        int(about.get("HTTPStatusCode", 0)),
        "" if code.isdecimal() else code,
        str(told.get("Message", "")),
        {name.lower(): value for name, value in about.get("HTTPHeaders", {}).items()},
        where,
        action,
    )
    if action == "find credentials" and not mapped.transient:
        return AccessRefused(mapped.message, where=where, hint=_SECURITY_HINT)
    return mapped
