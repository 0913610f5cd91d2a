#!/usr/bin/env bash
# Builds the smallest Linux that boots here, for hosts on which a distribution's kernel takes an hour: `tinyconfig`
# and minimal-linux.config, from the source that Debian packages. Prints the path of its bzImage.
#
#   tests/peers/minimal-linux.sh            [ZAPSCOPE_TARGET=target]
#
#   apt-get download ── linux-source-6.12_VERSION_all.deb ── the kernel's tree ── make ──> minimal-linux/bzImage
#                                                                            VERSION, hash ──> minimal-linux/key
#
# A bzImage made from the same version and the same configuration is used again; one that cannot be compared,
# because apt knows no version, too. Takes some minutes and 2 GB on the way, which it gives back. Exits 2 and says
# why if something it needs is missing.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
package=linux-source-6.12
config=$here/minimal-linux.config
place=${ZAPSCOPE_TARGET:-$here/../../target}/minimal-linux
mkdir -p "$place"
place=$(realpath "$place")
image=$place/bzImage

missing() { echo "minimal-linux: $*" >&2; exit 2; }
hash=$(sha256sum <"$config" | cut -d' ' -f1)
candidate() { apt-cache policy "$package" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" {print $2}'; }
as_root() { command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; }

version=$(candidate)
if [ -z "$version" ] && [ -e "$image" ] && [ "$(cut -d' ' -f2 "$place/key" 2>/dev/null)" = "$hash" ]; then
	echo "$image"
	exit
fi
if [ -z "$version" ] && as_root; then
	apt-get update -qq >&2 && version=$(candidate)
fi
[ -n "$version" ] || missing "apt knows no $package: Debian 12 with its security updates, and package lists, are needed"
if [ -e "$image" ] && [ "$(cat "$place/key" 2>/dev/null)" = "$version $hash" ]; then
	echo "$image"
	exit
fi

tools=()
for tool in make gcc flex bison bc lz4; do
	command -v "$tool" >/dev/null || tools+=("$tool")
done
command -v xz >/dev/null || tools+=(xz-utils)
# objtool's.
echo '#include <gelf.h>' | cc -E - >/dev/null 2>&1 || tools+=(libelf-dev)
if [ ${#tools[@]} -gt 0 ]; then
	as_root || missing "not installed, and no apt-get as root: ${tools[*]}"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${tools[@]}" libc6-dev >&2 ||
		missing "cannot install ${tools[*]}"
fi

work=$(mktemp -d "$place/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq -o APT::Sandbox::User=root download "$package=$version" >&2 || missing "cannot download $package $version"
# Only what an x86 kernel is built from: the other half of the tree is never read.
dpkg-deb --fsys-tarfile ./*.deb | tar -xO "./usr/src/$package.tar.xz" | tar -xJ --strip-components=1 \
	--exclude="$package/drivers/gpu/drm/amd/include/*" --exclude="$package/tools/testing" \
	--one-top-level=source
rm -f ./*.deb

build() { make -s -C source O="$work/out" -j"$(nproc)" "$@" >&2; }
build tinyconfig
source/scripts/kconfig/merge_config.sh -m -O out out/.config "$config" >/dev/null
build olddefconfig
# An option whose dependencies are not met is dropped without a word.
while read -r option; do
	grep -qx "$option" out/.config || missing "$package $version does not take $option"
done < <(grep '^CONFIG' "$config")
build bzImage
mv out/arch/x86/boot/bzImage "$image.new"
rm -f "$place/key"
mv "$image.new" "$image"
echo "$version $hash" >"$place/key"
echo "$image"
