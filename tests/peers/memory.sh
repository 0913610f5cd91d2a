#!/usr/bin/env bash
# What a running zapscope takes of memory beside the guest's: the RSS of the process less the RSS of the guest's
# own mappings, which are those that begin and end on 2 MiB boundaries (the arena, low memory). A guest of
# 256 MiB is up and at work meanwhile.
#
#   tests/peers/memory.sh [PROGRAM]        default: target/release/zapscope
#
# Measures five starts, since address-space layout moves the figure by some 200 KiB, and prints each in KiB. Exits 1
# if their median is above the bound, which is the leanest other VMM's figure, measured the same way.
set -eu
program=$(realpath "${1:-target/release/zapscope}")
bound_kib=4198 # 4.1 MiB
place=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true; rm -rf "$place"' EXIT
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
cat >"$place/count.py" <<'COUNT'
import re, sys
block = 2 << 20
total = guest = 0
ours = False
for line in open(f"/proc/{sys.argv[1]}/smaps"):
    mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)", line)
    if mapping:
        start, end = int(mapping[1], 16), int(mapping[2], 16)
        ours = start % block == 0 and end % block == 0 and mapping[3].startswith("rw") and mapping[4] == "0"
    elif line.startswith("Rss:"):
        kib = int(line.split()[1])
        total += kib
        guest += kib if ours else 0
print(total - guest)
COUNT
cd "$place"
for start in 1 2 3 4 5; do
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
	python3 count.py "$pid" >>beside
	kill -INT "$pid"
	wait "$pid" || true
	pid=
	rm -rf zapscope-runs
done
median=$(sort -n beside | sed -n 3p)
echo "memory: $(sort -n beside | tr '\n' ' ')KiB beside the guest's, median $median (bound $bound_kib)"
[ "$median" -le "$bound_kib" ]
