"""The one table of emulated files. Append only: positions are part of inode numbers.

Ranges are the kernel's, of 6.18 where versions differ; those that depend on its clock's rate are
for 250 Hz, Debian's. At run time only those rows count whose files the kernel has, and keeps from
a container's root.

Left out on purpose, although software writes them:

- ``vm/nr_hugepages`` and its kin: a database that reads back what it asked for counts on pages that
  nobody set aside.
- ``vm/drop_caches``, ``vm/compact_memory``: orders, not values. To say that it is done would be
  a lie that a benchmark believes.
- ``kernel/sched_rt_period_us``, ``kernel/modules_disabled``, ``kernel/kexec_load_disabled``: what
  they bound is the host's, and nobody in a container has the right to what they forbid.
- ``vm/mmap_rnd_bits``: ranges differ between architectures.
- What counts in ticks of the kernel's clock (``vm/laptop_mode``, ``vm/stat_interval``,
  ``net/core/message_cost``): which numbers overflow depends on how it was built.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from sysfsd.sysctls.groups import GID_MAX
from sysfsd.sysctls.node import Live, Locked, Made, Scope, Sysctl
from sysfsd.sysctls.values import (
    INT_MAX,
    MOST_SLOTS,
    UINT_MAX,
    Numbers,
    Parameter,
    Text,
    integers,
    longs,
    pipe_bytes,
    slots,
    unsigned,
)

_LONG_MAX = (1 << 63) - 1
_PAGE_BYTES = 4096
_FLAG = integers(0, 1)
_COUNT = integers(0)
_SOME = longs(1, INT_MAX)

# mm/page-writeback.c: more pages than an unsigned int counts are ERANGE.
_DIRTY_MOST = UINT_MAX * _PAGE_BYTES

# net/sched/sch_api.c qdisc_set_default: one that is registered, or whose module can be loaded.
_QDISCS = frozenset(
    "bfifo cake codel drr ets fq fq_codel fq_pie gred hfsc hhf htb mq multiq noqueue pfifo "
    "pfifo_fast pfifo_head_drop pie prio qfq red sfb sfq tbf".split()
)

_KUBELET = "kubelet, setupKernelTunables in pkg/kubelet/cm/container_manager_linux.go"
_IPVS = "kube-proxy, pkg/proxy/ipvs/proxier.go; Docker Swarm, libnetwork's osl/namespace_linux.go"
_CONNTRACK = "kube-proxy, pkg/proxy/conntrack/sysctls.go"
_SYSTEMD = "systemd's sysctl.d/50-default.conf"
_PROTECT = "Debian's sysctl.d/99-protect-links.conf; systemd's 50-default.conf"
_REDIS = "https://redis.io/docs/latest/operate/oss_and_stack/management/admin/"
_ELASTIC = (
    "https://www.elastic.co/docs/deploy-manage/deploy/self-managed/important-system-configuration"
)
_POSTGRES = "https://www.postgresql.org/docs/current/kernel-resources.html"
_MONGO = "https://www.mongodb.com/docs/manual/administration/production-checklist-operations/"
_DATASTAX = "https://docs.datastax.com/en/dse/6.9/managing/configure/set-kernel-parameters.html"
_CASSANDRA = (
    "https://docs.datastax.com/en/cassandra/2.0/cassandra/install/installRecommendSettings.html"
)
_ORACLE = "TuneD's profile oracle"
_INOTIFY = "https://kind.sigs.k8s.io/docs/user/known-issues/#pod-errors-due-to-too-many-open-files"
_UBUNTU = "Ubuntu's sysctl.d/10-*.conf"
_HARDENING = "https://www.cisecurity.org/benchmark/debian_linux"
_KEYS = "keyrings(7); kubelet for root's"
_QUIC = "https://github.com/quic-go/quic-go/wiki/UDP-Buffer-Sizes"
_CILIUM = "Cilium's agent, pkg/datapath/loader/base.go"
_NEIGHBOURS = "Docker Swarm, libnetwork's ostweaks_linux.go; TuneD's profile openshift; arp(7)"
_PERF = "https://docs.kernel.org/admin-guide/perf-security.html"
_BUSY = "https://docs.kernel.org/networking/napi.html#busy-polling; TuneD's profile network-latency"
_NETWORK_TUNING = "https://docs.kernel.org/admin-guide/sysctl/net.html"
_VM = "https://docs.kernel.org/admin-guide/sysctl/vm.html"
_KERNEL = "https://docs.kernel.org/admin-guide/sysctl/kernel.html"
_FS = "https://docs.kernel.org/admin-guide/sysctl/fs.html"


def _vm(name: str, kind: Numbers, why: str, resets: tuple[str, ...] = ()) -> Sysctl:
    return Sysctl(
        f"proc/sys/vm/{name}", kind, why, resets=tuple(f"proc/sys/vm/{each}" for each in resets)
    )


def _kernel(name: str, kind: Numbers, why: str) -> Sysctl:
    return Sysctl(f"proc/sys/kernel/{name}", kind, why)


def _fs(name: str, kind: Numbers, why: str) -> Sysctl:
    return Sysctl(f"proc/sys/fs/{name}", kind, why)


def _net(name: str, kind: Numbers, why: str) -> Sysctl:
    return Sysctl(f"proc/sys/net/{name}", kind, why, scope=Scope.NETWORK)


SYSCTLS: tuple[Sysctl, ...] = (
    _vm("overcommit_memory", integers(0, 2), f"{_KUBELET}; {_REDIS}; {_POSTGRES}"),
    _vm("max_map_count", _COUNT, f"{_ELASTIC}; TuneD's profile openshift"),
    _kernel("panic", integers(), _KUBELET),
    _kernel("printk", integers(count=4), f"Debian's /etc/sysctl.conf; {_UBUNTU}"),
    # Also what systemd does as PID 1, bump_file_max_and_nr_open of src/core/main.c.
    _fs("file-max", longs(0, _LONG_MAX), f"systemd as PID 1; {_MONGO}; {_ORACLE}"),
    # fs/file_table.c sysctl_nr_open_min and _max: whole words of a bitmap.
    _fs("nr_open", unsigned(64, INT_MAX - 63), f"systemd as PID 1; {_FS}"),
    Sysctl(
        "proc/sys/kernel/core_pattern",
        Text(128, no_sockets=True),
        "systemd-coredump's sysctl.d/50-coredump.conf; core(5)",
    ),
    Sysctl("proc/sys/kernel/hostname", Text(65), "sysctl(8); systemd-hostnamed", Live.HOSTNAME),
    Sysctl("proc/sys/kernel/domainname", Text(65), "docker run --domainname", Live.HOSTNAME),
    # net/core/sysctl_net_core.c SOCK_MIN_RCVBUF and SOCK_MIN_SNDBUF, of 64-bit machines.
    _net("core/rmem_max", integers(2304), f"{_QUIC}; {_DATASTAX}; {_ORACLE}"),
    _net("core/wmem_max", integers(4608), f"{_QUIC}; {_DATASTAX}; {_ORACLE}"),
    _net("core/rmem_default", integers(2304), f"{_DATASTAX}; {_ORACLE}"),
    _net("core/wmem_default", integers(4608), f"{_DATASTAX}; {_ORACLE}"),
    _net(
        "core/somaxconn",
        _COUNT,
        "redis-server, which warns of less than its tcp-backlog; hidden before Linux 6.0",
    ),
    _net("core/optmem_max", _COUNT, f"{_DATASTAX}; {_NETWORK_TUNING}"),
    _net("core/netdev_max_backlog", integers(), _NETWORK_TUNING),
    _net("core/netdev_budget", integers(), _NETWORK_TUNING),
    # Two ticks of the clock.
    _net("core/netdev_budget_usecs", integers(8000), _NETWORK_TUNING),
    _net("core/dev_weight", integers(1), _NETWORK_TUNING),
    _net("core/busy_poll", _COUNT, _BUSY),
    _net("core/busy_read", _COUNT, _BUSY),
    _net("core/fb_tunnels_only_for_init_net", integers(0, 2), _CILIUM),
    # CONFIG_BPF_JIT_ALWAYS_ON, as Debian has it.
    _net("core/bpf_jit_enable", integers(1, 1), _CILIUM),
    Sysctl(
        "proc/sys/net/core/bpf_jit_harden",
        integers(0, 2),
        _HARDENING,
        mode=0o600,
        scope=Scope.NETWORK,
    ),
    Sysctl(
        "proc/sys/net/core/default_qdisc",
        Text(16, choices=_QDISCS),
        f"{_SYSTEMD}; https://docs.kernel.org/admin-guide/sysctl/net.html",
        scope=Scope.NETWORK,
    ),
    _net("ipv4/vs/conntrack", integers(), _IPVS),
    _net("ipv4/vs/conn_reuse_mode", integers(), _IPVS),
    _net("ipv4/vs/expire_nodest_conn", integers(), _IPVS),
    _net("ipv4/vs/expire_quiescent_template", integers(), _IPVS),
    _net("ipv4/neigh/default/gc_thresh1", _COUNT, _NEIGHBOURS),
    _net("ipv4/neigh/default/gc_thresh2", _COUNT, _NEIGHBOURS),
    _net("ipv4/neigh/default/gc_thresh3", _COUNT, _NEIGHBOURS),
    _net("ipv6/neigh/default/gc_thresh1", _COUNT, _NEIGHBOURS),
    _net("ipv6/neigh/default/gc_thresh2", _COUNT, _NEIGHBOURS),
    _net("ipv6/neigh/default/gc_thresh3", _COUNT, _NEIGHBOURS),
    _net("ipv4/tcp_mem", longs(count=3), "tcp(7)"),
    _net("ipv4/udp_mem", longs(count=3), "udp(7)"),
    _net("ipv4/tcp_max_orphans", integers(), "tcp(7)"),
    _net("netfilter/nf_conntrack_max", _COUNT, f"{_CONNTRACK}; TuneD's profile openshift"),
    _net("nf_conntrack_max", _COUNT, "older name of netfilter/nf_conntrack_max"),
    # net/netfilter/nf_conntrack_core.c nf_conntrack_hash_resize; a negative size is a large one
    # for the kernel, hence ENOMEM, and EINVAL here.
    _net(
        "netfilter/nf_conntrack_buckets",
        replace(integers(1, MOST_SLOTS), beyond=errno.ENOMEM, stored=slots),
        "https://docs.kernel.org/networking/nf_conntrack-sysctl.html",
    ),
    _net(
        "netfilter/nf_conntrack_expect_max",
        integers(1),
        "https://docs.kernel.org/networking/nf_conntrack-sysctl.html",
    ),
    Sysctl(
        "sys/module/nf_conntrack/parameters/hashsize",
        Parameter(MOST_SLOTS, errno.ENOMEM, slots),
        _CONNTRACK,
        mode=0o600,
    ),
    Sysctl(
        "sys/devices/virtual/dmi/id/product_uuid",
        Text(37),
        "kubelet (cAdvisor's SystemUUID); kubeadm wants a different one on each node",
        Made.PRODUCT_UUID,
        mode=0o400,
    ),
    _fs("protected_hardlinks", _FLAG, _PROTECT),
    _fs("protected_symlinks", _FLAG, _PROTECT),
    _fs("protected_fifos", integers(0, 2), _PROTECT),
    _fs("protected_regular", integers(0, 2), _PROTECT),
    _fs("suid_dumpable", integers(0, 2), "systemd-coredump's 50-coredump.conf; proc(5)"),
    _fs("aio-max-nr", longs(), f"{_ORACLE}; ScyllaDB's sysctl.d/99-scylla-aio.conf"),
    _fs("inotify/max_queued_events", _COUNT, f"inotify(7); {_INOTIFY}"),
    # fs/notify/inotify/inotify_user.c has them as longs.
    _fs("inotify/max_user_instances", longs(0, INT_MAX), _INOTIFY),
    _fs("inotify/max_user_watches", longs(0, INT_MAX), _INOTIFY),
    _fs("fanotify/max_queued_events", _COUNT, "fanotify(7)"),
    _fs("fanotify/max_user_groups", longs(0, INT_MAX), "fanotify(7)"),
    _fs("fanotify/max_user_marks", longs(0, INT_MAX), "fanotify(7)"),
    _fs("epoll/max_user_watches", longs(0, _LONG_MAX), "epoll(7)"),
    _fs("lease-break-time", integers(), "proc(5); Samba"),
    _fs("leases-enable", integers(), "proc(5); Samba"),
    _fs("mount-max", _SOME, _FS),
    # fs/pipe.c do_proc_dopipe_max_size_conv keeps the lower half of larger numbers; here EINVAL.
    _fs(
        "pipe-max-size",
        replace(unsigned(0, INT_MAX + 1), stored=pipe_bytes),
        "pipe(7)",
    ),
    _fs("pipe-user-pages-hard", longs(), "pipe(7)"),
    _fs("pipe-user-pages-soft", longs(), "pipe(7)"),
    _kernel("panic_on_oops", integers(), f"{_KUBELET}; {_ORACLE}"),
    _kernel("panic_on_warn", _FLAG, _KERNEL),
    _kernel("panic_on_rcu_stall", _FLAG, _KERNEL),
    _kernel("panic_on_io_nmi", integers(), _KERNEL),
    _kernel("panic_on_unrecovered_nmi", integers(), _KERNEL),
    _kernel("unknown_nmi_panic", integers(), _KERNEL),
    _kernel("softlockup_panic", _FLAG, _KERNEL),
    _kernel("hardlockup_panic", _FLAG, _KERNEL),
    _kernel("hung_task_panic", _FLAG, _KERNEL),
    # kernel/hung_task.c hung_task_timeout_max: LONG_MAX ticks of the clock.
    _kernel("hung_task_timeout_secs", longs(0, _LONG_MAX // 250), _KERNEL),
    _kernel("hung_task_warnings", integers(-1), _KERNEL),
    _kernel("hung_task_check_count", _COUNT, _KERNEL),
    # Switches of their own here; in the kernel the first is both of soft_watchdog and the second.
    _kernel("watchdog", _FLAG, _KERNEL),
    _kernel("nmi_watchdog", _FLAG, "TuneD's profile network-latency; powertop"),
    _kernel("watchdog_thresh", integers(0, 60), _KERNEL),
    # drivers/tty/sysrq.c sysrq_sysctl_handler: no range.
    _kernel("sysrq", integers(), f"{_SYSTEMD}; {_UBUNTU}; Debian's /etc/sysctl.conf"),
    _kernel("kptr_restrict", integers(0, 2), f"{_UBUNTU}; {_HARDENING}"),
    _kernel("dmesg_restrict", _FLAG, f"{_UBUNTU}; {_HARDENING}"),
    _kernel("perf_event_paranoid", integers(), _PERF),
    _kernel("perf_event_mlock_kb", integers(), _PERF),
    _kernel("perf_event_max_sample_rate", integers(1), _PERF),
    _kernel("perf_cpu_time_max_percent", integers(0, 100), _PERF),
    Sysctl(
        "proc/sys/kernel/unprivileged_bpf_disabled",
        integers(0, 2),
        f"{_CILIUM}; {_HARDENING}",
        # kernel/bpf/syscall.c bpf_unpriv_handler.
        locked=Locked(1, errno.EPERM),
    ),
    _kernel("bpf_stats_enabled", _FLAG, "bpftop; bpftool-prog(8)"),
    Sysctl(
        "proc/sys/kernel/yama/ptrace_scope",
        integers(0, 3),
        f"{_UBUNTU}; https://docs.kernel.org/admin-guide/LSM/Yama.html",
        # security/yama/yama_lsm.c yama_dointvec_minmax: it becomes the minimum.
        locked=Locked(3, errno.EINVAL),
    ),
    # Debian's and Ubuntu's own.
    _kernel(
        "unprivileged_userns_clone", integers(), "https://docs.docker.com/engine/security/rootless/"
    ),
    _kernel("randomize_va_space", integers(), f"{_HARDENING}; gdb's manual"),
    _kernel("io_uring_disabled", integers(0, 2), _KERNEL),
    _kernel("io_uring_group", integers(), _KERNEL),
    _kernel("keys/maxkeys", _SOME, _KEYS),
    _kernel("keys/maxbytes", _SOME, _KEYS),
    _kernel("keys/root_maxkeys", _SOME, f"{_KUBELET}; {_KEYS}"),
    _kernel("keys/root_maxbytes", _SOME, f"{_KUBELET}; {_KEYS}"),
    _kernel("keys/gc_delay", _COUNT, _KEYS),
    _kernel("keys/persistent_keyring_expiry", _COUNT, "persistent-keyring(7)"),
    # Until 6.14; then PID namespaces have their own.
    _kernel("pid_max", integers(301, 4 << 20), f"systemd's sysctl.d/50-pid-max.conf; {_MONGO}"),
    # kernel/fork.c sysctl_max_threads: up to FUTEX_TID_MASK.
    _kernel("threads-max", integers(1, 0x3FFFFFFF), f"{_MONGO}; proc(5)"),
    _kernel("core_uses_pid", integers(), f"{_SYSTEMD}; core(5)"),
    _kernel("core_pipe_limit", _COUNT, "systemd-coredump's 50-coredump.conf; core(5)"),
    _kernel("numa_balancing", integers(0, 4), "TuneD's profile network-latency"),
    _kernel("sched_autogroup_enabled", _FLAG, "sched(7); TuneD's profile postgresql"),
    # kernel/sched/rt.c: at most the period, a second, which is not a row here.
    _kernel("sched_rt_runtime_us", integers(-1, 1000000), "sched(7); Docker's realtime"),
    _kernel("sched_cfs_bandwidth_slice_us", integers(1), "sched-bwc; CPU throttling guides"),
    _kernel("timer_migration", _FLAG, f"{_CILIUM}; TuneD's profile network-latency"),
    _kernel("task_delayacct", _FLAG, "iotop(8)"),
    _kernel("split_lock_mitigate", unsigned(0, 1), "GameMode; https://docs.kernel.org sysctl"),
    _kernel("ctrl-alt-del", integers(), "proc(5)"),
    _kernel("pty/max", _COUNT, "pty(7)"),
    _kernel("pty/reserve", _COUNT, "pty(7)"),
    _vm("panic_on_oom", integers(0, 2), _KUBELET),
    _vm("oom_kill_allocating_task", integers(), _VM),
    _vm("oom_dump_tasks", integers(), _VM),
    _vm("overcommit_ratio", integers(), _POSTGRES, ("overcommit_kbytes",)),
    _vm("overcommit_kbytes", longs(), _VM, ("overcommit_ratio",)),
    _vm("swappiness", integers(0, 200), f"{_ELASTIC}; TuneD's profiles oracle and postgresql"),
    replace(_vm("dirty_ratio", integers(0, 100), _ORACLE, ("dirty_bytes",)), resets_on_change=True),
    replace(
        _vm(
            "dirty_bytes",
            replace(longs(2 * _PAGE_BYTES, _DIRTY_MOST), beyond=errno.ERANGE),
            "TuneD's profile postgresql",
            ("dirty_ratio",),
        ),
        resets_on_change=True,
    ),
    _vm("dirty_background_ratio", integers(0, 100), _ORACLE, ("dirty_background_bytes",)),
    _vm(
        "dirty_background_bytes",
        replace(longs(1, _DIRTY_MOST), beyond=errno.ERANGE),
        "TuneD's profile postgresql",
        ("dirty_background_ratio",),
    ),
    _vm("dirty_expire_centisecs", _COUNT, _ORACLE),
    _vm("dirty_writeback_centisecs", integers(), f"{_ORACLE}; powertop"),
    _vm("dirtytime_expire_seconds", _COUNT, _VM),
    _vm("vfs_cache_pressure", _COUNT, _VM),
    _vm("min_free_kbytes", _COUNT, _VM),
    _vm("mmap_min_addr", longs(), f"{_UBUNTU}; wine; https://wiki.debian.org/mmap_min_addr"),
    _vm("page-cluster", integers(0, 31), f"{_VM}; zram guides"),
    _vm("zone_reclaim_mode", _COUNT, f"{_MONGO}; {_CASSANDRA}"),
    _vm("watermark_scale_factor", integers(1, 3000), f"{_VM}; zram guides"),
    _vm("watermark_boost_factor", _COUNT, f"{_VM}; zram guides"),
    _vm("compaction_proactiveness", integers(0, 100), _VM),
    _vm("compact_unevictable_allowed", _FLAG, _VM),
    _vm("extfrag_threshold", integers(0, 1000), _VM),
    _vm("legacy_va_layout", _COUNT, _VM),
    _vm("admin_reserve_kbytes", longs(), _VM),
    _vm("user_reserve_kbytes", longs(), _VM),
    _vm("unprivileged_userfaultfd", _FLAG, "userfaultfd(2)"),
    Sysctl(
        "proc/sys/net/ipv4/ping_group_range",
        longs(0, GID_MAX, count=2),
        f"{_SYSTEMD}; Docker gives it to each container; icmp(7)",
        Live.PING_GROUPS,
        scope=Scope.NETWORK,
        always=True,
    ),
)
