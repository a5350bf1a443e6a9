"""The simulated machine: QEMU, its monitor, its balloon device and a Linux guest.

Nothing in here does I/O. Times are integer nanoseconds, sizes integer bytes. From the
top down:

::

    machine          time and clients; the whole of it
    commands         the monitor's commands about run state, balloon and VM; with
    plug_commands    those that plug memory and devices,
    chardev_commands those about descriptors, character devices and monitors,
    object_commands  those about objects, and
    hmp              the human monitor, and its arithmetic
    dimms            memory that is plugged in
    vm               the state that commands work on
    objects, qom     QEMU's objects; the tree that they are in
    chardevs         descriptors, character devices and the monitors on them
    session          a client of the monitor: negotiation, queue, replies, events
    guest            a Linux guest: its balloon driver and its processes
    files            what its processes read, and its page cache holds of that
    statistics       what the guest tells of itself
    memory           the guest's memory: free, cache, used, swapped, ballooned
    balloon          the device between guest and QEMU
    arguments        a command's arguments, checked as QEMU checks them
    profiles         what each version of QEMU says
    reader           requests read from bytes, within QEMU's limits; with
    lexer, parser    QEMU's JSON tokens and grammar
    qobject          QEMU's values written as JSON
    config           what the VM, its guest and its workload are like
"""
