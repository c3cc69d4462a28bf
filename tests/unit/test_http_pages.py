"""Index pages as servers make them: rows cut out of real ones."""

from __future__ import annotations

import time

import pytest

from fastsync.errors import ListingError
from fastsync.location import parse as parse_place
from fastsync_http.pages import Row, parse
from fastsync_http.targets import target_of

BASE = target_of(parse_place("http://host:8080/pub/a%20b/"))
NOV_14 = 1_700_000_000_000_000_000

NGINX = """<html>
<head><title>Index of /pub/a b/</title></head>
<body>
<h1>Index of /pub/a b/</h1><hr><pre><a href="../">../</a>
<a href="sub/">sub/</a>                                               21-Nov-2026 07:59                   -
<a href="%252F">%2F</a>                                                14-Nov-2023 22:13               11655
<a href="a%26b%3Cc%3E">a&amp;b&lt;c&gt;</a>                                             14-Nov-2023 22:13                1554
<a href="new%0Aline">new
line</a>                                           21-Nov-2026 07:59                   3
<a href="long">nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn..&gt;</a> 14-Nov-2023 22:13                6993
<a href="%FF.raw">?.raw</a>                                             21-Nov-2026 07:59                   0
</pre><hr></body>
</html>
"""  # noqa: E501
NGINX_ROUNDED = """<html>
<head><title>Index of /pub/a b/</title></head>
<body>
<h1>Index of /pub/a b/</h1><hr><pre><a href="../">../</a>
<a href="small">small</a>                                              14-Nov-2023 22:13     777
<a href="large">large</a>                                              14-Nov-2023 22:13     11K
</pre><hr></body>
</html>
"""
NGINX_JSON = """[
{ "name":"sub", "type":"directory", "mtime":"Tue, 14 Nov 2023 22:13:20 GMT" },
{ "name":"new\\nline", "type":"file", "mtime":"Tue, 14 Nov 2023 22:13:20 GMT", "size":10101 },
{ "name":"pipe", "type":"other", "mtime":"Tue, 14 Nov 2023 22:13:20 GMT", "size":0 }
]"""
APACHE_LIST = """<html>
 <head>
  <title>Index of /pub/a b</title>
 </head>
 <body>
<h1>Index of /pub/a b</h1>
<ul><li><a href="/pub/"> Parent Directory</a></li>
<li><a href="a&amp;b%3cc%3e"> a&amp;b&lt;c&gt;</a></li>
<li><a href="./a:b"> a:b</a></li>
<li><a href="sub/"> sub/</a></li>
</ul>
</body></html>
"""
APACHE_TABLE = """<html><head><title>Index of /pub/a b</title></head><body>
<h1>Index of /pub/a b</h1>
  <table>
   <tr><th valign="top">&nbsp;</th><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>
<tr><td valign="top"><a href="file"><img src="/icons/unknown.gif" alt="[   ]"></a></td><td><a href="file">file</a></td><td align="right">2023-11-14 22:13  </td><td align="right">777 </td><td>&nbsp;</td></tr>
<tr><td valign="top">&nbsp;</td><td><a href="large">large</a></td><td align="right">2023-11-14 22:13  </td><td align="right"> 11K</td><td>&nbsp;</td></tr>
<tr><td valign="top">&nbsp;</td><td><a href="sub/">sub/</a></td><td align="right">2026-11-21 07:59  </td><td align="right">  - </td><td>&nbsp;</td></tr>
   <tr><th colspan="5"><hr></th></tr>
</table>
</body></html>
"""  # noqa: E501
APACHE_PRE = """<html><head><title>Index of /pub/a b</title></head><body>
<h1>Index of /pub/a b</h1>
<pre>      <a href="?C=N;O=D">Name</a>         <a href="?C=M;O=A">Last modified</a>      <a href="?C=S;O=A">Size</a>  <a href="?C=D;O=A">Description</a><hr>      <a href="file">file</a>   2023-11-14 22:13  777
      <a href="large">large</a>  2023-11-14 22:13   11K
      <a href="told">told</a>   2023-11-14 22:13   12  KiB of notes
      <a href="sub/">sub/</a>   2026-11-21 07:59    -
<hr></pre>
</body></html>
"""  # noqa: E501
LIGHTTPD = """<html><head><title>Index of /pub/a b/</title></head><body>
<h2>Index of /pub/a b/</h2><div class="list"><table summary="Directory Listing"><tbody>
<tr class="d"><td class="n"><a href="../">..</a>/</td><td class="m">&nbsp;</td><td class="s">- &nbsp;</td><td class="t">Directory</td></tr>
<tr class="d"><td class="n"><a href="sub/">sub</a>/</td><td class="m">2026-Nov-21 07:59:48</td><td class="s">- &nbsp;</td><td class="t">Directory</td></tr>
<tr><td class="n"><a href="%27q%22">&#x27;q&#x22;</a></td><td class="m">2023-Nov-14 22:13:20</td><td class="s">6.0K</td><td class="t">application/octet-stream</td></tr>
</tbody></table></div>
<script type="text/javascript">
// <!-- document.write('<a href="script">'); // -->
</script>
</body></html>
"""  # noqa: E501
CADDY = """<html><head><title>a b</title></head><body><main>
<th><a href="?sort=name&order=asc">Name</a></th>
<tr class="file"><td></td><td>
    <a href="./sub/"><svg width="1.5em"><use xlink:href="#folder"></use></svg><span class="name">sub/</span></a>
  </td><td data-order="-1">&mdash;</td>
  <td class="hideable"><time datetime=" 2023-11-14T22:13:20Z">11/14/2023 10:13:20 PM +00:00</time></td></tr>
<tr class="file"><td></td><td>
    <a href="./file"><svg width="1.5em"><use xlink:href="#file"></use></svg><span class="name">file</span></a>
  </td><td data-order="10101">9.9 KiB</td>
  <td class="hideable"><time datetime=" 2023-11-14T22:13:20Z">11/14/2023 10:13:20 PM +00:00</time></td></tr>
<tr class="file"><td></td><td>
    <a href="./link"><svg width="1.5em"><use xlink:href="#file-shortcut"></use></svg><span class="name">link</span></a>
  </td><td data-order="10101">9.9 KiB</td>
  <td class="hideable"><time datetime=" 2026-11-14T22:13:20Z">11/14/2026 10:13:20 PM +00:00</time></td></tr>
</main></body></html>
"""  # noqa: E501
RCLONE = """<html><head><title>/pub/a b</title></head><body>
<tr class="file"><td></td><td><span class="name"><a href="sub/">sub/</a></span>
<a class="zip" href="sub/?download=zip" title="Download folder as .zip"></a></td>
<td data-order="-1">&mdash;</td>
<td><time datetime="2023-11-14 22:13:20.813968923 &#43;0000 UTC">2023-11-14</time></td></tr>
<tr class="file"><td></td><td><span class="name"><a href="file">file</a></span></td>
<td data-order="10101"><size>10101</size></td>
<td><time datetime="2023-11-14 22:13:20 &#43;0000 UTC">2023-11-14 22:13:20</time></td></tr>
</body></html>
"""
PYTHON = """<!DOCTYPE HTML>
<html lang="en"><head><meta charset="utf-8"><title>Directory listing for /pub/a b/</title></head>
<body><h1>Directory listing for /pub/a b/</h1><hr><ul>
<li><a href="%27q%22">'q"</a></li>
<li><a href="sub/">sub/</a></li>
</ul><hr></body></html>
"""

SUB = Row("sub", "dir")


@pytest.mark.parametrize(
    ("page", "rows"),
    [
        (
            NGINX,
            [
                SUB, Row("%2F", "file", 11655), Row("a&b<c>", "file", 1554),
                Row("new\nline", "file", 3), Row("long", "file", 6993), Row("\udcff.raw", "file", 0),
            ],
        ),
        (NGINX_ROUNDED, [Row("small", "file", 777), Row("large", "file")]),
        (APACHE_LIST, [Row("a&b<c>", "file"), Row("a:b", "file"), SUB]),
        (APACHE_TABLE, [Row("file", "file", 777), Row("large", "file"), SUB]),
        (
            APACHE_PRE,
            [Row("file", "file", 777), Row("large", "file"), Row("told", "file"), SUB],
        ),
        (LIGHTTPD, [SUB, Row("'q\"", "file")]),
        (
            CADDY,
            [
                Row("sub", "dir", None, NOV_14), Row("file", "file", 10101, NOV_14),
                Row("link", "file"),
            ],
        ),
        (RCLONE, [Row("sub", "dir", None, NOV_14), Row("file", "file", 10101, NOV_14)]),
        (PYTHON, [Row("'q\"", "file"), SUB]),
    ],
    ids=[
        "nginx", "nginx rounded", "Apache list", "Apache table", "Apache pre", "lighttpd", "Caddy",
        "rclone", "Python",
    ],
)  # fmt: skip
def test_pages(page: str, rows: list[Row]) -> None:
    found = parse(page.encode(), "text/html; charset=utf-8", BASE)
    assert found.rows == rows
    assert found.faults == []


def test_what_is_half_written_in_a_folder_of_ours() -> None:
    name = ".fs-0123456789abcdef.part"
    page = f'<title>Index of /</title><a href="{name}">{name}</a><a href="x">x</a>'
    assert [row.name for row in parse(page.encode(), "text/html", BASE).rows] == ["x"]
    body = f'[{{"name": "{name}", "type": "file", "size": 5}}]'
    assert parse(body.encode(), "application/json", BASE).rows == []


def test_nginx_json() -> None:
    found = parse(NGINX_JSON.encode(), "application/json", BASE)
    assert found.rows == [
        Row("sub", "dir", None, NOV_14),
        Row("new\nline", "file", 10101, NOV_14),
        Row("pipe", "special", 0, NOV_14),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b'[{"name": 1, "type": "file"}]', b'[{"name": "x"}]', b"[1]", b"{}", b"", b"null", b"[",
        b'"text"',
    ],
)  # fmt: skip
def test_json_that_is_no_listing(body: bytes) -> None:
    with pytest.raises(ListingError):
        parse(body, "application/json", BASE)


@pytest.mark.parametrize("size", [-1, 1.5, "9", True, None, 10**30])
def test_json_sizes_that_are_none(size: object) -> None:
    import json

    body = json.dumps([{"name": "x", "type": "file", "size": size}])
    (row,) = parse(body.encode(), "application/json", BASE).rows
    assert row.size is None


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("x", "x"), ("./x", "x"), ("/pub/a%20b/x", "x"), ("/pub/a b/x", "x"),
        ("http://host:8080/pub/a%20b/x", "x"), ("x#part", "x"), ("./a:b", "a:b"),
        ("http://host/pub/a%20b/x", None), ("https://host:8080/pub/a%20b/x", None),
        ("//host:8080/pub/a%20b/x", "x"), ("/pub/x", None), ("/pub/a%20b/x/y", None),
        ("x/y", None), ("..", None), ("../", None), ("?x", None), ("x?y", None), ("", None),
        ("/pub/a%20b/", None), ("/pub/a%20b/../x", None), ("http://[/x", None),
    ],
)  # fmt: skip
def test_links(link: str, name: str | None) -> None:
    page = f'<title>Index of /</title><a class=x href="{link}">link</a>'
    rows = parse(page.encode(), "text/html", BASE).rows
    assert [row.name for row in rows] == ([] if name is None else [name])


@pytest.mark.parametrize(
    ("page", "is_index"),
    [
        ("<title>Index of /</title>", True),
        ("<h1>Directory listing for x</h1>", True),
        ("<title>/pub/a b/</title>", True),
        ('<a href="../">Parent directory</a>', True),
        ('<a href="/pub/">..</a>', True),
        ('<a href="../">Home</a><a href="login.css">', False),
        ("<title>Welcome</title>", False),
        ("<!-- <title>Index of /</title> -->", False),
        ("<script><title>Index of /</title></script>", False),
        ("", False),
    ],
)
def test_what_is_an_index(page: str, is_index: bool) -> None:
    if is_index:
        parse(page.encode(), "text/html", BASE)
    else:
        with pytest.raises(ListingError):
            parse(page.encode(), "text/html", BASE)


@pytest.mark.parametrize(
    "piece",
    ["<!--", "<script>", '<a href="', "<a href='", "<a ", "<a x ", "&", "<", '<a href="x">'],
)
def test_pages_made_to_be_slow(piece: str) -> None:
    page = "<title>Index of /</title>" + piece * (2_000_000 // len(piece))
    started = time.process_time()
    parse(page.encode(), "text/html", BASE)
    assert time.process_time() - started < 10
