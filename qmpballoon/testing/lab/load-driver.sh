#!/bin/sh
# load-driver: let the balloon driver, a module or built in, take its device.
driver=/sys/bus/virtio/drivers/virtio_balloon
[ -d "$driver" ] || modprobe virtio_balloon || exit
for device in /sys/bus/virtio/devices/*; do
    [ "$(cat "$device/device" 2>/dev/null)" = 0x0005 ] || continue
    [ -e "$device/driver" ] || echo "${device##*/}" >"$driver/bind"
done
