"""What the tests on a real QEMU share.

They need a QEMU and a Linux kernel to boot in it. Where neither is installed nor
can be fetched, they are skipped, with the reason; with ``--require-qemu``, or where
the environment variable ``CI`` is set, that is a failure.
"""
