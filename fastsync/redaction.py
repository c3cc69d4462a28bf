"""Secrets that this process has met, and text without them: the last gate of errors, notes and logs.

Nothing should have to be taken out here, for messages are made without secrets. But texts come from
libraries, servers and tracebacks, too, and may quote what they were given.
"""

from __future__ import annotations

import re
from functools import lru_cache

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


@lru_cache(64)
def _written(secret: str) -> frozenset[str]:
    """How a secret may stand in a text: as it is, in a URL, and quoted by Python or JSON."""
    if secret.isascii() and secret.isalnum():
        return frozenset((secret,))
    import json
    from urllib.parse import quote, quote_plus

    forms = {secret}
    try:
        forms |= {quote(secret, safe=""), quote(secret), quote_plus(secret)}
        forms.add(repr(secret.encode("utf-8", "surrogateescape") + b"\"'")[2:-4])
    except UnicodeEncodeError:  # half a surrogate pair
        pass
    # With quotes of both kinds at its end, Python quotes a text by ' and escapes each ' in it.
    for shown in (repr, ascii):
        forms.add(shown(secret + "\"'")[1:-4])
    forms |= {form.replace("\\'", "'") for form in forms}
    in_json = (json.dumps(secret, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False))
    return frozenset(forms).union(in_json)


def redacted(text: str) -> str:
    """`text` without any secret: neither one that `conceal` was told of, as it is or as a URL writes it,
    nor one that shows by the place it stands at."""
    if _known:
        written = {form for secret in _known for form in _written(secret)}
        # The longest first: one may be a part of another.
        for secret in sorted(written, key=len, reverse=True):
            text = text.replace(secret, SHOWN)
    for pattern, instead in _BY_PLACE:
        text = re.sub(pattern, instead, text)
    return text
