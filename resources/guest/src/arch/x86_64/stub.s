# Ring 0: from the PVH entry to ring 3, and from an exception to the doorbell. All that ring 0 ever does.
#
# On a host without hardware virtualisation these instructions are emulated, a few hundred nanoseconds each,
# so the page tables are laid down by the assembler and nothing here loops.
#
#   pvh_entry (32-bit, paging off) -> long_entry (64-bit, ring 0) -> iretq -> guest_main (ring 3)
#   exception in ring 3 -> vector_N -> report -> doorbell (the VMM does not run this vCPU again)
#
# Registers at pvh_entry: EBX start info; EDI CONTROL_MAGIC and ESI the vCPU's index under zapscope.

    .set KERNEL_CS, 0x10
    .set KERNEL_DS, 0x18
    .set USER_DS, 0x2b          # Linux's own user selectors: a host that runs ring 3 natively
    .set USER_CS, 0x33          # may keep its selectors there
    .set TSS_SELECTOR, 0x40
    .set TSS_BYTES, 0x200       # 104, then an I/O bitmap that opens ports 0 to 0x6ff

    .section .note.Xen, "a", @note
    .align 4
    .long 4, 8, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .text.boot, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    cld
    movl %cr4, %eax
    orl $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl %cr0, %eax
    andl $0xfffffffb, %eax      # not EM
    orl $0x80000023, %eax       # PG, NE, MP, PE
    movl %eax, %cr0
    lgdtl gdt_pointer
    ljmpl $KERNEL_CS, $long_entry

    .code64
long_entry:
    movl $KERNEL_DS, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    # ESI is this vCPU's index only if the magic says so. EBP: 1 with control areas, 0 without.
    xorl %ebp, %ebp
    cmpl ${magic}, %edi
    jne 1f
    cmpl ${max_vcpus}, %esi
    jb 2f
1:  xorl %esi, %esi
    jmp 3f
2:  incl %ebp
3:
    # The fault stack: the end of the control block, or of this vCPU's boot stack.
    movl %esi, %eax
    shll ${stack_shift}, %eax
    leal stacks+{stack_bytes}(%rax), %r8d
    movl %r8d, %r9d
    testl %ebp, %ebp
    jz 4f
    movl %esi, %r9d
    imull ${area_size}, %r9d
    addl ${control_gpa} + {fault_stack_top}, %r9d
4:
    # This vCPU's TSS, and its descriptor.
    movl %esi, %eax
    imull $TSS_BYTES, %eax
    leal tasks(%rax), %edi
    movl %r9d, 4(%rdi)          # RSP0; the upper half is 0, as is all else
    movw $104, 102(%rdi)        # where the I/O bitmap begins
    movb $0xff, TSS_BYTES-1(%rdi)
    movl %esi, %ecx
    shll $4, %ecx
    leal gdt+TSS_SELECTOR(%rcx), %edx
    movl %edi, %eax
    shll $16, %eax
    orl $(TSS_BYTES-1), %eax
    movl %eax, (%rdx)
    movl %edi, %eax
    shrl $16, %eax
    movb %al, 4(%rdx)
    movw $0x0089, 5(%rdx)       # present, 64-bit TSS, available
    movb %ah, 7(%rdx)
    addl $TSS_SELECTOR, %ecx
    ltr %cx
    lidt idt_pointer
    # To ring 3: guest_main(index, has control areas, start info).
    movl %esi, %edi
    movl %ebp, %esi
    movl %ebx, %edx
    subl $8, %r8d               # as after a call: the stack is 16-byte aligned at the call itself
    subl $256, %r8d             # above: room for the fault frame where both share the stack
    movl $USER_DS, %eax
    movl %r9d, %esp
    pushq %rax
    pushq %r8
    pushq $2                    # RFLAGS: interrupts off
    pushq $USER_CS
    pushq $guest_main
    iretq

# One entry of 16 bytes a vector, at an address the gates below know. The CPU pushes an error code for some
# vectors; for the others a 0 stands in.
    .section .text.vectors, "ax"
    .globl vectors
vectors:
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .balign 16
    .if \n == 8 || (\n >= 10 && \n <= 14) || \n == 17 || \n == 21 || \n == 29 || \n == 30
    pushq $\n
    .else
    pushq $0
    pushq $\n
    .endif
    jmp report
    .endr

    .section .text.boot, "ax"
report:                         # leaves a FaultFrame and rings
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %cr2, %rax
    pushq %rax
    movl ${port}, %edx
    movl ${fault}, %eax
5:  outb %al, %dx
    jmp 5b

    .section .data.boot, "aw"
    .align 4096
# Identity mapping of the first 4 GiB by 2 MiB pages, for ring 3 as well: present, writable, user, accessed,
# dirty. Ring 3 adds what the arena needs beyond that.
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
    .globl pdpt
pdpt:
    .quad directories + 0x27, directories + 0x1027, directories + 0x2027, directories + 0x3027
    .fill 508, 8, 0
directories:
    .set page, 0
    .rept 4 * 512
    .quad page + 0xe7
    .set page, page + 0x200000
    .endr

    .align 16
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    # 0x10 kernel code
    .quad 0x00cf93000000ffff    # 0x18 kernel data
    .quad 0
    .quad 0x00cff3000000ffff    # 0x28 user data
    .quad 0x00affb000000ffff    # 0x30 user code
    .quad 0
    .fill 2 * {max_vcpus}, 8, 0 # 0x40 a TSS for each vCPU
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .align 16
idt:
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .word ({vectors} + 16 * \n) & 0xffff
    .word KERNEL_CS
    .word 0x8e00                # present, ring 0, 64-bit interrupt gate
    .word {vectors} >> 16
    .quad 0
    .endr
idt_end:
idt_pointer:
    .word idt_end - idt - 1
    .quad idt

    .section .bss.boot, "aw", @nobits
    .align 4096
tasks:
    .skip TSS_BYTES * {max_vcpus}
    .align 4096
stacks:
    .skip {stack_bytes} * {max_vcpus}
