/*
 * hold - keeps two virtual machines for as long as the emulated machine runs.
 *
 * The first virtual machine that is made and the last that goes away make kvm.ko patch the kernel's code (static keys:
 * preempt_notifier_key, kvm_has_noapic_vcpu, apic_sw_disabled). QEMU before 8.1 may translate a patched page while another
 * processor writes it, and then executes the breakpoint of the patching for ever. While these are held nothing is patched:
 * a vCPU whose APIC was never enabled, and one that has no APIC.
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0)
		err(1, "/dev/kvm");
	for (int irqchip = 0; irqchip < 2; irqchip++) {
		int vm = ioctl(kvm, KVM_CREATE_VM, 0);

		if (vm < 0 || (irqchip && ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0) || ioctl(vm, KVM_CREATE_VCPU, 0) < 0)
			err(1, "virtual machine");
	}
	for (;;)
		pause();
}
