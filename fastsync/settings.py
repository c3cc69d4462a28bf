"""What can be set: the one table of settings.

A line in `Settings` gives a setting its name, type, default and help, and with them its environment
variable, its key in the configuration file, its check, and its line in ``config show`` and
``config init``. Which of several values counts is for `fastsync.config` to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

from fastsync.values import (
    BWLIMIT,
    CHUNK,
    FILE,
    MAX_DELETE,
    MIB,
    PAIRS,
    RATE,
    SOCKET,
    SWITCH,
    TEXT,
    URL,
    Kind,
    MaxDelete,
    Plain,
    Timetable,
    choice,
    duration,
    size,
    whole,
)

T = TypeVar("T")
# What a place is to a run: what it reads (or lists, or removes), or what it writes.
Side: TypeAlias = Literal["source", "destination"]

_SECRET_KEY = re.compile(r"(?i)pass(w|phrase)|secret|token|key|credential|auth|cookie|header")


def is_secret(key: str) -> bool:
    """Does this key of a place look as if its value should not be shown? Rather once too often; but where
    a secret is kept is none, and messages have to tell."""
    return _SECRET_KEY.search(key) is not None and not key.endswith("_file")


def _setting(
    default: T,
    kind: Kind,
    help_: str,
    *,
    flag: str | None = "",
    example: Plain | None = None,
    group: str = "",
    place: str | None = None,
    side: Side | None = None,
) -> T:
    """A line of the table. `flag` is None for what has none, "" for the name with dashes; `example`
    is for what has no default; `group` opens a group of settings. `place` is for what is handed to the
    stores of a run: the key that they know it by, "" for the name; `side` names the only ones."""
    more = {"kind": kind, "help": help_, "flag": flag, "example": example, "group": group}
    return field(default=default, metadata={**more, "place": place, "side": side})


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Settings:
    """The effective settings of a run. Sizes are bytes, times seconds; None means "not set"."""

    parallel_streams: int = _setting(
        8,
        whole(1),
        "streams in flight, parts and files together",
        flag="--parallel",
        group="Engine",
    )
    jobs: int = _setting(8, whole(1), "files at once")
    chunk_size: int = _setting(16 * MIB, CHUNK, "size of a part of a large file")
    # The least holds a read (`backend.READ_BUFFER`) and a part that it fills.
    buffer_size: int = _setting(
        64 * MIB, size(2 * MIB), "file data held in memory at once, never more", flag=None
    )
    tcp_send_buffer: int | None = _setting(
        None,
        SOCKET,
        "socket send buffer; by default the system's choice",
        flag=None,
        example="16M",
    )
    tcp_recv_buffer: int | None = _setting(
        None,
        SOCKET,
        "socket receive buffer; by default the system's choice",
        flag=None,
        example="16M",
    )
    congestion_control: str | None = _setting(
        None, TEXT, "TCP congestion control, where the kernel has it", flag=None, example="bbr"
    )
    small_file_threshold: int = _setting(
        MIB, size(), "files up to this size are moved whole and in batches", flag=None
    )
    bwlimit: Timetable | None = _setting(  # noqa: RUF009 (frozen, so shared safely)
        None,
        BWLIMIT,
        "bytes per second, UP:DOWN, or a timetable; by default no limit",
        example="10M",
    )
    retry_count: int = _setting(5, whole(0), "further attempts after a passing error")
    stall_timeout: float = _setting(60.0, duration(0.001), "give up on a stream that stands still")
    min_rate: int = _setting(
        64, RATE, "give up on a stream that is slower over a stall timeout; 0 for never"
    )
    request_timeout: float = _setting(60.0, duration(0.001), "give up on a server that is silent")

    checksum: bool = _setting(False, SWITCH, "compare content, not size and time", group="Choose")
    size_only: bool = _setting(False, SWITCH, "compare sizes only")
    update: bool = _setting(False, SWITCH, "skip files that are newer at the destination")
    ignore_times: bool = _setting(False, SWITCH, "copy even what looks the same")
    ignore_existing: bool = _setting(False, SWITCH, "skip files that exist at the destination")
    existing: bool = _setting(False, SWITCH, "skip files that do not exist at the destination")
    raw: bool = _setting(False, SWITCH, "take * ? [ ] in a place for what they are, no wildcards")
    modify_window: float | None = _setting(
        None,
        duration(),
        "times this close are equal; by default the stores' precision",
        example="2s",
    )
    files_from: str | None = _setting(
        None, FILE, "take what this file lists, relative to the source", example="list.txt"
    )
    from0: bool = _setting(False, SWITCH, "the list of files_from has NUL after each name")
    gitignore: bool = _setting(False, SWITCH, "leave out what .gitignore files in the source say")
    min_size: int | None = _setting(None, size(), "skip smaller files", example="1K")
    max_size: int | None = _setting(None, size(), "skip larger files", example="10G")
    min_age: float | None = _setting(None, duration(), "skip younger files", example="1m")
    max_age: float | None = _setting(None, duration(), "skip older files", example="30d")
    max_depth: int | None = _setting(
        None, whole(1), "levels to descend, 1 is the place itself; by default all", example=3
    )

    delete: bool = _setting(
        False, SWITCH, "sync: delete what the source does not have", group="Delete"
    )
    delete_excluded: bool = _setting(False, SWITCH, "with delete: excluded files too")
    max_delete: MaxDelete | None = _setting(  # noqa: RUF009 (frozen, so shared safely)
        None,
        MAX_DELETE,
        "refuse to delete more; by default more than 100 files that are more than 50%",
        example="50%",
    )
    allow_empty_source: bool = _setting(False, SWITCH, "let an empty source delete everything")
    backup_dir: str | None = _setting(
        None, TEXT, "copy what would be overwritten or deleted to this place", example="/var/old"
    )
    interactive: bool = _setting(False, SWITCH, "tell what would be done, and ask before doing it")
    ignore_missing_args: bool = _setting(False, SWITCH, "skip sources that do not exist")

    recursive: bool = _setting(False, SWITCH, "directories too, with all in them", group="Metadata")
    archive: bool = _setting(
        False, SWITCH, "recursive, links as links, directory times, owner and group where allowed"
    )
    links: Literal["keep", "follow", "skip"] = _setting(
        "keep",
        choice("keep", "follow", "skip"),
        "symbolic links: copy them, what they point to, or neither",
    )
    xattrs: bool = _setting(False, SWITCH, "keep extended attributes, ACLs among them")
    hard_links: bool = _setting(False, SWITCH, "names of one file are names of one copy, too")
    sparse: bool = _setting(False, SWITCH, "keep holes in files")
    preserve_special: bool = _setting(False, SWITCH, "keep setuid, setgid and sticky bits")

    inplace: bool = _setting(
        False,
        SWITCH,
        "write over the old file, not beside it with a rename at the end",
        group="Write",
    )
    resume: bool = _setting(True, SWITCH, "go on where an interrupted copy of a large file ended")
    durable: bool = _setting(False, SWITCH, "a finished file survives a power cut (fsync)")
    verify: Literal["digest", "reread"] = _setting(
        "digest",
        choice("digest", "reread"),
        "check digests where a store tells any, or read back all that was written",
    )
    fail_on_conflict: bool = _setting(
        False, SWITCH, "fail where somebody else wrote to the destination meanwhile"
    )

    progress: bool | None = _setting(
        None, SWITCH, "show progress; by default on a terminal", example=True, group="Output"
    )
    explain: str | None = _setting(
        None, TEXT, "say why one path is copied or not, and do nothing", example="dir/file"
    )
    dry_run: bool = _setting(False, SWITCH, "say what would be done, and do nothing")
    verbose: int = _setting(0, whole(0), "how much to tell: 0, 1 or 2")
    quiet: bool = _setting(False, SWITCH, "tell errors only")
    json: bool = _setting(False, SWITCH, "one JSON object per line")
    summarize: bool = _setting(False, SWITCH, "totals at the end")
    human_readable: bool = _setting(False, SWITCH, "sizes with units")
    color: Literal["auto", "always", "never"] = _setting(
        "auto", choice("auto", "always", "never"), "colours on the terminal"
    )
    manifest: str | None = _setting(
        None, FILE, "write down the digest of each file, for check", example="photos.sha256"
    )
    log_file: str | None = _setting(
        None, TEXT, "write a log to this file", example="/var/log/fastsync.log"
    )
    log_level: Literal["error", "warning", "info", "debug", "trace"] | None = _setting(
        None,
        choice("error", "warning", "info", "debug", "trace"),
        "how much is logged: to --log-file, else to stderr",
        example="debug",
    )
    log_format: Literal["text", "json"] = _setting(
        "text", choice("text", "json"), "form of the log"
    )

    endpoint_url: str | None = _setting(
        None,
        URL,
        "the server, where it is not Amazon's",
        place="",
        example="https://minio.example.org:9000",
        group="S3",
    )
    no_sign_request: bool = _setting(False, SWITCH, "use no credentials", place="")
    aws_profile: str | None = _setting(
        None, TEXT, "profile of the AWS configuration", place="", example="backup"
    )
    region: str | None = _setting(
        None,
        TEXT,
        "region of the bucket; by default found out",
        place="",
        example="eu-central-1",
    )
    source_region: str | None = _setting(
        None,
        TEXT,
        "the same, of the source alone",
        place="region",
        side="source",
        example="us-east-1",
    )
    destination_region: str | None = _setting(
        None,
        TEXT,
        "the same, of the destination alone",
        place="region",
        side="destination",
        example="us-west-2",
    )
    addressing: Literal["auto", "path", "virtual"] | None = _setting(
        None,
        choice("auto", "path", "virtual"),
        "where the bucket's name goes in a URL",
        place="",
        example="path",
    )
    no_verify_ssl: bool = _setting(
        False, SWITCH, "trust any certificate (anybody in between can read and write)", place=""
    )
    request_payer: Literal["requester"] | None = _setting(
        None, choice("requester"), "who pays for requests", place="", example="requester"
    )
    version_id: str | None = _setting(
        None, TEXT, "this version of the source", place="", side="source", example="3HL4kqtJlcpXr"
    )
    storage_class: str | None = _setting(
        None,
        TEXT,
        "class of what is written",
        place="",
        side="destination",
        example="STANDARD_IA",
    )
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = _setting(
        None,
        choice("AES256", "aws:kms", "aws:kms:dsse"),
        "encryption at the server",
        place="",
        side="destination",
        example="AES256",
    )
    sse_kms_key_id: str | None = _setting(
        None,
        TEXT,
        "the key for it, of aws:kms",
        place="",
        side="destination",
        example="alias/backup",
    )
    content_type: str | None = _setting(
        None,
        TEXT,
        "type of what is written; by default from the name",
        place="",
        side="destination",
        example="text/html",
    )
    cache_control: str | None = _setting(
        None,
        TEXT,
        "how long others may keep what is written",
        place="",
        side="destination",
        example="max-age=3600",
    )
    metadata: str | None = _setting(
        None,
        PAIRS,
        "what else to write down with it",
        place="",
        side="destination",
        example="project=apollo",
    )
    acl: str | None = _setting(
        None,
        TEXT,
        "who may use what is written",
        place="",
        side="destination",
        example="bucket-owner-full-control",
    )

    header_file: str | None = _setting(
        None,
        FILE,
        "lines 'Name: value' to send along; a file that others cannot read",
        place="",
        example="/home/me/.fastsync-headers",
        group="HTTP",
    )
    checksum_of: str | None = _setting(
        None,
        TEXT,
        "what the file must add up to, ALGO:HEX",
        place="",
        side="source",
        example="sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    )

    ssh_transport: Literal["auto", "asyncssh", "openssh"] | None = _setting(
        None,
        choice("auto", "asyncssh", "openssh"),
        "who speaks SSH",
        place="",
        example="openssh",
        group="SFTP",
    )
    ssh_config: str | None = _setting(
        None, FILE, "another file than ~/.ssh/config", place="", example="/etc/ssh/backup.conf"
    )
    identity: str | None = _setting(
        None, FILE, "private key to log in with", place="", example="/home/me/.ssh/id_backup"
    )
    known_hosts: str | None = _setting(
        None,
        FILE,
        "another file than ~/.ssh/known_hosts",
        place="",
        example="/etc/ssh/ssh_known_hosts",
    )
    accept_new_host_key: bool = _setting(
        False, SWITCH, "trust a host that is met for the first time", place=""
    )

    @property
    def dir_times(self) -> bool:
        """Keep the modification times of directories."""
        return self.archive

    @property
    def owner(self) -> bool:
        """Keep owner and group, as far as the system lets us."""
        return self.archive


class Setting(NamedTuple):
    """A line of the table, read. `flag` is None for what has none; `group` is "" within a group; `place`
    is the key by which stores know it, None for what is not their business, `side` whose it is alone."""

    name: str
    default: object
    kind: Kind
    help: str
    flag: str | None
    example: Plain | None
    group: str
    place: str | None
    side: Side | None

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that give it: by its key, then by its flag if that differs."""
        by_flag = (self.flag or "").removeprefix("--").replace("-", "_")
        names = (self.name, by_flag) if by_flag not in ("", self.name) else (self.name,)
        return tuple(f"FASTSYNC_{name.upper()}" for name in names)

    def plain(self, value: object) -> Plain | None:
        """`value` as a configuration file would write it, None when it is not set."""
        return None if value is None else self.kind.plain(value)


def _table() -> Iterator[Setting]:
    for item in fields(Settings):
        more = dict(item.metadata)
        if more["flag"] == "":
            more["flag"] = "--" + item.name.replace("_", "-")
        if more["place"] == "":
            more["place"] = item.name
        yield Setting(name=item.name, default=item.default, **more)


SETTINGS: Final[Mapping[str, Setting]] = {setting.name: setting for setting in _table()}
