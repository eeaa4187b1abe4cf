"""What the relay reads and changes in FUSE packets; pure.

Numbers and layouts are those of the kernel's ``include/uapi/linux/fuse.h``, in native byte order. A
request starts with ``struct fuse_in_header`` (40 bytes), a reply with ``struct fuse_out_header``
(16 bytes); ``unique`` ties the two together.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import NamedTuple

IN_HEADER = struct.Struct("=IIQQ")
"""len, opcode, unique, nodeid; uid, gid, pid and padding follow."""
IN_HEADER_BYTES = 40
OUT_HEADER = struct.Struct("=IiQ")
"""len, -errno, unique."""

_HANDLE = struct.Struct("=Q")
_OFFSET = struct.Struct("=Q")
_WRITE_FLAGS = struct.Struct("=I")
_WRITE_FLAGS_AT = IN_HEADER_BYTES + 32
"""In struct fuse_write_in, behind fh, offset, size, write_flags and lock_owner: open(2)'s flags."""
_INIT_IN = struct.Struct("=IIIII")
"""major, minor, max_readahead, flags, flags2; kernels before 7.36 send no flags2."""
_INIT_IN_SHORT_BYTES = 16
_INIT_OUT_MAX_WRITE = struct.Struct("=I")
_INIT_OUT_MAX_WRITE_AT = OUT_HEADER.size + 20

MARK = 1 << 63
"""In the numbers of requests and nodes of a second mount behind the same relay."""

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
and no handler takes long enough to be worth an interruption: the relay drops them."""

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


class Request(NamedTuple):
    """The header of a request."""

    length: int
    opcode: int
    unique: int
    node: int


class Reply(NamedTuple):
    """The header of a reply; ``unique`` 0 is a notification."""

    length: int
    error: int
    unique: int


def parse_request(packet: bytearray | memoryview | bytes) -> Request:
    """Read a request's header; raises ``struct.error`` when it is cut short."""
    return Request(*IN_HEADER.unpack_from(packet))


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


def mark(packet: bytearray | memoryview, request: Request) -> Request:
    """Mark a request of the second mount, so that its node and itself are nobody else's.

    The kernel counts requests from 2, and numbers of nodes it has from us, but for the root's.
    """
    marked = request._replace(unique=request.unique | MARK, node=request.node | MARK)
    IN_HEADER.pack_into(packet, 0, *marked)
    return marked


def unmark(packet: bytearray | memoryview, reply: Reply) -> None:
    """Take the mark from the reply to such a request."""
    OUT_HEADER.pack_into(packet, 0, *reply._replace(unique=reply.unique & ~MARK))


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
