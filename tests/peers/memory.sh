#!/usr/bin/env bash
# What a running zapscope takes of memory beside the guest's: the RSS of the process less the RSS of the guest's
# own mappings, which are those that begin and end on 2 MiB boundaries (the arena, low memory). A guest of
# 256 MiB is up and at work meanwhile.
#
#   tests/peers/memory.sh [PROGRAM]        default: target/release/zapscope
#
# Prints one line of KiB. Exits 1 above the bound, which is the leanest other VMM's figure, measured the same way.
set -eu
program=$(realpath "${1:-target/release/zapscope}")
bound_kib=4198 # 4.1 MiB
place=$(mktemp -d)
trap 'kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; rm -rf "$place"' EXIT
cat >"$place/s.toml" <<'SCENARIO'
name = "memory"
memory = "256MiB"
[matrix]
backing = ["4k"]
policy = ["kernel"]
reclaim = ["dontneed"]
[[case]]
name = "busy"
[[case.step]]
do = "fill"
[[case.step]]
do = "hot"
count = 1024
[[case.step]]
do = "baseline"
for = "60s"
[[case.step]]
do = "reclaim"
victims = "sparse"
count = 1
SCENARIO
cd "$place"
"$program" run s.toml --backend kvm >out 2>err &
pid=$!
# The guest is at work once its arena is resident.
for _ in $(seq 600); do
	rss=$(awk '/^VmRSS/ {print $2}' "/proc/$pid/status" 2>/dev/null || echo 0)
	[ "${rss:-0}" -gt $((256 * 1024)) ] && break
	kill -0 "$pid" 2>/dev/null || { cat err >&2; exit 2; }
	sleep 0.05
done
sleep 0.5
python3 - "$pid" "$bound_kib" <<'COUNT'
import re, sys
pid, bound = sys.argv[1], int(sys.argv[2])
block = 2 << 20
total = guest = 0
ours = False
for line in open(f"/proc/{pid}/smaps"):
    mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)", line)
    if mapping:
        start, end = int(mapping[1], 16), int(mapping[2], 16)
        ours = start % block == 0 and end % block == 0 and mapping[3].startswith("rw") and mapping[4] == "0"
    elif line.startswith("Rss:"):
        kib = int(line.split()[1])
        total += kib
        guest += kib if ours else 0
beside = total - guest
print(f"memory: {total} KiB resident, {guest} KiB of it the guest's, {beside} KiB beside it (bound {bound})")
sys.exit(beside > bound)
COUNT
