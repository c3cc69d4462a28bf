"""What the environment and the shared files of AWS say: a profile's settings, credentials that are written
down, where S3 is to be found. Read in two milliseconds, and only where botocore cannot come to another
answer (tests compare the two)."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from fastsync.errors import ConfigError, UsageError
from fastsync_s3.options import BaseUrl, parse_endpoint
from fastsync_s3.signing import Credentials


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
    # One that is not ours is common, where a container has it mounted; one that everybody can write may name
    # a `credential_process`, which is run.
    if os.stat(path).st_mode & stat.S_IWOTH:
        raise ConfigError(
            "others can write it", where=path, hint=f"to stop that: chmod go-w {path}"
        )
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
            key = text_of(settings, "aws_access_key_id")
            secret = text_of(settings, "aws_secret_access_key")
            token = settings.get("aws_security_token", settings.get("aws_session_token"))
            if key and secret and (token is None or (token and isinstance(token, str))):
                return Credentials(key, secret, token)
            return None
    return None


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
        url = text_of(table_of(services, "s3"), "endpoint_url")
    url = url or text_of(settings, "endpoint_url")
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
    return found or text_of(shared.settings, "region")


def needs_rules(shared: Shared) -> bool:
    """Whether AWS's endpoints are chosen by more than a region."""
    settings, s3 = shared.settings, table_of(shared.settings, "s3")
    switches = (
        os.environ.get("AWS_USE_FIPS_ENDPOINT", settings.get("use_fips_endpoint")),
        os.environ.get("AWS_USE_DUALSTACK_ENDPOINT", settings.get("use_dualstack_endpoint")),
        s3.get("use_dualstack_endpoint"),
        s3.get("use_accelerate_endpoint"),
    )
    other_rules = os.environ.get("AWS_DATA_PATH") or settings.get("data_path")
    return bool(other_rules) or any(str(switch).lower() == "true" for switch in switches)


def text_of(settings: Mapping[str, Any], name: str) -> str | None:
    text = settings.get(name)
    return text if text and isinstance(text, str) else None


def table_of(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = settings.get(name)
    return table if isinstance(table, dict) else {}
