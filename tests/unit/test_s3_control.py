"""Credentials, endpoints and errors of S3: as botocore has them, and without a redirect."""

from __future__ import annotations

import asyncio
import email.utils
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session  # type: ignore[import-untyped]
import pytest
from botocore import exceptions as its
from botocore.regions import EndpointResolver  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_servers import S3Server, running_moto

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
)
from fastsync.wire import Origin
from fastsync_s3 import control as control_module
from fastsync_s3.buckets import create_bucket, list_buckets
from fastsync_s3.control import Control
from fastsync_s3.endpoints import aws_host
from fastsync_s3.failures import from_botocore, map_error, region_from_error
from fastsync_s3.options import S3Options
from fastsync_s3.plane import Plane
from fastsync_s3.shared import configured_endpoint, read_shared, static_credentials
from fastsync_s3.signing import Credentials

SECRET = "hunter2-is-a-secret"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without configuration, in an environment that names none and reaches no metadata service."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


def configure(home: Path, *, config: str = "", credentials: str = "") -> None:
    (home / ".aws/config").write_text(config)
    (home / ".aws/credentials").write_text(credentials)


def make(**place: str) -> Control:
    return Control(S3Options.of(place), StoreOptions(request_timeout_s=5.0))


class Answers:
    """A server on the loopback that answers as `reply` says, and remembers requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.reply: Callable[[str, str], tuple[int, dict[str, str], bytes]] = lambda *_: (
            200,
            {},
            b"",
        )
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.seen.append((self.command, self.path, headers))
                status, more, body = outer.reply(self.command, self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        for method in ("GET", "HEAD", "PUT", "POST"):
            setattr(Handler, f"do_{method}", Handler.answer)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> Answers:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Answers]:
    with Answers() as answers:
        yield answers


@pytest.fixture
def trap() -> Iterator[Answers]:
    with Answers() as answers:
        yield answers


KEYS = {"access_key_id": "AKIA1", "secret_access_key": SECRET}


# -- options ---------------------------------------------------------------------------------------------


def test_options_are_read_from_text_and_others_left_alone() -> None:
    options = S3Options.of(
        {
            "endpoint_url": "https://minio.example.org:9000/base/",
            "no_sign_request": "true",
            "region": "eu-central-1",
            "storage_class": "STANDARD_IA",
            "sse": "aws:kms",
            "sse_kms_key_id": "alias/backup",
            "content_type": "text/html",
            "cache_control": "max-age=3600",
            "metadata": "Project=apollo, the 11th\nstage = 2",
            "acl": "private",
            "identity": "/a/key/of/ssh",
            "no_verify_ssl": "false",
        }
    )
    assert options.endpoint is not None
    assert options.endpoint.origin == Origin("https", "minio.example.org", 9000)
    assert options.endpoint.path == "/base"
    assert (options.no_sign_request, options.no_verify_ssl) == (True, False)
    assert options.content_type == "text/html"
    assert options.replaces_metadata
    assert options.write_headers == {
        "cache-control": "max-age=3600",
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "alias/backup",
        "x-amz-acl": "private",
        "x-amz-meta-project": "apollo, the 11th",
        "x-amz-meta-stage": "2",
    }


def test_nothing_said_asks_for_nothing() -> None:
    options = S3Options.of({"endpoint_url": "", "region": "", "storage_class": "GLACIER"})
    assert (options.endpoint, options.region, options.payload_signing) == (None, None, None)
    assert not options.replaces_metadata


@pytest.mark.parametrize(
    ("place", "signs"),
    [
        ({}, None),
        ({"no_sha256": "true"}, False),
        ({"no_sha256": "false"}, None),
        ({"payload_signing": "true"}, True),
        ({"payload_signing": "false"}, False),
    ],
)
def test_payload_signing(place: dict[str, str], signs: bool | None) -> None:
    assert S3Options.of(place).payload_signing is signs


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ({"sse": "aes"}, "--sse takes AES256 or aws:kms"),
        ({"sse_kms_key_id": "alias/x"}, "--sse aws:kms"),
        ({"sse_kms_key_id": "alias/x", "sse": "AES256"}, "--sse aws:kms"),
        ({"addressing": "dns"}, "--addressing takes path or virtual or auto"),
        ({"request_payer": "me"}, "--request-payer takes requester"),
        ({"no_sign_request": "yes"}, "--no-sign-request takes true or false"),
        ({"metadata": "colour"}, "--metadata takes NAME=VALUE"),
        ({"metadata": "a=1\nb b=2"}, "b b=2"),
        ({"metadata": "a=\u00e9"}, "ASCII"),
        ({"cache_control": "a\r\nx-amz-acl: public-read"}, "--cache-control"),
        ({"content_type": "text/\u00e9"}, "--content-type"),
        ({"region": "eu/../x"}, "--region"),
        ({"endpoint_url": "ftp://h"}, "--endpoint-url"),
        ({"endpoint_url": "https://h:99999"}, "--endpoint-url"),
        ({"endpoint_url": "https://h/?a=b"}, "--endpoint-url"),
        ({"endpoint_url": "h:9000"}, "--endpoint-url"),
        ({"access_key_id": "AKIA"}, "together"),
        ({"secret_access_key": SECRET}, "together"),
        ({"payload_signing": "true", "no_sha256": "true"}, "no_sha256"),
    ],
)
def test_bad_options_name_themselves(place: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        S3Options.of(place)
    assert told in str(refused.value)
    assert SECRET not in str(refused.value)


def test_no_secret_is_shown() -> None:
    options = S3Options.of({**KEYS, "session_token": SECRET + "t"})
    assert SECRET not in repr(options)
    with pytest.raises(UsageError) as refused:
        S3Options.of({"endpoint_url": f"https://me:{SECRET}@h"})
    assert SECRET not in repr(refused.value) + str(refused.value)


# -- credentials, against botocore's ---------------------------------------------------------------------

ENVIRONMENTS = [
    {},
    {"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "env"},
    {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "e", "AWS_SESSION_TOKEN": "t"},
    {
        "AWS_ACCESS_KEY_ID": "A",
        "AWS_SECRET_ACCESS_KEY": "e",
        "AWS_SESSION_TOKEN": "t",
        "AWS_SECURITY_TOKEN": "older",
    },
    {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "env"},
    {"AWS_ACCESS_KEY_ID": "A"},
    {"AWS_PROFILE": "work"},
    {"AWS_PROFILE": "default", "AWS_DEFAULT_PROFILE": "work"},
    {"AWS_PROFILE": "work", "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "e"},
    {"AWS_PROFILE": "nowhere"},
    {"AWS_PROFILE": "nowhere", "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "e"},
    {"AWS_SHARED_CREDENTIALS_FILE": "$HOME/elsewhere"},
    {"AWS_CONFIG_FILE": "", "AWS_SHARED_CREDENTIALS_FILE": "~/elsewhere"},
]
CREDENTIALS = [
    "",
    "[default]\naws_access_key_id = AKIADEF\naws_secret_access_key = d/e=f # no comment\n",
    "[work]\naws_access_key_id=AKIAWORK\naws_secret_access_key=w\naws_session_token=wt\n",
    "[default]\naws_access_key_id: A\n aws_secret_access_key: b\n",
    "[default]\naws_access_key_id = AKIAHALF\n",
    "[profile work]\naws_access_key_id = no\naws_secret_access_key = no\n",
    "; a comment\n[default]\nAWS_ACCESS_KEY_ID = UPPER\nAWS_SECRET_ACCESS_KEY = u\n\n[work]\n",
    "[default]\naws_access_key_id = A\naws_access_key_id = B\n",
    "no section\n",
]
CONFIGS = [
    "",
    "[default]\nregion = eu-west-1\ns3 =\n  addressing_style = path\n",
    "[profile work]\naws_access_key_id = AKIACONF\naws_secret_access_key = c\n",
    "[profile 'work']\nregion = us-west-2\n[profile odd name here]\n[profilework]\n",
    "[default]\naws_access_key_id = AKIADC\naws_secret_access_key = dc\naws_security_token = s\n",
]
# Of these, only botocore knows what to make.
DYNAMIC_CONFIGS = [
    "[default]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default\n",
    "[default]\ncredential_process = /bin/false\n",
    "[default]\nsso_start_url = https://x\nsso_region = us-east-1\n",
    "[default]\nweb_identity_token_file = /x\nrole_arn = arn:aws:iam::1:role/x\n",
    "[default]\nlogin_session = x\n",
    "[default]\nsomething_of_next_year = x\n",
]


def by_botocore(profile: str | None) -> Credentials | None:
    found = botocore.session.Session(profile=profile).get_credentials()
    return None if found is None else Credentials(*found.get_frozen_credentials()[:3])


def ours(profile: str | None) -> Credentials | None:
    return static_credentials(read_shared(profile), by_environment=profile is None)


@settings(
    max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    environ=st.sampled_from(ENVIRONMENTS),
    profile=st.sampled_from([None, "work", "default"]),
    config=st.sampled_from(CONFIGS),
    credentials=st.sampled_from(CREDENTIALS),
)
def test_static_credentials_are_those_of_botocore(
    environ: dict[str, str], profile: str | None, config: str, credentials: str, home: Path
) -> None:
    configure(home, config=config, credentials=credentials)
    (home / "elsewhere").write_text(CREDENTIALS[2])
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        try:
            wanted = by_botocore(profile)
        except (its.ProfileNotFound, its.ConfigParseError):
            with pytest.raises(ConfigError):
                ours(profile)
        except its.PartialCredentialsError:
            assert ours(profile) is None
        else:
            assert ours(profile) == wanted


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    config=st.lists(st.sampled_from([*CONFIGS, *CREDENTIALS, " x = y\n", "\n", "[services a]\n"])),
    credentials=st.lists(st.sampled_from([*CREDENTIALS, "#\n", "\n", "region = x\n"])),
)
def test_shared_files_are_read_as_botocore_reads_them(
    config: list[str], credentials: list[str], home: Path
) -> None:
    configure(home, config="".join(config), credentials="".join(credentials))
    session = botocore.session.Session()
    try:
        wanted, services = session.get_scoped_config(), session.full_config.get("services", {})
    except its.ConfigParseError:
        with pytest.raises(ConfigError):
            read_shared(None)
        return
    shared = read_shared(None)
    assert (shared.settings, shared.services) == (wanted, services)


def test_shared_files_that_everybody_can_write(home: Path) -> None:
    configure(home, config="", credentials=CREDENTIALS[1])
    for path in (home / ".aws").iterdir():
        path.chmod(0o646)
    with pytest.raises(ConfigError, match="others can write it"):
        read_shared(None)


@pytest.mark.parametrize("config", DYNAMIC_CONFIGS)
def test_what_may_change_is_left_to_botocore(config: str, home: Path) -> None:
    configure(home, config=config, credentials=CREDENTIALS[1])
    assert ours(None) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/x"},
        {"AWS_ROLE_ARN": "arn:aws:iam::1:role/x"},
        {
            "AWS_ACCESS_KEY_ID": "A",
            "AWS_SECRET_ACCESS_KEY": "e",
            "AWS_CREDENTIAL_EXPIRATION": "2050-01-01T00:00:00Z",
        },
    ],
)
def test_environments_that_name_no_static_credentials(
    environ: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(home, credentials=CREDENTIALS[1])
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert ours(None) is None


def test_a_broken_file_is_named_and_not_quoted(home: Path) -> None:
    configure(home, credentials=f"[default]\n{SECRET}\n")
    with pytest.raises(ConfigError) as refused:
        read_shared(None)
    assert "credentials" in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


SHORT_WAY = """
import asyncio, sys
from fastsync.backend import StoreOptions
from fastsync_s3.control import Control
from fastsync_s3.options import S3Options
async def main():
    control = Control(S3Options.of({}), StoreOptions())
    print((await control.credentials()).access_key, await control.endpoint('a-b'))
asyncio.run(main())
print({'botocore', 'aiobotocore', 'aiohttp', 'urllib.request'} & set(sys.modules))
"""


def test_the_short_way_imports_nothing_heavy(home: Path) -> None:
    configure(home, config=CONFIGS[1], credentials=CREDENTIALS[1])
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SHORT_WAY,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "AKIADEF" in done.stdout
    assert "s3.eu-west-1.amazonaws.com" in done.stdout
    assert done.stdout.endswith("set()\n")


def process_profile(home: Path, *, expires: str) -> Path:
    """A profile whose credentials are told by a program, which counts its calls."""
    calls = home / "calls"
    program = home / "tell"
    told = {
        "Version": 1,
        "AccessKeyId": "AKIA$count",
        "SecretAccessKey": "s",
        "SessionToken": "t",
        "Expiration": expires,
    }
    program.write_text(
        f"#!/bin/sh\necho >> {calls}\ncount=$(($(wc -l < {calls})))\n"
        f"cat <<END\n{json.dumps(told)}\nEND\n"
    )
    program.chmod(0o700)
    configure(home, config=f"[profile dynamic]\ncredential_process = {program}\n")
    return calls


async def test_the_chain_is_asked_once_for_many(home: Path) -> None:
    calls = process_profile(home, expires="2050-01-01T00:00:00Z")
    control = make(aws_profile="dynamic")
    found = await asyncio.gather(*(control.credentials() for _ in range(20)))
    assert set(found) == {Credentials("AKIA1", "s", "t")}
    assert calls.read_text().count("\n") == 1


async def test_credentials_are_renewed_before_they_end(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))
    process_profile(home, expires=soon)
    control = make(aws_profile="dynamic")
    first = await control.credentials()
    assert await control.credentials() == first
    monkeypatch.setattr(control, "_check_at", 0.0)
    assert await control.credentials() != first


async def test_expired_credentials_are_looked_for_again(home: Path) -> None:
    configure(home, credentials=CREDENTIALS[1])
    control = make()
    assert await control.credentials() == Credentials("AKIADEF", "d/e=f # no comment")
    configure(home, credentials=CREDENTIALS[1].replace("AKIADEF", "AKIANEW"))
    # All that were on their way find out at the same time, and may try again.
    assert await asyncio.gather(*(control.refresh() for _ in range(5))) == [True] * 5
    assert (await control.credentials() or Credentials("", "")).access_key == "AKIANEW"


async def test_credentials_that_stay_the_same_are_not_tried_again(home: Path) -> None:
    configure(home, credentials=CREDENTIALS[1])
    control = make()
    await control.credentials()
    assert not await control.refresh()
    assert not await make(no_sign_request="true").refresh()


async def test_no_credentials_says_where_they_could_be() -> None:
    with pytest.raises(AccessRefused, match="AWS_PROFILE") as refused:
        await make().credentials()
    assert "--aws-profile" in str(refused.value)
    assert await make(no_sign_request="true").credentials() is None


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ("[default]\ncredential_process = /bin/false\n", AccessRefused),
        ("[default]\nsso_session = x\nsso_account_id = 1\nsso_role_name = r\n", ConfigError),
        ("[default]\nrole_arn = x\nsource_profile = nowhere\n", ConfigError),
        ("[default]\nrole_arn = x\nweb_identity_token_file = /nowhere\n", NotFound),
        ("[default]\naws_access_key_id = A\n", AccessRefused),
    ],
)
async def test_trouble_with_the_chain(config: str, kind: type[FastsyncError], home: Path) -> None:
    configure(home, config=config)
    with pytest.raises(kind) as refused:
        await make().credentials()
    assert isinstance(refused.value, FastsyncError)


async def test_keys_of_a_place_come_first_and_identify_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "e")
    control = make(**KEYS, session_token="t", region="eu-west-1")
    assert await control.credentials() == Credentials("AKIA1", SECRET, "t")
    assert control.identity == make(**KEYS, region="us-west-2").identity
    assert control.identity != make().identity
    assert SECRET not in repr(control.identity)


# -- endpoints -------------------------------------------------------------------------------------------


def test_hosts_of_aws_are_those_of_botocore() -> None:
    session = botocore.session.Session()
    resolver = EndpointResolver(session.get_component("data_loader").load_data("endpoints"))
    known = 0
    for partition in session.get_available_partitions():
        for region in session.get_available_regions("s3", partition):
            host = aws_host(region)
            if host is not None:
                known += 1
                assert host == resolver.construct_endpoint("s3", region)["hostname"]
    assert known > 30
    for region in ("us-iso-east-1", "us-isob-east-1", "aws-global", "fips-us-gov-west-1", "x"):
        assert aws_host(region) is None


@pytest.mark.parametrize(
    ("addressing", "bucket"),
    [
        ("auto", "a-bucket"),
        ("auto", "with.dots"),
        ("path", "a-bucket"),
        ("virtual", "a-bucket"),
        ("virtual", "with.dots"),
        ("virtual", "UPPER_case"),
    ],
)
async def test_addresses_at_aws_follow_botocores_rules(addressing: str, bucket: str) -> None:
    control = make(region="eu-west-1", addressing=addressing)
    plain = await control.endpoint(bucket)
    assert plain == await control._by_rules(bucket, "eu-west-1")
    assert plain.style == ("virtual" if bucket == "a-bucket" and addressing != "path" else "path")


@pytest.mark.parametrize(
    ("environ", "config", "region", "host"),
    [
        ({}, "", "us-iso-east-1", "b-1.s3.us-iso-east-1.c2s.ic.gov"),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, "", "us-east-1", "b-1.s3-fips.us-east-1.amazonaws.com"),
        (
            {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
            "",
            "eu-west-1",
            "b-1.s3.dualstack.eu-west-1.amazonaws.com",
        ),
        (
            {},
            "[default]\ns3 =\n  use_accelerate_endpoint = true\n",
            "eu-west-1",
            "b-1.s3-accelerate.amazonaws.com",
        ),
    ],
)
async def test_special_endpoints_are_botocores(
    environ: dict[str, str],
    config: str,
    region: str,
    host: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(home, config=config)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    endpoint = await make(region=region).endpoint("b-1")
    assert (endpoint.authority, endpoint.region, endpoint.is_aws) == (host, region, True)
    assert (endpoint.path, endpoint.style) == ("", "virtual")


async def test_a_region_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        await make(region="-x.y").endpoint("b-1")


SERVICES = (
    "[default]\nservices = mine\nendpoint_url = http://of-all:1\n"
    "[services mine]\ns3 =\n  endpoint_url = http://of-s3:2\n"
)


@pytest.mark.parametrize(
    ("environ", "config"),
    [
        ({"AWS_ENDPOINT_URL_S3": "http://s:1", "AWS_ENDPOINT_URL": "http://g:1"}, SERVICES),
        ({"AWS_ENDPOINT_URL": "http://g:1/base/"}, SERVICES),
        ({"AWS_ENDPOINT_URL_S3": ""}, SERVICES),
        ({}, SERVICES),
        ({}, SERVICES.replace("services = mine\n", "")),
        ({}, SERVICES.replace("s3 =", "dynamodb =")),
        ({"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true", "AWS_ENDPOINT_URL": "http://g:1"}, ""),
        ({"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false"}, SERVICES),
        ({}, SERVICES.replace("services =", "ignore_configured_endpoint_urls = True\nservices =")),
    ],
)
def test_configured_endpoints_are_those_of_botocore(
    environ: dict[str, str], config: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(home, config=config)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    client = botocore.session.Session().create_client(
        "s3", "eu-west-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    wanted = client.meta.endpoint_url.rstrip("/")
    found = configured_endpoint(read_shared(None))
    if found is None:
        assert "amazonaws.com" in wanted
    else:
        assert f"{found.origin}{found.path}" == wanted


def test_bad_configured_endpoints(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(home, config="[default]\nservices = nowhere\n")
    with pytest.raises(ConfigError, match="nowhere"):
        configured_endpoint(read_shared(None))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@h")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL") as refused:
        configured_endpoint(read_shared(None))
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "addressing", "bucket", "authority", "path"),
    [
        ("http://h:9000", "auto", "b-1", "h:9000", "/b-1"),
        ("https://h/base", "auto", "b-1", "h", "/base/b-1"),
        ("https://h/base", "virtual", "b-1", "b-1.h", "/base"),
        ("https://h", "virtual", "b.1", "h", "/b.1"),
        ("http://h", "virtual", "b.1", "b.1.h", ""),
        ("http://127.0.0.1:9", "virtual", "b-1", "127.0.0.1:9", "/b-1"),
        ("http://[::1]:9", "virtual", "b-1", "[::1]:9", "/b-1"),
        ("https://h", "virtual", "B_1", "h", "/B_1"),
    ],
)
async def test_addresses_at_other_servers(
    url: str, addressing: str, bucket: str, authority: str, path: str
) -> None:
    endpoint = await make(endpoint_url=url, addressing=addressing).endpoint(bucket)
    assert (endpoint.authority, endpoint.path) == (authority, path)
    assert endpoint.style == ("path" if path.endswith(bucket) else "virtual")
    assert (endpoint.region, endpoint.is_aws) == ("us-east-1", False)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://bucket.vpce-1a2b.s3.us-gov-west-1.vpce.amazonaws.com", "us-gov-west-1"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://s3.amazonaws.com", "us-east-1"),
    ],
)
async def test_a_named_endpoint_of_aws_tells_its_region(url: str, region: str) -> None:
    endpoint = await make(endpoint_url=url).endpoint("b-1")
    assert (endpoint.style, endpoint.region, endpoint.is_aws) == ("virtual", region, True)


async def test_whoever_looks_like_aws_is_not() -> None:
    for host in ("amazonaws.com.evil.example", "evilamazonaws.com", "s3.eu-west-1.example.org"):
        assert not (await make(endpoint_url=f"https://{host}").endpoint("b-1")).is_aws


async def test_which_region_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(home, config="[default]\nregion = eu-west-1\n")
    assert (await make().endpoint("b-1")).region == "eu-west-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert (await make().endpoint("b-1")).region == "eu-west-2"
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert (await make().endpoint("b-1")).region == "eu-west-3"
    control = make(region="eu-north-1")
    assert (await control.endpoint("b-1")).region == "eu-north-1"
    # The service's own word, after a first try with ours.
    corrected = await control.endpoint("b-1", region="us-west-2")
    assert corrected.authority == "b-1.s3.us-west-2.amazonaws.com"


@pytest.mark.parametrize(
    ("status", "headers", "region"),
    [
        (403, {"x-amz-bucket-region": "eu-west-3"}, "eu-west-3"),
        (301, {"x-amz-bucket-region": "eu-west-3", "location": "http://evil.example"}, "eu-west-3"),
        (404, {}, "us-east-1"),
        (200, {"x-amz-bucket-region": "evil.example/x"}, "us-east-1"),
    ],
)
async def test_the_region_of_a_bucket_is_found_out_anonymously(
    status: int,
    headers: dict[str, str],
    region: str,
    server: Answers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In place of AWS.
    monkeypatch.setattr(
        control_module, "Origin", lambda *_: Origin("http", "127.0.0.1", server.port)
    )
    server.reply = lambda *_: (status, headers, b"")
    assert await make(**KEYS)._discover("b-1") == region
    ((method, path, sent),) = server.seen
    assert (method, path) == ("HEAD", "/b-1")
    assert "authorization" not in sent


async def test_a_busy_service_is_asked_later(
    server: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        control_module, "Origin", lambda *_: Origin("http", "127.0.0.1", server.port)
    )
    server.reply = lambda *_: (503, {"retry-after": "3"}, b"")
    with pytest.raises(Throttled) as told:
        await make()._discover("b-1")
    assert told.value.retry_after_s == 3


@pytest.mark.parametrize(
    "bucket", ["a/b", "..", "ab", "-a", "a b", "a\r\nb", "a?b", "b" * 256, "a@b"]
)
async def test_names_that_would_change_a_request_are_refused(bucket: str) -> None:
    with pytest.raises(UsageError, match="3 to 63 letters"):
        await make(endpoint_url="http://h").endpoint(bucket)


async def test_directory_buckets_are_refused() -> None:
    with pytest.raises(Unsupported):
        await make(region="us-east-1").endpoint("b--use1-az4--x-s3")


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({}, "https://h", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://h", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://h", None),
        ({"http_proxy": "p:1"}, "http://h", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.org,h"}, "https://h:9000", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example.org"}, "https://a.example.org", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://h", None),
    ],
)
async def test_proxies(
    environ: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    control = make(endpoint_url=url)
    assert control.proxy_for((await control.endpoint("b-1")).origin) == proxy


def test_certificates_to_trust(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make().ca_file is None
    configure(home, config="[default]\nca_bundle = /a\n")
    assert make().ca_file == "/a"
    monkeypatch.setenv("AWS_CA_BUNDLE", "/b")
    assert make().ca_file == "/b"


# -- buckets ---------------------------------------------------------------------------------------------


async def listed(control: Control, options: StoreOptions | None = None) -> dict[str, int | None]:
    plane = Plane(control, "", control.options)
    try:
        await plane.open(options or StoreOptions())
        return dict(await list_buckets(plane))
    finally:
        await plane.aclose()


async def create(control: Control, bucket: str) -> None:
    plane = Plane(control, bucket, control.options)
    try:
        await plane.open(StoreOptions())
        await create_bucket(plane)
    finally:
        await plane.aclose()


async def test_buckets_are_made_and_listed(moto: S3Server) -> None:
    place = {"endpoint_url": moto.endpoint, **KEYS}
    before = time.time_ns() - 2_000_000_000
    control = make(**place)
    await create(control, "one-bucket")
    with pytest.raises(Conflict, match="one-bucket"):
        await create(control, "one-bucket")
    elsewhere = make(**place, region="eu-west-1")
    await create(elsewhere, "other-bucket")
    buckets = await listed(control)
    assert {"one-bucket", "other-bucket"} <= set(buckets)
    created_ns = buckets["one-bucket"]
    assert created_ns is not None
    assert before <= created_ns <= time.time_ns()
    where = moto.client.get_bucket_location(Bucket="other-bucket")["LocationConstraint"]
    assert where == "eu-west-1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int, server: Answers, trap: Answers) -> None:
    location = f"http://localhost:{trap.port}/elsewhere"
    server.reply = lambda *_: (status, {"Location": location}, b"")
    control = make(endpoint_url=server.url, **KEYS, session_token="a-token")
    with pytest.raises(AccessRefused, match="redirect to 'localhost'"):
        await listed(control)
    with pytest.raises(AccessRefused):
        await create(control, "b-1")
    assert server.seen[0][2]["x-amz-security-token"] == "a-token"
    assert trap.seen == []


async def test_a_redirect_of_the_chain_is_not_followed(
    home: Path, server: Answers, trap: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "token").write_text("web-identity")
    configure(
        home,
        config="[default]\nregion = us-east-1\nrole_arn = arn:aws:iam::1:role/x\n"
        f"web_identity_token_file = {home / 'token'}\n",
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
    location = f"http://localhost:{trap.port}/"
    server.reply = lambda *_: (307, {"Location": location}, b"")
    control = make()
    with pytest.raises(FastsyncError):
        await control.credentials()
    assert server.seen
    assert trap.seen == []


@pytest.mark.parametrize(
    "body",
    [
        b"<html>log in first</html>",
        b"",
        b"{}",
        b"<ListAllMyBucketsResult><Buckets><Bucket><Name>../x</Name></Bucket></Buckets></ListAllMyBucketsResult>",
    ],
)
async def test_what_is_no_list_of_buckets_is_not_believed(body: bytes, server: Answers) -> None:
    server.reply = lambda *_: (200, {}, body)
    control = make(endpoint_url=server.url, **KEYS)
    with pytest.raises(ListingError):
        await listed(control)


async def test_failures_are_not_tried_again_here(server: Answers) -> None:
    server.reply = lambda *_: (503, {"Retry-After": "7"}, b"<Error><Code>SlowDown</Code></Error>")
    control = make(endpoint_url=server.url, **KEYS)
    with pytest.raises(Throttled) as told:
        await listed(control)
    assert told.value.retry_after_s == 7
    assert len(server.seen) == 1


async def test_nobody_answers(server: Answers) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        control = make(endpoint_url=f"http://127.0.0.1:{unused.getsockname()[1]}", **KEYS)
        with pytest.raises(Transient):
            await listed(control)

    def late(*_: object) -> tuple[int, dict[str, str], bytes]:
        time.sleep(1.5)
        return 200, {}, b""

    server.reply = late
    control = make(endpoint_url=server.url, **KEYS)
    with pytest.raises(Stalled):
        await listed(control, StoreOptions(request_timeout_s=0.2))


async def test_anonymous_calls_are_not_signed(server: Answers) -> None:
    server.reply = lambda *_: (403, {}, b"<Error><Code>AccessDenied</Code></Error>")
    control = make(endpoint_url=server.url, no_sign_request="true")
    with pytest.raises(PermissionRefused):
        await listed(control)
    assert "authorization" not in server.seen[0][2]


# -- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", PermissionRefused),
        (403, "", PermissionRefused),
        (403, "InvalidAccessKeyId", AccessRefused),
        (403, "SignatureDoesNotMatch", AccessRefused),
        (400, "ExpiredToken", AccessRefused),
        (400, "InvalidToken", AccessRefused),
        (400, "TokenRefreshRequired", AccessRefused),
        (401, "", AccessRefused),
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchVersion", NotFound),
        (404, "NoSuchBucket", NotFound),
        (404, "NoSuchUpload", NotFound),
        (404, "", NotFound),
        (412, "PreconditionFailed", Overtaken),
        (412, "", Overtaken),
        (409, "ConditionalRequestConflict", Transient),
        (409, "OperationAborted", Transient),
        (409, "BucketAlreadyOwnedByYou", Conflict),
        (503, "SlowDown", Throttled),
        (503, "", Throttled),
        (503, "ServiceUnavailable", Throttled),
        (400, "RequestLimitExceeded", Throttled),
        (429, "", Throttled),
        (500, "InternalError", Transient),
        (200, "InternalError", Transient),
        (500, "", Transient),
        (502, "", Transient),
        (504, "", Transient),
        (400, "RequestTimeout", Transient),
        (400, "BadDigest", IntegrityError),
        (400, "InvalidDigest", IntegrityError),
        (400, "XAmzContentSHA256Mismatch", IntegrityError),
        (400, "XAmzContentChecksumMismatch", IntegrityError),
        (400, "EntityTooLarge", Unsupported),
        (413, "", Unsupported),
        (403, "InvalidObjectState", Unsupported),
        (501, "NotImplemented", Unsupported),
        (501, "", Unsupported),
        (405, "MethodNotAllowed", Unsupported),
        (416, "InvalidRange", Changed),
        (403, "QuotaExceeded", DestinationFull),
        (507, "", DestinationFull),
        (507, "XMinioStorageFull", DestinationFull),
        (400, "KeyTooLongError", NameRefused),
        (400, "InvalidBucketName", UsageError),
        (301, "PermanentRedirect", AccessRefused),
        (307, "TemporaryRedirect", AccessRefused),
        (400, "AuthorizationHeaderMalformed", AccessRefused),
        (400, "SomethingNew", FastsyncError),
        (400, "", FastsyncError),
        (304, "", FastsyncError),
    ],
)
def test_what_an_error_of_the_service_means(
    status: int, code: str, kind: type[FastsyncError]
) -> None:
    error = map_error(status, code, "the server's words", {}, "s3://b/k", "get the object")
    assert type(error) is kind
    assert error.where == "s3://b/k"


def test_hints_say_what_to_do() -> None:
    archived = map_error(403, "InvalidObjectState", "", {}, "s3://b/k", "get the object")
    assert "restore" in (archived.hint or "")
    expired = map_error(400, "ExpiredToken", "", {}, "s3://b/k", "get the object")
    assert "--aws-profile" in (expired.hint or "")
    elsewhere = map_error(
        301,
        "PermanentRedirect",
        "",
        {"x-amz-bucket-region": "eu-west-1"},
        "s3://b",
        "list the bucket",
    )
    assert elsewhere.hint == "--region eu-west-1"
    assert "status 400" in str(map_error(400, "", "", {}, "s3://b/k", "head the object"))


def test_a_deleted_version_is_not_found() -> None:
    headers = {"x-amz-delete-marker": "true"}
    assert type(map_error(405, "", "", headers, "w", "get the object")) is NotFound
    assert "bucket" in str(map_error(404, "", "", {}, "w", "head the bucket"))


def test_words_of_the_server_are_kept_short() -> None:
    said = str(map_error(400, "New", "x" * 100_000, {}, "w", "get the object"))
    assert "xxx" in said
    assert len(said) < 500
    assert "AccessDenied" not in str(
        map_error(403, "AccessDenied", "no", {}, "w", "get the object")
    )


def test_words_of_the_server_are_not_repeated() -> None:
    error = map_error(403, "AccessDenied", "Access Denied.", {}, "w", "read the object")
    assert error.message == "could not read the object: access denied"


@pytest.mark.parametrize(
    "location", ["https://evil\x1b[2J.example/k?token=hunter2", "http://[", "//evil.example", ""]
)
def test_a_redirect_names_the_host_escaped(location: str) -> None:
    said = str(map_error(307, "", "", {"location": location}, "w", "get the object"))
    assert "redirect to '" in said
    assert "\x1b" not in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("date_in_s", "low", "high"), [(None, 5, 5), (9000, 5000, 9000), (-9000, 0, 0)]
)
def test_how_long_to_wait(date_in_s: int | None, low: float, high: float) -> None:
    text = "5"
    if date_in_s is not None:
        text = email.utils.formatdate(time.time() + date_in_s, usegmt=True)
    error = map_error(503, "SlowDown", "", {"retry-after": text}, "w", "put the object")
    assert isinstance(error, Throttled)
    assert error.retry_after_s is not None
    assert low <= error.retry_after_s <= high


@pytest.mark.parametrize("text", ["", "soon", "-1", "1e9", "\u0665", "Mon, 99 Foo"])
def test_a_wait_that_is_none(text: str) -> None:
    error = map_error(503, "", "", {"retry-after": text}, "w", "put the object")
    assert isinstance(error, Throttled)
    assert error.retry_after_s is None


def test_a_clock_that_differs() -> None:
    headers = {"date": email.utils.formatdate(time.time() + 4000, usegmt=True)}
    error = map_error(403, "RequestTimeTooSkewed", "", headers, "w", "get the object")
    assert type(error) is AccessRefused
    assert any(f"{offset:+d} s" in str(error) for offset in (3998, 3999, 4000))
    assert "clock" in str(map_error(403, "RequestTimeTooSkewed", "", {}, "w", "get the object"))


@pytest.mark.parametrize(
    ("headers", "body", "region"),
    [
        ({"x-amz-bucket-region": "eu-west-1"}, b"", "eu-west-1"),
        ({}, b"<Error><Region>us-west-2</Region></Error>", "us-west-2"),
        ({}, b"<Error><Region>evil.example/</Region></Error>", None),
        ({"x-amz-bucket-region": "evil.example"}, b"", None),
        ({}, b"<html>", None),
        ({}, b"", None),
    ],
)
def test_a_region_is_believed_if_it_looks_like_one(
    headers: dict[str, str], body: bytes, region: str | None
) -> None:
    assert region_from_error(headers, body) == region


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (its.EndpointConnectionError(endpoint_url="u"), Transient),
        (its.ConnectionClosedError(endpoint_url="u"), Transient),
        (its.ConnectTimeoutError(endpoint_url="u"), Stalled),
        (its.ReadTimeoutError(endpoint_url="u"), Stalled),
        (its.SSLError(endpoint_url="u", error="e"), AccessRefused),
        (its.NoCredentialsError(), AccessRefused),
        (its.UnauthorizedSSOTokenError(), AccessRefused),
        (its.ProfileNotFound(profile="p"), ConfigError),
        (its.ParamValidationError(report="r"), UsageError),
        (its.InvalidRegionError(region_name="r"), UsageError),
        (its.PaginationError(message="m"), ListingError),
    ],
)
def test_what_an_error_of_botocore_means(error: Exception, kind: type[FastsyncError]) -> None:
    assert type(from_botocore(error, "w", "list the buckets")) is kind


def test_a_broken_file_is_not_quoted_by_botocores_error() -> None:
    error = its.ConfigParseError(path="/p", error=f"line: {SECRET}")
    assert SECRET not in str(from_botocore(error, "w", "find credentials"))
    assert from_botocore(ValueError("ours"), "w", "find credentials") is None
