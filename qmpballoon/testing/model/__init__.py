"""The parts of the simulated machine, none of which does any I/O.

::

    qobject          QEMU's values as text, byte for byte
    reader           QEMU's JSON reader, and its limits
    lexer, parser    its words and its grammar, and what it complains of
    visit            arguments checked as QEMU checks them
    hashtable        which of several unexpected arguments it names
    session          one client of the monitor: negotiation, queue, replies, events
    throttle         events that may be sent once a second only
    guest            a Linux guest's memory and its balloon driver
    guest_config     what kind of guest that is
    memory           its books: free, cache, used, swapped, ballooned
    workload         what its processes do over time
    statistics       what it says of itself, and when
    balloon          the device between guest and QEMU
    virtio           what QEMU shows of the virtio device behind that
    objects, qom     the object tree, as far as ballooning looks at it
    dimms            memory that is plugged in
    commands         what each command does; with
    object_commands  those about objects, and
    plug_commands    those that plug
    hmp, expression  the human monitor's few commands, and their sums

:mod:`qmpballoon.testing.model.machine` puts them together. All times in here are
integer nanoseconds, all sizes integer bytes.
"""
