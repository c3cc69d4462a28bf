"""Options, credentials and TLS: what reaches the server, what is refused, and that no secret is told."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from s3_servers import S3Server

if TYPE_CHECKING:
    from tests.conftest import Done, Fastsync

FILE = "report.pdf"


@pytest.fixture(autouse=True)
def file(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"%PDF")


def told(done: Done, secret: str) -> str:
    """All it says, in which there must be no secret."""
    said = done.stdout + done.stderr
    assert secret not in said
    assert "Authorization" not in said
    assert "X-Amz-Signature" not in said
    return said


# -- what is written ---------------------------------------------------------------------------------


def test_what_is_written_is_as_was_asked(fastsync: Fastsync, moto: S3Server) -> None:
    fastsync.environ |= moto.environ
    bucket = moto.new_bucket()
    options = (
        *("--storage-class", "STANDARD_IA", "--sse", "AES256", "--acl", "public-read"),
        *("--content-type", "text/x-y; charset=utf-8", "--cache-control", "max-age=5"),
        *(
            "--metadata",
            "project=apollo",
            "--metadata",
            "Stage=two = 2",
            "--request-payer",
            "requester",
        ),
    )
    for arguments in (("cp", FILE), ("pipe",)):
        key = arguments[0]
        assert fastsync(*arguments, *options, f"s3://{bucket}/{key}") == (0, "", "")
        head = moto.client.head_object(Bucket=bucket, Key=key)
        assert (head["StorageClass"], head["ServerSideEncryption"]) == ("STANDARD_IA", "AES256")
        assert (head["ContentType"], head["CacheControl"]) == (
            "text/x-y; charset=utf-8",
            "max-age=5",
        )
        wanted = {"project": "apollo", "stage": "two = 2"}
        assert wanted.items() <= head["Metadata"].items()
        grants = moto.client.get_object_acl(Bucket=bucket, Key=key)["Grants"]
        assert any("AllUsers" in grant["Grantee"].get("URI", "") for grant in grants)


def test_a_type_comes_from_the_name(fastsync: Fastsync, s3: S3Server, bucket: str) -> None:
    assert fastsync("cp", FILE, f"s3://{bucket}/") == (0, "", "")
    assert s3.client.head_object(Bucket=bucket, Key=FILE)["ContentType"] == "application/pdf"


@pytest.mark.parametrize(
    "options",
    [
        ("--endpoint-url", "not-a-url"),
        ("--endpoint-url", "ftp://host"),
        ("--endpoint-url", "http://user:opensesame@host"),
        ("--addressing", "sideways"),
        ("--sse", "ROT13"),
        ("--sse-kms-key-id", "key"),
        ("--request-payer", "nobody"),
        ("--metadata", "no value"),
        ("--metadata", "café=x"),
        ("--metadata", "x=é"),
        ("--content-type", "a\nb: c"),
        ("--cache-control", "a\r\nb: c"),
        ("--region", "a b"),
        ("--aws-profile", "no-such-profile"),
    ],
    ids=" ".join,
)
def test_values_that_cannot_be_are_refused(
    fastsync: Fastsync, s3: S3Server, bucket: str, options: tuple[str, str]
) -> None:
    done = fastsync("cp", *options, FILE, f"s3://{bucket}/")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "Contents" not in s3.client.list_objects_v2(Bucket=bucket)
    told(done, "opensesame")


@pytest.mark.parametrize(
    "place", ["s3://ab", "s3://user:opensesame@bucket/", "s3://bucket:80/", "s3://buck et/"]
)
def test_places_that_cannot_be_are_refused(fastsync: Fastsync, s3: S3Server, place: str) -> None:
    done = fastsync("ls", place)
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    told(done, "opensesame")


# -- credentials -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "hint"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "open-sesame"}, "is the secret access key the one"),
        (
            {"AWS_ACCESS_KEY_ID": "AKIANOBODY", "AWS_SECRET_ACCESS_KEY": "open-sesame"},
            "--aws-profile",
        ),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "--no-sign-request"),
    ],
)
def test_credentials_that_are_wrong(
    fastsync: Fastsync, s3: S3Server, bucket: str, environ: Mapping[str, str], hint: str
) -> None:
    s3.client.put_object(Bucket=bucket, Key="k", Body=b"k")
    place = f"s3://{bucket}/k"
    for arguments in (
        ("ls", place),
        ("ls", f"s3://{bucket}"),
        ("ls", "s3://"),
        ("stat", place),
        ("cat", place),
        ("cp", "-vv", place, "here"),
        ("cp", "-vv", FILE, place),
        ("cp", "--json", FILE, f"s3://{bucket}/"),
        ("sync", "-vv", f"s3://{bucket}", "here"),
        ("pipe", place),
        ("rm", place),
        ("mkdir", f"s3://{bucket}-2"),
    ):
        done = fastsync(*arguments, env=environ)
        said = told(done, "open-sesame")
        assert (done.code, hint in said) == (5, True), (arguments, done)
    assert s3.client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"k"


def test_profiles_of_the_aws_configuration(
    fastsync: Fastsync, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    for name in list(fastsync.environ):
        if name.startswith("AWS_") and name != "AWS_EC2_METADATA_DISABLED":
            del fastsync.environ[name]
    aws = tmp_path / "home/.aws"
    aws.mkdir(parents=True)
    (aws / "credentials").write_text(
        "[default]\naws_access_key_id = AKIANOBODY\naws_secret_access_key = open-sesame\n"
        f"[good]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    (aws / "config").write_text(
        f"[default]\nendpoint_url = {s3.endpoint}\nregion = us-east-1\n"
        f"[profile good]\nendpoint_url = {s3.endpoint}\nregion = us-east-1\n"
    )
    place = f"s3://{bucket}/"
    assert fastsync("cp", FILE, place).code == 5
    assert fastsync("cp", "--aws-profile", "good", FILE, place) == (0, "", "")
    assert fastsync("ls", place, env={"AWS_PROFILE": "good"}) == (0, f"{FILE}\n", "")
    config = tmp_path / "config.toml"
    config.write_text(f'[places."{place}"]\naws_profile = "good"\n')
    config.chmod(0o600)
    assert fastsync("ls", "--config", config, place) == (0, f"{FILE}\n", "")
    (aws / "credentials").write_text("[default]\nthis is = no\n  [[file\nopen-sesame")
    done = fastsync("ls", place)
    assert done.code in (2, 5)
    told(done, "open-sesame")


def test_without_credentials_what_is_public_can_be_read(
    fastsync: Fastsync, s3: S3Server, bucket: str
) -> None:
    s3.client.put_object(Bucket=bucket, Key="k", Body=b"k")
    place = f"s3://{bucket}/k"
    done = fastsync("cat", "--no-sign-request", place)
    assert (done.code, done.stdout, "access denied" in done.stderr) == (1, "", True)
    policy: dict[str, Any] = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": ["s3:GetObject", "s3:ListBucket"],
                "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
            }
        ],
    }
    s3.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    environ = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    assert fastsync("cat", "--no-sign-request", place, env=environ) == (0, "k", "")
    assert fastsync("ls", "--no-sign-request", f"s3://{bucket}", env=environ) == (0, "k\n", "")


# -- where -------------------------------------------------------------------------------------------


def test_an_endpoint_and_how_to_address_it(fastsync: Fastsync, s3: S3Server, bucket: str) -> None:
    del fastsync.environ["AWS_ENDPOINT_URL_S3"]
    options = ("--endpoint-url", s3.endpoint, "--region", "us-east-1")
    for addressing in ("auto", "path"):
        done = fastsync("cp", "-I", *options, "--addressing", addressing, FILE, f"s3://{bucket}/")
        assert done == (0, "", "")
    closed = fastsync("ls", "--endpoint-url", "http://127.0.0.1:1", f"s3://{bucket}")
    assert (closed.code, "http://127.0.0.1:1: connection refused" in closed.stderr) == (3, True)


def test_certificates(fastsync: Fastsync, versitygw_tls: S3Server, tmp_path: Path) -> None:
    """A server whose certificate nobody vouches for is not talked to, unless told so."""
    bucket = versitygw_tls.new_bucket()
    place = f"s3://{bucket}/"
    bundle = str(versitygw_tls.authority)
    fastsync.environ |= versitygw_tls.environ
    del fastsync.environ["AWS_CA_BUNDLE"], fastsync.environ["SSL_CERT_FILE"]
    for arguments in (
        ("cp", FILE, place),
        ("ls", place),
        ("ls", "s3://"),
        ("mkdir", f"s3://{bucket}-2"),
    ):
        done = fastsync(*arguments)
        said = told(done, versitygw_tls.secret_key)
        assert (done.code, bool(re.search("certificate", said, re.IGNORECASE))) == (5, True), said
    assert fastsync("cp", FILE, place, env={"AWS_CA_BUNDLE": bundle}) == (0, "", "")
    assert fastsync("ls", "s3://", env={"AWS_CA_BUNDLE": bundle}).code == 0
    assert fastsync("ls", "--no-verify-ssl", place) == (0, f"{FILE}\n", "")
    assert fastsync("ls", "s3://", "--no-verify-ssl").code == 0
    for file in ("no-such-file", tmp_path / FILE):
        assert fastsync("ls", place, env={"AWS_CA_BUNDLE": str(file)}).code == 2
