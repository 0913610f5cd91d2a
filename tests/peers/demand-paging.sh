#!/usr/bin/env bash
# The kernel's own demand_paging_test, built from the source that Debian packages, beside our bench: pages a second at
# one page a fault, at equal pinning and in the pinning each has of itself.
#
#   tests/peers/demand-paging.sh [ROUNDS]            [ZAPSCOPE_TARGET=target]
#
#   apt-get download ── linux-source-6.12_VERSION_all.deb ── headers, selftests ── make ──> demand-paging/demand_paging_test
#   each round: the peer ─ ours ─ the peer pinned ─ ours pinned ──> medians of pages a second
#
# Equal pinning: with one vCPU everything is on one processor (taskset); with two, each has two processors and the peer's
# vCPUs are pinned to one each (-c), as ours are; its handlers it does not pin. Needs KVM and a userfaultfd. Exits 2 and
# says why if something it needs is missing.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
package=linux-source-6.12
rounds=${1:-7}
target=${ZAPSCOPE_TARGET:-$here/../../target}
place=$target/demand-paging
mkdir -p "$place"
target=$(realpath "$target")
place=$(realpath "$place")
peer=$place/demand_paging_test

missing() { echo "demand-paging: $*" >&2; exit 2; }
candidate() { apt-cache policy "$package" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" {print $2}'; }
as_root() { command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; }

build_peer() {
	local version=$1 tools=() tool
	for tool in make gcc rsync; do
		command -v "$tool" >/dev/null || tools+=("$tool")
	done
	command -v xz >/dev/null || tools+=(xz-utils)
	if [ ${#tools[@]} -gt 0 ]; then
		as_root || missing "not installed, and no apt-get as root: ${tools[*]}"
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${tools[@]}" libc6-dev >&2 ||
			missing "cannot install ${tools[*]}"
	fi
	work=$(mktemp -d "$place/work.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	cd "$work"
	apt-get -qq -o APT::Sandbox::User=root download "$package=$version" >&2 || missing "cannot download $package $version"
	# What user space's headers are made of, and the selftests.
	dpkg-deb --fsys-tarfile ./*.deb | tar -xO "./usr/src/$package.tar.xz" | tar -xJ --strip-components=1 \
		--exclude="$package/drivers" --exclude="$package/Documentation" --exclude="$package/fs" \
		--exclude="$package/net" --exclude="$package/sound" --exclude="$package/tools/perf" \
		--one-top-level=source
	rm -f ./*.deb
	make -s -C source headers >&2
	make -s -C source/tools/testing/selftests/kvm -j"$(nproc)" OUTPUT="$work/out" "$work/out/demand_paging_test" >&2
	mv out/demand_paging_test "$peer"
	echo "$version" >"$place/key"
	cd "$here"
	rm -rf "$work"
}

version=$(candidate)
if [ -z "$version" ] && [ ! -e "$peer" ] && as_root; then
	apt-get update -qq >&2 && version=$(candidate)
fi
if [ ! -e "$peer" ] || { [ -n "$version" ] && [ "$(cat "$place/key")" != "$version" ]; }; then
	[ -n "$version" ] || missing "apt knows no $package: Debian 12 with its security updates, and package lists, are needed"
	build_peer "$version"
fi
[ -r /dev/kvm ] && [ -w /dev/kvm ] || missing "/dev/kvm cannot be opened"

(cd "$here" && CARGO_TARGET_DIR=$target cargo bench -q -p machine --bench userfault --no-run) >&2
bench() { (cd "$here" && CARGO_TARGET_DIR=$target "${@:2}" cargo bench -q -p machine --bench userfault -- "$1"); }

allowed=$(taskset -pc $$ | sed 's/.*: //')
mapfile -t cpus < <(tr ',' '\n' <<<"$allowed" | while IFS=- read -r first last; do seq "$first" "${last:-$first}"; done)
one=${cpus[0]}
[ ${#cpus[@]} -ge 2 ] || echo "demand-paging: one processor: nothing runs on two" >&2

# Each as pages a second, from what the program says of itself.
peer_rate() {
	local vcpus=$1
	shift
	"$@" 2>&1 | awk -v vcpus="$vcpus" '/^Overall demand paging rate:/ {print int($5); found = 1} END {exit !found}'
}
ours_rate() { bench "rate$1" "${@:2}" | awk '/^rate:/ {print int($2); found = 1} END {exit !found}'; }
size() { echo "$((16 / $1))M"; }
median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }

row() { # name, vcpus, prefix for both, the peer's further options
	local name=$1 vcpus=$2 prefix=$3 options=$4 round ours=() theirs=()
	for ((round = 0; round < rounds; round++)); do
		# shellcheck disable=SC2086
		theirs+=("$(peer_rate "$vcpus" $prefix timeout 120 "$peer" -u MISSING -b "$(size "$vcpus")" -v "$vcpus" $options)")
		# shellcheck disable=SC2086
		ours+=("$(ours_rate "$vcpus" $prefix timeout 120)")
	done
	local o t
	o=$(printf '%s\n' "${ours[@]}" | median)
	t=$(printf '%s\n' "${theirs[@]}" | median)
	printf '%-34s %18d %12d %8.2f\n' "$name" "$t" "$o" "$(awk -v o="$o" -v t="$t" 'BEGIN {print o / t}')"
}

printf '%-34s %18s %12s %8s\n' "pages/s, one page a fault" demand_paging_test ours ahead
row "1 vCPU, all on one processor" 1 "taskset -c $one" ""
row "1 vCPU, its own pinning (none)" 1 "" ""
if [ ${#cpus[@]} -ge 2 ]; then
	two="$one,${cpus[1]}"
	row "2 vCPUs, each on its processor" 2 "taskset -c $two" "-c $two"
	row "2 vCPUs, its own pinning (none)" 2 "" ""
fi
