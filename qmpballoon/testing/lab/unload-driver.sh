#!/bin/sh
# unload-driver: take the balloon's driver away; what it held goes back to the guest.
if grep -q '^virtio_balloon ' /proc/modules; then
    rmmod virtio_balloon
    exit
fi
driver=/sys/bus/virtio/drivers/virtio_balloon
for device in "$driver"/virtio*; do
    [ ! -e "$device" ] || echo "${device##*/}" >"$driver/unbind"
done
