"""Mount tables and overlay options, as kernels print them."""

from __future__ import annotations

from sysfsd.kernel.mounts import mount_at, parse_mountinfo, parse_overlay

TABLE = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
300 27 0:55 / /var/lib/docker/overlay2/ab/merged rw,relatime shared:9 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/var/lib/docker/overlay2/ab/diff,workdir=/var/lib/docker/overlay2/ab/work
301 27 0:56 /sub\\040dir /mnt/a\\040b rw master:3 propagate_from:2 - tmpfs none rw
302 301 0:57 / /mnt/a\\040b ro - tmpfs none rw
"""  # noqa: E501


def test_fields_with_and_without_optional_ones() -> None:
    mounts = parse_mountinfo(TABLE.splitlines())

    assert [mount.fstype for mount in mounts] == ["ext4", "overlay", "tmpfs", "tmpfs"]
    assert (mounts[2].root, mounts[2].point) == ("/sub dir", "/mnt/a b")


def test_the_later_mount_is_on_top() -> None:
    mounts = parse_mountinfo(TABLE.splitlines())

    assert mounts[3] is mount_at(mounts, "/mnt/a b")
    assert mount_at(mounts, "/mnt") is None


def test_overlay_layers_and_options() -> None:
    lowers, options = parse_overlay("rw,lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w,index=off")

    assert lowers == ["/l/A", "/l/B"]
    assert options == {"rw": "", "upperdir": "/u", "workdir": "/w", "index": "off"}


def test_odd_characters_in_layers() -> None:
    lowers, options = parse_overlay(r"rw,lowerdir=/a\134:b:/c\040d\054e,upperdir=/u\054v")

    assert lowers == ["/a:b", "/c d,e"]
    assert options["upperdir"] == "/u,v"


def test_layers_named_one_by_one() -> None:
    # fs/overlayfs/params.c prints what came through fsconfig(2) this way (6.8 and later).
    lowers, _ = parse_overlay("rw,lowerdir+=/a,lowerdir+=/b:c")

    assert lowers == ["/a", "/b:c"]


def test_only_what_the_kernel_escapes_separates() -> None:
    """A user with fusermount may mount at a directory of any name."""
    odd = "A\x0brw\x0b-\x0bcgroup\x0bx\x0brw,memory\r\x1c\u2028"
    line = f"27 1 0:50 / /home/{odd} rw - fuse me rw\n"
    (mount,) = parse_mountinfo([line])

    assert (mount.point, mount.fstype) == (f"/home/{odd}", "fuse")
