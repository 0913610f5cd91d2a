/*
 * The /init of a guest whose start is timed: says so on the console, waits until it is out, and restarts the machine,
 * which ends the VMM. Freestanding, so that next to nothing of the time is its own.
 */
#include <linux/reboot.h>
#include <sys/syscall.h>

enum { CONSOLE = 1, TCSBRK = 0x5409 };

static long call(long number, long a, long b, long c)
{
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

void _start(void)
{
	static const char text[] = "HELLO\n";
	call(SYS_write, CONSOLE, (long)text, sizeof(text) - 1);
	/* tcdrain() */
	call(SYS_ioctl, CONSOLE, TCSBRK, 1);
	call(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART);
	for (;;)
		;
}
