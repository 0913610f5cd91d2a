/*
 * The least a program can do to run a guest: a VM, one memslot, one vCPU, ten instructions in ring 3, the end.
 *
 * What zapscope's start is measured against. No error is explained and nothing is given back: the kernel does
 * that when the process ends, and its time counts too.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { RAM = 2 << 20, PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, TSS = 0x6000, CODE = 0x10000, PORT = 0xf4 };

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	char *ram = mmap(0, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region slot = { .memory_size = RAM, .userspace_addr = (uintptr_t)ram };
	if (kvm < 0 || vm < 0 || ram == MAP_FAILED || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot))
		return 1;

	/* One 2 MiB page, identity mapped, open to ring 3. */
	*(uint64_t *)(ram + PML4) = PDPT | 7;
	*(uint64_t *)(ram + PDPT) = PD | 7;
	*(uint64_t *)(ram + PD) = 0x87;
	/* A task state segment whose I/O bitmap opens every port up to 0xff. */
	*(uint16_t *)(ram + TSS + 102) = 104;

	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	struct kvm_sregs sregs;
	if (vcpu < 0 || run == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return 2;
	struct kvm_segment code = { .limit = ~0u, .selector = 0x33, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 0x2b, .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1 };
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.tr = (struct kvm_segment){ .base = TSS, .limit = 0x100, .selector = 0x40, .type = 11, .present = 1 };
	sregs.cr0 = 0x80000033;
	sregs.cr3 = PML4;
	sregs.cr4 = 1 << 5;
	sregs.efer = 0xd00;
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
		return 3;

	/* Nine times `inc eax`, then out PORT, al. */
	for (int i = 0; i < 9; i++)
		memcpy(ram + CODE + 2 * i, "\xff\xc0", 2);
	memcpy(ram + CODE + 18, "\xe6", 1);
	ram[CODE + 19] = (char)PORT;
	if (ioctl(vcpu, KVM_RUN, 0))
		return 4;
	return run->exit_reason == KVM_EXIT_IO && run->io.port == PORT ? 0 : 5;
}
