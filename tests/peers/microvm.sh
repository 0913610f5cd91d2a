#!/usr/bin/env bash
# How soon a stock kernel reaches its init: zapscope next to `qemu-system-x86_64 -M microvm`, side by side in a rig, an
# AMD host with nested paging that QEMU emulates, as tests/tests/nested has it. And how long unpacking the kernel takes
# on this machine itself.
#
#   tests/peers/microvm.sh [ROUNDS]        default: 5
#
# Both get the same bzImage (Debian's 6.1 and 6.12), the same initrd (its /init is hello.c), the same command line,
# 512 MiB and one vCPU. Each round starts each once, first to last and then last to first; a start is timed from just
# before the VMM's exec to the line that init prints (timed.c), by this machine's clock. Besides `-M microvm` as it
# comes (`microvm`), QEMU runs it with what its manual says to leave out for a fast start (`lean`: no PIT, no PIC, no
# RTC, no option ROMs).
#
# Prints the medians in seconds and, for each microvm, the median of the rounds' ratios of its time to ours. Exits 1 if
# either reaches init sooner than ours, or if unpacking takes 150 ms; for that the fastest sample counts, as whatever
# else runs can only add to it. Times in an emulated host are long; it is their ratios that mean something. The rig has
# one vCPU: with more, QEMU 7.2's emulation of SVM hangs a Linux guest now and then (see `vcpus_for` in
# tests/tests/nested/main.rs). Takes some ten minutes. What it makes, and the console of everything that ran in the rig (console.log), is in target/nested/microvm.
#
#   ZAPSCOPE_CMDLINE=quiet       more of a kernel command line, for every guest
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-5}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
store=$target/nested
place=$store/microvm
most_ms=150

cannot() { echo "COULD NOT RUN microvm: $*"; exit 0; }
for tool in qemu-system-x86_64 apt-get dpkg-deb cc python3; do
	command -v "$tool" >/dev/null || cannot "there is no $tool here"
done

# The last by name of the kept packages whose name begins with this, unpacked; nothing if there is none.
kept() { find "$store/unpacked" -maxdepth 1 -name "$1*_amd64" 2>/dev/null | sort | tail -n 1; }
have_packages() { [ -n "$(kept linux-image-6.1.)" ] && [ -n "$(kept linux-image-6.12.)" ] && [ -n "$(kept busybox-static_)" ]; }
# The rig fetches and unpacks them even for nothing but a list of its tests.
have_packages || why=$(cargo test -q -p tests --test nested --locked -- --list | grep '^COULD NOT RUN') || true
have_packages || cannot "${why:-the nested rig has fetched no packages}"
busybox=$(kept busybox-static_)/bin/busybox
host=$(kept linux-image-6.12.)

cargo build --release --locked -p vmm
rm -rf "$place"
rig=$place/rig
mkdir -p "$rig"/{bin,dev,proc,sys,tmp,modules,guests,firmware} "$place/initrd"

# A program and the libraries it needs, at their places.
install_program() {
	cp -L "$1" "$rig/bin/"
	# `name => /path (address)`, and the loader without a name.
	ldd "$1" | sed -nE 's|.*[[:space:]](/[^ ]+) \(0x.*|\1|p' | while read -r library; do
		mkdir -p "$rig$(dirname "$library")"
		cp -Lu "$library" "$rig$library"
	done
}
install_program "$target/release/zapscope"
install_program "$(command -v qemu-system-x86_64)"
# What `-M microvm` reads: its two firmwares, and what starts a kernel.
for firmware in bios-microvm.bin qboot.rom linuxboot_dma.bin pvh.bin; do
	for directory in /usr/share/{qemu,seabios,qboot}; do [ -f "$directory/$firmware" ] && break; done
	[ -f "$directory/$firmware" ] || cannot "QEMU's $firmware is not installed"
	cp -L "$directory/$firmware" "$rig/firmware/"
done
cp "$busybox" "$rig/bin/"
for name in 6.1 6.12; do
	cp "$(kept "linux-image-$name.")"/boot/vmlinuz-* "$rig/guests/$name"
done
for module in virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-amd; do
	"$busybox" xzcat "$host"/lib/modules/*/kernel/$module.ko.xz >"$rig/modules/${module##*/}.ko"
done
cc -O2 -Wall -Wextra -static -o "$rig/bin/timed" tests/peers/timed.c
cc -O2 -Wall -Wextra -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie \
	-o "$place/initrd/init" tests/peers/hello.c
archive() { (cd "$1" && find . | "$busybox" cpio -o -H newc 2>/dev/null); }
archive "$place/initrd" >"$rig/guests/initrd"

cat >"$rig/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in irqbypass kvm kvm-amd; do insmod /modules/$module.ko; done
# Debian's is `always`: every process's memory in huge pages, too.
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
. /plan
ours() {
	timed HELLO "$1 ours $2" zapscope boot --kernel /guests/$1 --initrd /guests/initrd --memory 512MiB --vcpus 1 \
		--cmdline "$more"
}
qemu() {
	timed HELLO "$1 $2 $3" qemu-system-x86_64 -M $4 -L /firmware -accel kvm -cpu host -smp 1 -m 512M -nodefaults \
		-no-user-config -nographic -serial stdio -no-reboot -kernel /guests/$1 -initrd /guests/initrd \
		-append "console=ttyS0 panic=-1 $more"
}
microvm() { qemu $1 microvm $2 microvm; }
lean() { qemu $1 lean $2 microvm,pit=off,pic=off,rtc=off,x-option-roms=off; }
exec >/dev/ttyS1 2>/dev/ttyS0
# The first of each does not count: KVM's first VM patches the kernel's code, and no later one does.
for who in ours microvm lean; do $who 6.12 0; done
for kernel in 6.12 6.1; do
	for round in $(seq $rounds); do
		order="ours microvm lean"
		[ $((round % 2)) = 0 ] && order="lean microvm ours"
		for who in $order; do $who $kernel $round; done
	done
done
echo done
poweroff -f
INIT
chmod +x "$rig/init"
printf 'rounds=%d\nmore=%q\n' "$rounds" "${ZAPSCOPE_CMDLINE:-}" >"$rig/plan"
archive "$rig" >"$place/initramfs.cpio"

cat >"$place/rig.py" <<'RIG'
# Runs the rig, the command in the arguments; stamps what it says, and makes the table of it.
import select, statistics, subprocess, sys, time
silence = 900  # seconds after which it hangs
rig = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
begun, times, whole = {}, {}, False
while select.select([rig.stdout], [], [], silence)[0]:
    line = rig.stdout.readline()
    now = time.monotonic()
    if not line:
        break
    match line.decode(errors="replace").split():
        case ["begin", kernel, who, round]:
            begun = {(kernel, who, round): now}
        case ["reached", kernel, who, round]:
            seconds = now - begun[kernel, who, round]
            print(f"{kernel:5} {who:8} round {round} {seconds:6.2f} s", flush=True)
            if round != "0":
                times.setdefault(kernel, {}).setdefault(who, []).append(seconds)
            begun = {}
        case ["done"]:
            whole = True
rig.kill()
if begun or not whole:
    sys.exit(f"microvm: {' '.join(next(iter(begun), ['the rig']))} did not get there: see console.log")
print("\nseconds to init\nkernel   ours   microvm  ratio      lean  ratio")
sooner = True
for kernel, rows in times.items():
    text = f"{kernel:6} {statistics.median(rows['ours']):6.2f}"
    for who in ("microvm", "lean"):
        ratio = statistics.median(theirs / ours for theirs, ours in zip(rows[who], rows["ours"], strict=True))
        text += f" {statistics.median(rows[who]):9.2f} {ratio:6.2f}"
        sooner &= ratio > 1
    print(text)
if not sooner:
    sys.exit("microvm: it reaches init sooner than ours")
RIG
failed=0
# On one of the processors we may use: with more it loses interrupts now and then (`spawn_on` in
# tests/tests/nested/rig.rs).
cpu=$(taskset -cp $$ | sed 's/.*: *//; s/[,-].*//')
python3 "$place/rig.py" taskset -c "$cpu" qemu-system-x86_64 -accel tcg,thread=single -cpu EPYC,+svm -smp 1 -m 3072 -nodefaults \
	-display none -no-reboot -kernel "$host"/boot/vmlinuz-* -initrd "$place/initramfs.cpio" \
	-append "console=ttyS0 loglevel=4 mitigations=off rdinit=/init oops=panic panic=-1" \
	-serial "file:$place/console.log" -serial stdio || failed=1

for name in 6.1 6.12; do
	ZAPSCOPE_KERNEL=$rig/guests/$name cargo bench -q -p linux-boot --bench unpack --locked -- --noplot >"$place/unpack-$name" 2>&1 ||
		{ cat "$place/unpack-$name"; exit 1; }
	python3 - "$target/criterion/unpack/$name/new/sample.json" "$name" "$most_ms" <<'UNPACK' || failed=1
import json, sys
sample = json.load(open(sys.argv[1]))
ms = min(time / count for time, count in zip(sample["times"], sample["iters"])) / 1e6
print(f"unpacking {sys.argv[2]} on this machine: {ms:.0f} ms (must be under {sys.argv[3]})")
sys.exit(ms >= float(sys.argv[3]))
UNPACK
done
exit $failed
