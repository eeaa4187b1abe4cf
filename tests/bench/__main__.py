"""The command: measure, print, and write it down."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import reads, scale, starts
from tests.bench.bars import bars
from tests.bench.contenders import contest
from tests.bench.generator import workplace
from tests.bench.machine import machine, versions
from tests.bench.page import with_table
from tests.bench.picture import picture
from tests.bench.processes import resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent.parent / "README.md"
PARTS = ("reads", "scale", "starts")
SECONDS = 100.0
"""Of reading; all together takes about twice as long."""


def main(arguments: list[str]) -> int:
    """Run it. The exit status says whether it ran, not whether anything is fast."""
    options = _parser().parse_args(arguments)
    parts = options.only.split(",")
    if not parts or not set(parts) <= set(PARTS):
        print(f"bench: --only takes some of {','.join(PARTS)}", file=sys.stderr)
        return 2
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {what}", file=sys.stderr, flush=True)

    results = _measure(parts, options, tell)
    results["seconds"] = round(time.monotonic() - began, 1)
    found = bars(results)
    results["bars"] = [bar.as_dict() for bar in found]
    print(_table(results))
    for bar in found:
        print(bar.line())
    # Part of a run, or a hasty one, is not what the README shows.
    failed = [part for part in parts if part not in results]
    whole = set(parts) == set(PARTS) and options.seconds >= SECONDS and not failed
    out = options.out or (RESULTS if whole else None)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "latest.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        if results.get("reads"):
            (out / "latest.svg").write_text(picture(results))
        print(f"\nwritten to {out}")
    if whole and out == RESULTS:
        README.write_text(with_table(README.read_text(), results))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sh tests/run.sh bench", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="spent on reading (default %(default)g)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write there (default: results, if nothing is cut)"
    )
    return parser


def _measure(
    parts: list[str], options: argparse.Namespace, tell: Callable[[str], None]
) -> dict[str, Any]:
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {"only": parts, "seconds": options.seconds},
        "machine": machine(),
        "versions": versions(),
    }
    with workplace() as directory:

        def read() -> None:
            tell("reads: starting everybody")
            with contest(directory) as contenders:
                results["versions"]["lxcfs"] = contenders.lxcfs_version
                results["rss_bytes"] = {}
                found = reads.measure(
                    contenders.contenders, list(reads.cases()), options.seconds, tell
                )
                for each in contenders.contenders:
                    if each.servers:
                        results["rss_bytes"][each.kind.value] = resident_bytes(each.servers)
                results["reads"] = found

        def grow() -> None:
            results["scale"] = scale.measure(directory, tell)

        def start() -> None:
            found = starts.measure(starts.ROUNDS, tell)
            results["versions"]["docker"] = found.pop("docker")
            results["starts"] = found

        for name, part in zip(PARTS, (read, grow, start), strict=True):
            if name in parts:
                try:
                    part()
                except Exception:  # noqa: BLE001 - what the others found is worth minutes
                    traceback.print_exc()
                    tell(f"{name}: failed; nothing of it is in the results")
    return results


def _table(results: Mapping[str, Any]) -> str:
    lines = []
    if results.get("reads"):
        lines.append(f"{'':34}{'':26}{'p50':>10} {'p99':>10} {'':>12} {'daemon CPU':>11}")
        for row in results["reads"]:
            many = f"{row['clients']} {row['as']}" if row["clients"] > 1 else "1 client"
            what = f"{row['way']} {row['file']}, {many}"
            lines.append(
                f"{what:34}{row['contender']:26}{row['p50_us']:8.1f}us {row['p99_us']:8.0f}us "
                f"{row['per_second']:10,.0f}/s {row['daemon_cpu_us']:9.2f}us"
            )
        lines += [
            f"memory of {name}: {bytes_ / 1e6:.1f} MB"
            for name, bytes_ in results["rss_bytes"].items()
        ]
    lines += [
        f"{row['containers']:5} containers: {row['registered']} more registered in "
        f"{row['register_seconds']:.2f} s, daemon {row['rss_bytes'] / 1e6:.1f} MB, idle "
        f"{row['idle_cpu_percent']:.2f} % CPU, cat p50 {row['cat']['p50_us']:.1f} us"
        for row in results.get("scale", [])
    ]
    if results.get("starts"):
        plain, ours = (results["starts"][name]["median_ms"] for name in ("plain", "sysfsd"))
        lines.append(f"docker run: {plain:.0f} ms, with --runtime=sysfsd {ours:.0f} ms (medians)")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
