"""The parts of the simulated machine, none of which does any I/O.

::

    qobject   QEMU's values as text, byte for byte
    qjson     QEMU's JSON reader: its grammar, its limits, its complaints
    visit     arguments checked as QEMU checks them
    session   one client of the monitor: negotiation, queue, replies, events
    throttle  events that may be sent once a second only
    guest     a Linux guest's memory and its balloon driver
    balloon   the device between the two
    qom       the object tree, as far as ballooning looks at it
    commands  what each command does
    hmp       the human monitor's few commands

:mod:`qmpballoon.testing.machine` puts them together. All times in here are
integer nanoseconds, all sizes integer bytes.
"""
