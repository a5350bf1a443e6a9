"""Testing, for us and for our users: a fake QEMU, and a lab with a real one."""
