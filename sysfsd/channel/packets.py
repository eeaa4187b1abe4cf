"""What the relay reads and changes in FUSE packets; pure.

Numbers and layouts are those of the kernel's ``include/uapi/linux/fuse.h``, in native byte order. A
request starts with ``struct fuse_in_header`` (40 bytes), a reply with ``struct fuse_out_header``
(16 bytes); ``unique`` ties the two together.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable

    from pyfuse3 import EntryAttributes

IN_HEADER = struct.Struct("=IIQQI")
"""len, opcode, unique, nodeid, uid; gid, pid and padding follow."""
IN_HEADER_BYTES = 40
OUT_HEADER = struct.Struct("=IiQ")
"""len, -errno, unique."""

_HANDLE = struct.Struct("=Q")
_READ_IN = struct.Struct("=QQI")
"""fh, offset, size of struct fuse_read_in."""
_OPEN_IN = struct.Struct("=I")
"""flags of struct fuse_open_in; open_flags follow, with nothing that we ask for."""
_OPEN_OUT = struct.Struct("=QIi")
"""fh, open_flags, backing_id."""
_FOPEN_DIRECT_IO = 1 << 0
_ATTR_OUT = struct.Struct("=QI4xQQQQQQIIIIIIIII4x")
"""attr_valid, attr_valid_nsec; ino, size, blocks, times, their ns, mode, nlink, uid, gid, rdev,
blksize, flags."""
_OFFSET = struct.Struct("=Q")
_WRITE_FLAGS = struct.Struct("=I")
_WRITE_FLAGS_AT = IN_HEADER_BYTES + 32
"""In struct fuse_write_in, behind fh, offset, size, write_flags and lock_owner: open(2)'s flags."""
_INIT_IN = struct.Struct("=IIIII")
"""major, minor, max_readahead, flags, flags2; kernels before 7.36 send no flags2."""
_INIT_IN_SHORT_BYTES = 16
_INIT_IN_BYTES = 64
_INIT_OUT_MAX_WRITE = struct.Struct("=I")
_INIT_OUT_MAX_WRITE_AT = OUT_HEADER.size + 20

MARK = 1 << 63
"""In the numbers of nodes of a second mount behind the same relay."""

UNIQUE_MARK = 1 << 62
"""In the numbers of its requests. The bit above is the kernel's (FUSE_UNIQUE_RESEND)."""

HANDLE = 1 << 62
"""In the handles of files that are opened one by one. No number of a node has that bit."""

HANDLE_LIFE_BITS = 20
"""In those as well: which life of the file system gave them out; see `restore_handle`."""
_HANDLE_LIFE_AT = 40

_NOTIFY_RESEND = 7
"""FUSE_NOTIFY_RESEND, since Linux 6.9: hand out again what was read and not answered."""

_OUR_INIT = 1
"""The number of an INIT of our own: the kernel's are even."""

_INTERRUPTED = struct.Struct("=Q")
_PID = struct.Struct("=I")
_PID_AT = 32

LOST_AT_MOST = 1 << 13
"""Requests that a predecessor may have had at once."""

MAX_WRITE = 128 << 10
"""Bytes of one WRITE, and of one READ: 32 pages, what the kernel allows without FUSE_MAX_PAGES."""

BUFFER_BYTES = MAX_WRITE + 4096
"""The kernel refuses to hand requests to a reader whose buffer is smaller (EINVAL)."""


class Opcode(IntEnum):
    """``enum fuse_opcode``: those that a kernel sends to a file system of ours."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""Requests without a reply. Our inodes are numbers without state, so there is nothing to forget,
and no handler takes long enough to be worth an interruption: what waits for its turn is given up,
what is being worked on is not."""

DIRECTORY_BY_HANDLE = frozenset({Opcode.READDIR, Opcode.READDIRPLUS})
BY_HANDLE = frozenset({Opcode.READ, Opcode.WRITE}) | DIRECTORY_BY_HANDLE
"""Requests that pyfuse3 hands over with a file handle and no inode. In the structures of all four
the handle is the first field after the header."""

# FUSE_INIT flags that the server gets to see, of the 64 that kernels offer. A list of what is
# wanted, so that a new kernel cannot talk libfuse into something that the relay does not expect
# (FUSE_MAX_PAGES makes packets outgrow BUFFER_BYTES; io_uring bypasses the descriptor).
_ASYNC_READ = 1 << 0
_BIG_WRITES = 1 << 5
_AUTO_INVAL_DATA = 1 << 12
_DO_READDIRPLUS = 1 << 13
_NO_OPEN_SUPPORT = 1 << 17
_PARALLEL_DIROPS = 1 << 18
_ABORT_ERROR = 1 << 21
_NO_OPENDIR_SUPPORT = 1 << 24
ACCEPTED_FLAGS = (
    _ASYNC_READ
    | _BIG_WRITES
    | _AUTO_INVAL_DATA
    | _DO_READDIRPLUS
    | _NO_OPEN_SUPPORT
    | _PARALLEL_DIROPS
    | _ABORT_ERROR
    | _NO_OPENDIR_SUPPORT
)


_BOUNDED = 1 << 32
"""In the number of an owner: above any serial."""

_MADE_EACH_TIME = frozenset({Opcode.OPEN, Opcode.READ, Opcode.WRITE, Opcode.SETATTR})


class Request(NamedTuple):
    """The header of a request."""

    length: int
    opcode: int
    unique: int
    node: int
    uid: int

    @property
    def owner(self) -> int:
        """Who is to wait if they ask too much: a container by its serial, else -1 and less: a uid.

        The upper half of a node's number is whose it is (`filesystem.tree`). A container's own
        processes in the second mount are somebody else (`is_bounded`).
        """
        serial = (self.node & ~MARK) >> 32
        bounded = serial and self.node & MARK and (self.uid or self.opcode in _MADE_EACH_TIME)
        return serial | _BOUNDED if bounded else serial or ~self.uid


def is_bounded(owner: Hashable) -> bool:
    """Whether what an owner asks for is made each time, and counts (`channel.allowance`).

    Not what the host's root asks for to give containers their files.
    """
    return isinstance(owner, int) and owner >= _BOUNDED


class Read(NamedTuple):
    """What a READ asks for."""

    handle: int
    offset: int
    size: int


class Reply(NamedTuple):
    """The header of a reply; ``unique`` 0 is a notification."""

    length: int
    error: int
    unique: int


def parse_request(packet: bytearray | memoryview | bytes) -> Request:
    """Read a request's header; raises ``struct.error`` when it is cut short."""
    return Request(*IN_HEADER.unpack_from(packet))


def parse_read(packet: bytearray | memoryview | bytes) -> Read:
    """Read what a READ asks for; raises ``struct.error`` when it is cut short."""
    return Read(*_READ_IN.unpack_from(packet, IN_HEADER_BYTES))


def parse_handle(packet: bytearray | memoryview | bytes) -> int:
    """The file handle of a request that begins with one; raises ``struct.error``, too."""
    (handle,) = _HANDLE.unpack_from(packet, IN_HEADER_BYTES)
    return int(handle)


def parse_open(packet: bytearray | memoryview | bytes) -> int:
    """The flags of open(2) in an OPEN; raises ``struct.error``, too."""
    (flags,) = _OPEN_IN.unpack_from(packet, IN_HEADER_BYTES)
    return int(flags)


def opened(handle: int) -> bytes:
    """The data of a reply to OPEN, of a file of which the kernel is to keep nothing."""
    return _OPEN_OUT.pack(handle, _FOPEN_DIRECT_IO, 0)


def success(unique: int, data: bytes) -> bytes:
    """Make a reply that has nothing but data."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(data), 0, unique) + data


def attributes(entry: EntryAttributes) -> bytes:
    """Make the data of a reply to GETATTR (``struct fuse_attr_out``), as libfuse does."""
    seconds = int(entry.attr_timeout)
    times = entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns
    return _ATTR_OUT.pack(
        seconds,
        int((entry.attr_timeout - seconds) * 1e9),
        entry.st_ino,
        entry.st_size,
        entry.st_blocks,
        *(each // 10**9 for each in times),
        *(each % 10**9 for each in times),
        entry.st_mode,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_rdev,
        entry.st_blksize,
    )


def parse_reply(packet: bytearray | memoryview | bytes) -> Reply:
    """Read a reply's header; raises ``struct.error`` when it is cut short."""
    return Reply(*OUT_HEADER.unpack_from(packet))


def put_node_in_handle(
    packet: bytearray | memoryview, request: Request, opcodes: frozenset[Opcode] = BY_HANDLE
) -> None:
    """Write the node id where the file handle is, in requests that come without an inode.

    With zero-message opens the kernel sends handle 0, and pyfuse3 passes nothing but the handle.
    """
    if request.opcode in opcodes:
        _HANDLE.pack_into(packet, IN_HEADER_BYTES, request.node)


def handle_of(life: int, number: int) -> int:
    """The handle of a file that is opened by itself, the ``number``-th in a process's life."""
    return HANDLE | (life % (1 << HANDLE_LIFE_BITS)) << _HANDLE_LIFE_AT | number


def restore_handle(packet: bytearray | memoryview, request: Request, life: int) -> None:
    """Put the node in place of a handle that a predecessor gave out, and that we know nothing of.

    Whoever has the file open may then read and write it still.
    """
    if request.opcode in {Opcode.READ, Opcode.WRITE}:
        (handle,) = _HANDLE.unpack_from(packet, IN_HEADER_BYTES)
        if (handle & ~MARK) >> _HANDLE_LIFE_AT != handle_of(life, 0) >> _HANDLE_LIFE_AT:
            _HANDLE.pack_into(packet, IN_HEADER_BYTES, request.node)


def mark(packet: bytearray | memoryview, request: Request) -> Request:
    """Mark a request of the second mount, so that its node and itself are nobody else's.

    The kernel counts requests from 2, and numbers of nodes it has from us, but for the root's.
    """
    marked = request._replace(unique=request.unique | UNIQUE_MARK, node=request.node | MARK)
    IN_HEADER.pack_into(packet, 0, *marked)
    return marked


def unmark(packet: bytearray | memoryview, reply: Reply) -> None:
    """Take the mark from the reply to such a request."""
    OUT_HEADER.pack_into(packet, 0, *reply._replace(unique=reply.unique & ~UNIQUE_MARK))


def init_request() -> bytes:
    """Make the INIT with which a connection begins, for one that began in another process."""
    body = _INIT_IN.pack(7, 38, MAX_WRITE, ACCEPTED_FLAGS, 0).ljust(_INIT_IN_BYTES, b"\0")
    header = IN_HEADER.pack(IN_HEADER_BYTES + len(body), Opcode.INIT, _OUR_INIT, 0, 0)
    return header.ljust(IN_HEADER_BYTES, b"\0") + body


def is_ours(reply: Reply) -> bool:
    """Whether that is the reply to `init_request`, which the kernel knows nothing of."""
    return reply.unique == _OUR_INIT


def resend() -> bytes:
    """Make the notification that has the kernel send again what was not answered."""
    return OUT_HEADER.pack(OUT_HEADER.size, _NOTIFY_RESEND, 0)


def refusal(unique: int, number: int) -> bytes:
    """Make a reply that is nothing but an errno."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def lost_before(unique: int) -> range:
    """Numbers of requests that a predecessor may have read, given the first that we read.

    For kernels that cannot send again. They count up by 2, and hand out in that order.
    """
    return range(max(2, unique - 2 * LOST_AT_MOST), unique, 2)


def interrupted(packet: bytearray | memoryview | bytes) -> int:
    """The number of the request that an INTERRUPT is about."""
    (unique,) = _INTERRUPTED.unpack_from(packet, IN_HEADER_BYTES)
    return int(unique)


def thread_of(packet: bytearray | memoryview | bytes) -> int:
    """The thread that asks, as the pid namespace numbers it that the mount was made in; or 0."""
    (pid,) = _PID.unpack_from(packet, _PID_AT)
    return int(pid)


def write_appended_at_start(packet: bytearray | memoryview, request: Request) -> None:
    """Have what is appended written at the start of the file.

    The kernel turns O_APPEND into the offset of the end, and the files of ours that can be written
    are sysctls: a write to one is a value, whatever was there (``proc_sys_write`` knows no end).
    """
    if request.opcode == Opcode.WRITE:
        (flags,) = _WRITE_FLAGS.unpack_from(packet, _WRITE_FLAGS_AT)
        if flags & os.O_APPEND:
            _OFFSET.pack_into(packet, IN_HEADER_BYTES + _HANDLE.size, 0)


def limit_init_request(packet: bytearray | memoryview, length: int) -> None:
    """Take what we do not accept out of the kernel's INIT."""
    if length < IN_HEADER_BYTES + _INIT_IN.size:
        at = IN_HEADER_BYTES + _INIT_IN_SHORT_BYTES - 4
        if length >= at + 4:
            (flags,) = struct.unpack_from("=I", packet, at)
            struct.pack_into("=I", packet, at, flags & ACCEPTED_FLAGS)
        return
    major, minor, readahead, flags, _flags2 = _INIT_IN.unpack_from(packet, IN_HEADER_BYTES)
    # FUSE_INIT_EXT (bit 30) is not accepted, hence no second word of flags either.
    _INIT_IN.pack_into(packet, IN_HEADER_BYTES, major, minor, readahead, flags & ACCEPTED_FLAGS, 0)


def limit_init_reply(packet: bytearray | memoryview, length: int) -> None:
    """Keep the ``max_write`` that libfuse asks for within our buffer."""
    if length < _INIT_OUT_MAX_WRITE_AT + _INIT_OUT_MAX_WRITE.size:
        return
    (wanted,) = _INIT_OUT_MAX_WRITE.unpack_from(packet, _INIT_OUT_MAX_WRITE_AT)
    _INIT_OUT_MAX_WRITE.pack_into(packet, _INIT_OUT_MAX_WRITE_AT, min(wanted, MAX_WRITE))


def name_of(opcode: int) -> str:
    """A name for counters and logs: ``getattr``; a number the table lacks as it is."""
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return str(opcode)
