"""Secrets that this process has met, and text without them: the last gate of errors, notes and logs.

Nothing should have to be taken out here, for messages are made without secrets. But texts come from
libraries, servers and tracebacks, too, and may quote what they were given.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SHOWN: Final = "***"
# Shorter ones would take ordinary words out of messages, and protect nothing.
_SHORTEST: Final = 6

_known: set[str] = set()

# What is a secret by the place it stands at, whoever's it is: userinfo of a URL, parts of a signed query,
# header lines of credentials.
_QUERY: Final = (
    "x-amz-signature|x-amz-credential|x-amz-security-token|signature|awsaccesskeyid|sig|token|"
    "access_token|api_?key|password"
)
_HEADERS: Final = (
    "(?:proxy-)?authorization|x-amz-security-token|(?:set-)?cookie|x-api-key|"
    "x-amz-(?:copy-source-)?server-side-encryption-customer-key"
)
_BY_PLACE: Final = (
    (r"(?<=://)([^\s/@:?#'\"<>]*):[^\s/@?#'\"<>]+@", rf"\1:{SHOWN}@"),
    (rf"(?i)([?&](?:{_QUERY})=)[^\s&#'\"<>]+", rf"\1{SHOWN}"),
    (
        rf"(?i)\b({_HEADERS})(['\"]?\s*[:=,]\s*(?:b?['\"])?)(?:(?:basic|bearer|aws4-hmac-sha256)\s+)?[^\s'\"]+",
        rf"\1\2{SHOWN}",
    ),
)


def conceal(*secrets: str | None) -> None:
    """Keep these out of everything that `redacted` sees from now on."""
    _known.update(secret for secret in secrets if secret and len(secret) >= _SHORTEST)


def redacted(text: str) -> str:
    """`text` without any secret: neither one that `conceal` was told of, as it is or as a URL writes it,
    nor one that shows by the place it stands at."""
    if _known:
        from urllib.parse import quote, quote_plus

        written: set[str] = set()
        for secret in _known:
            try:
                written |= {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)}
            except UnicodeEncodeError:  # half a surrogate pair
                written.add(secret)
        # The longest first: one may be a part of another.
        for secret in sorted(written, key=len, reverse=True):
            text = text.replace(secret, SHOWN)
    for pattern, instead in _BY_PLACE:
        text = re.sub(pattern, instead, text)
    return text
