"""Pages of keys in every dress, whole and broken; answers and requests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastsync.errors import ListingError, NameRefused, Transient
from fastsync_s3 import rows
from fastsync_s3.documents import (
    ErrorReply,
    ListPage,
    Row,
    build_complete,
    build_delete,
    is_error,
    parse_complete,
    parse_copy,
    parse_delete,
    parse_error,
    parse_initiate,
    parse_list,
    parse_parts,
    parse_tagging,
    parse_uploads,
    parse_versions,
)
from fastsync_s3.elements import MAX_BODY, time_ns

NS = "http://s3.amazonaws.com/doc/2006-03-01/"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
TIME, TIME_NS = "2024-02-29T23:59:58.120Z", 1709251198_120000000

Dress = Callable[[str, str], str]
Writer = Callable[[Row], str]


def element(name: str, text: str) -> str:
    return f"<{name}>{text}</{name}>"


def row_of(order: str, mark: str, extra: str = "", after: int = 0) -> Writer:
    """How a server writes a row: order of elements by initial, the quotation mark, what else it has."""

    def write(row: Row) -> str:
        key, size, _, etag, storage = row
        parts = {
            "K": element("Key", quote_plus(key, safe="/")),
            "S": element("Size", str(size)),
            "L": element("LastModified", TIME),
            "E": element("ETag", f"{mark}{etag}{mark}"),
            "C": element("StorageClass", storage),
        }
        pieces = [parts[letter] for letter in order]
        pieces.insert(after, extra)
        return element("Contents", "".join(pieces))

    return write


def indented(written: str) -> str:
    return re.sub("(</[A-Za-z]*>|<Contents>|<Owner>)", r"\1\n  ", written)


CHECKSUMS = (
    "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"
)
ODD_OWNER = "<Owner><ID>75aa57f0</ID><DisplayName>me &quot;x&quot;</DisplayName></Owner>"
OWNER = "<Owner><ID>75aa57f0</ID><DisplayName>me</DisplayName></Owner>"
SERVERS: dict[str, Writer] = {
    "aws": row_of("KLESC", "&quot;"),
    "aws with checksums": row_of("KLESC", "&quot;", CHECKSUMS, 3),
    "go": row_of("LEKSC", "&#34;", "<ChecksumType></ChecksumType>", 1),
    "minio": row_of("KLESC", "&#34;", OWNER, 4),
    "ceph": row_of("KLESC", "&quot;", OWNER + "<Type>Normal</Type>", 5),
    "google": row_of(
        "KLES", '"', "<Generation>1</Generation><MetaGeneration>1</MetaGeneration>", 1
    ),
    "without etags": row_of("KSL", ""),
    "bare etags": row_of("SEKL", ""),
    "rclone": lambda row: indented(row_of("KLESC", "", OWNER, 4)(row)),
}
ODD: dict[str, Writer] = {
    "owner with references": row_of("KLESC", "&quot;", ODD_OWNER, 5),
    "self-closing": row_of("KLESC", "&quot;", "<ChecksumType/>", 5),
    "unknown element": row_of("KLESC", "&quot;", "<New><Part>1</Part></New>", 2),
    "restore status": row_of(
        "KLESC",
        "&quot;",
        "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress></RestoreStatus>",
        5,
    ),
    "indented here and there": lambda row: SERVERS["aws"](row).replace("<Size", "\n\t<Size"),
    "comment": row_of("KLESC", "&quot;", "<!-- <Contents> -->", 2),
    "attribute": lambda row: SERVERS["aws"](row).replace("<Contents>", '<Contents a="1">'),
    "blank in a tag": lambda row: SERVERS["aws"](row).replace("</Key>", "</Key >"),
    "prefix": lambda row: re.sub("<(/?)", r"<\1n:", SERVERS["aws"](row)),
    "cdata": lambda row: re.sub(
        "<Key>(.*?)</Key>", r"<Key><![CDATA[\1]]></Key>", SERVERS["aws"](row)
    ),
    "references": lambda row: SERVERS["aws"](row).replace("<Key>", "<Key>&#x61;&amp;"),
    "mixed with checksums": lambda row: SERVERS["aws with checksums" if row[1] % 2 else "aws"](row),
    "mixed servers": lambda row: SERVERS["go" if row[1] % 2 else "aws"](row),
}


def page_of(
    written: str,
    *,
    name: str = "b",
    truncated: str = "false",
    more: str = "<EncodingType>url</EncodingType>",
    prefixes: str = "",
) -> bytes:
    head = (
        f"{DECLARATION}<ListBucketResult xmlns='{NS}' xmlns:n='{NS}'><Name>{name}</Name><Prefix/>"
    )
    tail = f"<IsTruncated>{truncated}</IsTruncated>{more}{written}{prefixes}</ListBucketResult>"
    return (head + tail).encode()


def slowly(body: bytes) -> ListPage:
    """The same, all of it by expat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_cut", lambda text: None)
        return parse_list(body, bucket="b")


KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
ROWS = st.lists(
    st.builds(
        lambda key, size, etag: (key, size, TIME_NS, etag, "STANDARD"),
        KEYS
        | st.sampled_from(["a+b c", "a%2Fb", "a\nb", "\r", "\0", "]]>", "<Key>", "&amp;", "//"]),
        st.integers(0, 5 << 40),
        st.from_regex(r"[0-9a-f]{32}(-[1-9])?", fullmatch=True),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("server", SERVERS)
@settings(max_examples=25)
@given(found=ROWS)
def test_rows_of_servers_are_read_the_fast_way(server: str, found: list[Row]) -> None:
    body = page_of("".join(map(SERVERS[server], found)))
    page = parse_list(body, bucket="b")
    if server == "without etags":
        found = [(key, size, time, "", storage) for key, size, time, _, storage in found]
    assert page == ListPage(found, [], is_truncated=False)
    assert slowly(body) == page
    assert rows._cut(body.decode()) is not None


@pytest.mark.parametrize("server", ODD)
@settings(max_examples=25)
@given(found=ROWS)
def test_odd_rows_are_all_found(server: str, found: list[Row]) -> None:
    body = page_of("".join(map(ODD[server], found)))
    if server == "references":
        found = [("a&" + row[0], *row[1:]) for row in found]
    assert parse_list(body, bucket="b").rows == found
    assert slowly(body).rows == found


@settings(max_examples=300)
@given(
    ROWS,
    st.sampled_from([*SERVERS.values(), *ODD.values()]),
    st.data(),
    st.sampled_from(
        ["<", ">", "</Key>", "<Contents>", "</Contents>", "&", "&amp;", "]]>", "\x01", "\n"]
    )
    | st.sampled_from(
        ["<!--", "-->", "<![CDATA[", "<a>", "</a>", "<fastsync-rows/>", '"', "\ufffe", "é"]
    ),
)
def test_both_ways_agree_on_damaged_pages(
    found: list[Row], writer: Writer, data: st.DataObject, damage: str
) -> None:
    text = page_of("".join(map(writer, found))).decode()
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 30)) | st.just(start))
    body = (text[:start] + damage + text[stop:]).encode()
    try:
        expected: object = slowly(body)
    except ListingError:
        expected = ListingError
    try:
        page: object = parse_list(body, bucket="b")
    except ListingError:
        page = ListingError
    assert page == expected


@given(ROWS, st.sampled_from(list(SERVERS.values())), st.data())
def test_a_page_cut_short_is_no_page(found: list[Row], writer: Writer, data: st.DataObject) -> None:
    body = page_of("".join(map(writer, found)))
    length = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(ListingError):
        parse_list(body[:length], bucket="b")


ROW = SERVERS["aws"](("k", 1, 0, "e", "STANDARD"))


@pytest.mark.parametrize(
    "written",
    [
        f"<!-- {ROW} -->",
        f"<Other>{ROW}</Other>",
        f"<Other><![CDATA[{ROW}]]></Other>",
        f"<?pi {ROW} ?>",
    ],
)
def test_what_only_looks_like_a_row_is_none(written: str) -> None:
    assert parse_list(page_of(written), bucket="b").rows == []


def test_rows_among_prefixes_keep_their_order() -> None:
    other = SERVERS["aws"](("l", 1, 0, "e", "GLACIER"))
    group = "<CommonPrefixes><Prefix>d%2F</Prefix></CommonPrefixes>"
    page = parse_list(page_of(f"{group}{ROW}{group}{other}<!-- -->{ROW}"), bucket="b")
    assert [row[0] for row in page.rows] == ["k", "l", "k"]
    assert [row[4] for row in page.rows] == ["STANDARD", "GLACIER", "STANDARD"]
    assert page.prefixes == ["d/", "d/"]


def test_an_empty_page() -> None:
    assert parse_list(page_of(""), bucket="b") == ListPage([], [], is_truncated=False)


def test_keys_are_decoded_only_if_they_were_encoded() -> None:
    row = ROW.replace("<Key>k<", "<Key>a%2Bb+c%FF%zz<")
    assert parse_list(page_of(row), bucket="b").rows[0][0] == "a+b c\udcff%zz"
    assert parse_list(page_of(row, more=""), bucket="b").rows[0][0] == "a%2Bb+c%FF%zz"
    raw = ROW.replace("<Key>k<", "<Key>é &amp; \U0001f600<")
    assert parse_list(page_of(raw, more=""), bucket="b").rows[0][0] == "é & \U0001f600"


MARKER = "<Marker></Marker><EncodingType>url</EncodingType>"
GROUP = "<CommonPrefixes><Prefix>z%2F</Prefix></CommonPrefixes>"


@pytest.mark.parametrize(
    ("written", "more", "prefixes", "token", "marker"),
    [
        (ROW, "<NextContinuationToken>t+/%41=</NextContinuationToken>", "", "t+/%41=", None),
        (ROW, MARKER + "<NextMarker>a%2Bb</NextMarker>", "", None, "a+b"),
        (ROW, "<NextMarker>k</NextMarker>", "", None, "k"),  # versitygw leaves Marker out
        (ROW, MARKER, "", None, "k"),
        (ROW, MARKER, GROUP, None, "z/"),
        ("", MARKER, GROUP, None, "z/"),
    ],
)
def test_where_the_next_page_begins(
    written: str, more: str, prefixes: str, token: str | None, marker: str | None
) -> None:
    page = parse_list(page_of(written, truncated="true", more=more, prefixes=prefixes), bucket="b")
    assert page.is_truncated
    assert (page.next_token, page.next_marker) == (token, marker)


def test_version_1_without_a_marker_goes_on_if_it_was_asked_for() -> None:
    body = page_of(ROW, truncated="true")
    assert parse_list(body, bucket="b", version=1).next_marker == "k"
    with pytest.raises(ListingError, match="NextContinuationToken"):
        parse_list(body, bucket="b")


PAGE = page_of(ROW).decode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "not well-formed"),
        ("<html><body>Log in</body></html>", "'html'"),
        ("<!DOCTYPE html><html></html>", "document type"),
        (PAGE.replace("<ListB", "<!DOCTYPE x [<!ENTITY a 'b'>]><ListB"), "document type"),
        (f"<Error><Code>SlowDown</Code><Message>{'m' * 5000}</Message></Error>", "SlowDown: mm"),
        (PAGE.replace("ListBucketResult", "ListVersionsResult"), "ListVersionsResult"),
        (PAGE.replace("<Name>b<", "<Name>other<"), "the bucket 'other'"),
        (PAGE.replace("<Name>b</Name>", ""), "no bucket"),
        (PAGE.replace("<Name>b</Name>", "<Name>b</Name><Name>b</Name>"), "more than one Name"),
        (PAGE.replace(">false<", "><"), "neither true nor false"),
        (PAGE.replace("<IsTruncated>false</IsTruncated>", ""), "without IsTruncated"),
        (page_of(ROW, truncated="true").decode(), "NextContinuationToken"),
        (page_of("", truncated="true", more=MARKER).decode(), "is empty"),
        (page_of(ROW, truncated="true", more="<NextContinuationToken/>").decode(), "NextCont"),
        (PAGE.replace("<Key>k</Key>", ""), "without Key"),
        (PAGE.replace("<Size>1</Size>", ""), "without Size"),
        (PAGE.replace("<Size>1<", "<Size>-1<"), "not a number"),
        (PAGE.replace("<Size>1<", "<Size><"), "not a number"),
        (PAGE.replace("<Size>1<", "<Size>1_0<"), "not a number"),
        (PAGE.replace("<Size>1<", "<Size>٣<"), "not a number"),
        (PAGE.replace("<Size>1<", f"<Size>{'9' * 5000}<"), "not a number"),
        (PAGE.replace("<Key>k<", "<Key>k<i>j</i><"), "more in it than text"),
        (PAGE.replace("2024-02-29T", "2023-02-29T"), "ISO 8601"),
        (PAGE.replace("T23:", "T24:"), "ISO 8601"),
        (PAGE.replace(":58.120Z", ":58.120+02:00"), "ISO 8601"),
        (PAGE.replace(TIME, ""), "ISO 8601"),
        (PAGE + PAGE, "not well-formed"),
        (PAGE + "x", "not well-formed"),
        ("<a>" * 100_000, "too many"),
        ("<a>" + "<b/>" * 300_000, "too many"),
    ],
)
def test_what_is_no_page_of_this_bucket(body: str, reason: str) -> None:
    with pytest.raises(ListingError, match=reason) as caught:
        parse_list(body.encode(), bucket="b")
    assert caught.value.where == "s3://b"
    assert len(str(caught.value)) < 2000


def test_bytes_that_are_not_utf8_and_bodies_that_are_too_large() -> None:
    with pytest.raises(ListingError, match="UTF-8"):
        parse_list(
            PAGE.replace("<Key>k", "<Key>\udcff").encode(errors="surrogateescape"), bucket="b"
        )
    with pytest.raises(ListingError, match="UTF-8"):
        parse_list(PAGE.encode("utf-16"), bucket="b")
    with pytest.raises(ListingError, match="larger than 16 MiB"):
        parse_list(PAGE.encode() + b" " * MAX_BODY, bucket="b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.5Z", -500_000_000),
        ("2024-02-29T23:59:58.120Z", TIME_NS),
        ("2024-02-29T23:59:58.123456789Z", 1709251198_123456789),
        ("2024-02-29T23:59:58+00:00", 1709251198_000000000),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert time_ns(text) == expected


VERSIONS = f"""<ListVersionsResult xmlns="{NS}"><Name>b</Name><KeyMarker/><IsTruncated>true</IsTruncated>
<NextKeyMarker>a%2Bb</NextKeyMarker><NextVersionIdMarker>v2</NextVersionIdMarker>
<EncodingType>url</EncodingType>
<DeleteMarker><Key>a%2Bb</Key><VersionId>v3</VersionId><IsLatest>true</IsLatest>
<LastModified>{TIME}</LastModified></DeleteMarker>
<Version><Key>a%2Bb</Key><VersionId>v2</VersionId><IsLatest>false</IsLatest>
<LastModified>{TIME}</LastModified><ETag>&quot;e&quot;</ETag><Size>7</Size></Version>
<CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes></ListVersionsResult>"""


def test_versions_in_their_order() -> None:
    page = parse_versions(VERSIONS.encode(), bucket="b")
    assert page.versions == [
        ("a+b", "v3", True, True, 0, TIME_NS, "", "STANDARD"),
        ("a+b", "v2", False, False, 7, TIME_NS, "e", "STANDARD"),
    ]
    assert page[1:] == (["d/"], True, "a+b", "v2")
    with pytest.raises(ListingError, match="of the bucket 'b'"):
        parse_versions(VERSIONS.encode(), bucket="c")
    with pytest.raises(ListingError, match="NextKeyMarker"):
        parse_versions(VERSIONS.replace("NextKeyMarker", "Other").encode(), bucket="b")


def test_open_uploads() -> None:
    text = f"""<ListMultipartUploadsResult><Bucket>b</Bucket><IsTruncated>true</IsTruncated>
    <NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>
    <Upload><Key>k</Key><UploadId>u</UploadId><Initiated>{TIME}</Initiated></Upload>
    </ListMultipartUploadsResult>"""
    assert parse_uploads(text.encode(), bucket="b") == ([("k", "u", TIME_NS)], True, "k", "u")
    rclone = text.replace("<IsTruncated>true</IsTruncated>", "")
    assert parse_uploads(rclone.encode(), bucket="b") == ([("k", "u", TIME_NS)], False, None, None)
    with pytest.raises(ListingError):
        parse_uploads(text.encode(), bucket="c")
    with pytest.raises(ListingError):
        parse_uploads(text.replace(TIME, "soon").encode(), bucket="b")


def test_parts() -> None:
    text = """<ListPartsResult><Bucket>b</Bucket><IsTruncated>false</IsTruncated>
    <Part><PartNumber>1</PartNumber><ETag>"e"</ETag><Size>5</Size><ChecksumCRC64NVME>AAA=</ChecksumCRC64NVME>
    </Part><Part><PartNumber>3</PartNumber><ETag>"f"</ETag><Size>6</Size></Part></ListPartsResult>"""
    page = parse_parts(text.encode(), bucket="b")
    assert page.parts == [(1, "e", 5, {"CRC64NVME": "AAA="}), (3, "f", 6, {})]
    assert not page.is_truncated
    moto = text.replace("ListPartsResult", "ListPartsResponse")
    assert parse_parts(moto.encode(), bucket="b") == page
    more = text.replace("false", "true").replace(
        "</Bucket>", "</Bucket><NextPartNumberMarker>3</NextPartNumberMarker>"
    )
    assert parse_parts(more.encode(), bucket="b").next_marker == "3"
    with pytest.raises(ListingError):
        parse_parts(text.replace("<Size>5", "<Size>x").encode(), bucket="b")


ERROR = f"""{DECLARATION}   \n<Error><Code>PermanentRedirect</Code><Message>Elsewhere</Message>
<Region>eu-west-1</Region><Endpoint>b.s3.eu-west-1.amazonaws.com</Endpoint><RequestId>R1</RequestId>
<ServerTime>{TIME}</ServerTime><Code>Second</Code></Error>"""


def test_errors() -> None:
    assert is_error(ERROR.encode())
    assert is_error(b" " * 5000 + b"<Error><Code>InternalError</Code>")
    assert parse_error(ERROR.encode()) == ErrorReply(
        "PermanentRedirect", "Elsewhere", "eu-west-1", "R1", "b.s3.eu-west-1.amazonaws.com", TIME_NS
    )
    nested = "<ErrorResponse><Error><Code>X</Code></Error></ErrorResponse>"
    assert parse_error(nested.encode()) == ErrorReply("X", "")
    evil = ERROR.replace("eu-west-1<", "evil.example/?<").replace(TIME, "now")
    assert parse_error(evil.encode())[2:] == (None, "R1", "b.s3.eu-west-1.amazonaws.com", None)


@given(st.binary() | st.text().map(str.encode))
@example(b"<Error><Code>x")
@example(b"<!DOCTYPE a [<!ENTITY b 'c'>]><Error><Code>&b;</Code></Error>")
def test_anything_else_is_an_error_without_a_code(body: bytes) -> None:
    assert parse_error(body) == ErrorReply("", "")


@pytest.mark.parametrize(
    "body", [b"", b"<DeleteResult><Error/></DeleteResult>", b"<Errors>", b"<CopyObjectResult/>"]
)
def test_not_every_document_is_an_error(body: bytes) -> None:
    assert not is_error(body)


def test_what_was_written() -> None:
    text = f"""{DECLARATION}
    <CopyObjectResult xmlns="{NS}"><LastModified>{TIME}</LastModified><ETag>"e"</ETag>
    <ChecksumCRC64NVME>AAA=</ChecksumCRC64NVME><ChecksumType>FULL_OBJECT</ChecksumType></CopyObjectResult>"""
    written = ("e", TIME_NS, {"CRC64NVME": "AAA="}, "FULL_OBJECT")
    assert parse_copy(text.strip().encode()) == written
    part = text.replace("CopyObjectResult", "CopyPartResult")
    assert parse_copy(part.encode()) == written
    whole = "<CompleteMultipartUploadResult><ETag>&quot;e-2&quot;</ETag></CompleteMultipartUploadResult>"
    assert parse_complete(whole.encode()) == ("e-2", None, {}, None)


@pytest.mark.parametrize(
    "read", [parse_copy, parse_complete, parse_initiate, parse_delete, parse_tagging]
)
@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html/>",
        ERROR,
        "<CompleteMultipartUploadResult><ETag>",
        "<InitiateMultipartUploadResult/>",
    ],
)
def test_an_answer_that_is_none_leaves_it_in_doubt(
    read: Callable[[bytes], object], body: str
) -> None:
    with pytest.raises(Transient):
        read(body.encode())


def test_initiate_and_tags() -> None:
    text = "<InitiateMultipartUploadResult><UploadId>u/+</UploadId></InitiateMultipartUploadResult>"
    assert parse_initiate(text.encode()) == "u/+"
    assert parse_initiate(text.replace("Result", "").encode()) == "u/+"  # as rclone has it
    with pytest.raises(Transient, match="empty"):
        parse_initiate(text.replace("u/+", "").encode())
    tags = "<Tag><Key>a</Key><Value/></Tag><Tag><Key>b</Key><Value>c</Value></Tag>"
    assert parse_tagging(f"<Tagging><TagSet>{tags}</TagSet></Tagging>".encode()) == [
        ("a", ""),
        ("b", "c"),
    ]


SAFE_KEYS = st.lists(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\ufffe\uffff")
    )
    | st.sampled_from(["a\r\nb", "\t", "&amp;", "<Key>", "]]>", " a ", "é"]),
    max_size=5,
)


@given(SAFE_KEYS)
@example(["a\rb", "\n"])
def test_keys_survive_in_a_delete(keys: list[str]) -> None:
    root = ET.fromstring(build_delete(keys))
    assert [found.text or "" for found in root.iter(f"{{{NS}}}Key")] == keys
    assert root.find(f"{{{NS}}}Quiet") is None
    assert b"<Quiet>true</Quiet>" in build_delete(keys, quiet=True)


@pytest.mark.parametrize("key", ["a\0", "\x1b", "\uffff", "\udcff"])
def test_keys_that_xml_cannot_carry(key: str) -> None:
    with pytest.raises(NameRefused, match="XML"):
        build_delete(["fine", key])


def test_what_became_of_deleted_keys() -> None:
    key = escape("a&b") + "&#13;"
    text = f"""<DeleteResult><Deleted><Key>{key}</Key></Deleted>
    <Error><Key>c</Key><Code>AccessDenied</Code><Message>No</Message></Error></DeleteResult>"""
    told = parse_delete(text.encode())
    assert told.keys == {"a&b\r"}
    assert told.errors == {"c": ErrorReply("AccessDenied", "No")}
    assert parse_delete(b"<DeleteResult/>") == (set(), {})


def test_complete() -> None:
    parts = [(1, "e", None), (2, 'f"<', ("CRC64NVME", "AAA="))]
    root = ET.fromstring(build_complete(parts))
    found = [{child.tag.rpartition("}")[2]: child.text for child in part} for part in root]
    assert found == [
        {"ETag": '"e"', "PartNumber": "1"},
        {"ETag": '"f"<"', "ChecksumCRC64NVME": "AAA=", "PartNumber": "2"},
    ]


def test_plus_and_percent_encoded_blanks_are_the_same() -> None:
    for encode in (quote, quote_plus):
        body = page_of(ROW.replace("<Key>k", f"<Key>{encode('a b+c')}"))
        assert parse_list(body, bucket="b").rows[0][0] == "a b+c"
