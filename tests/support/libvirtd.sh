# A libvirtd of its own in a mount namespace of its own (unshare -m): what it writes,
# and the users and the configuration that it wants, are there and nowhere else.
set -eu
folder=$1

mount --make-rprivate /
for place in /etc/libvirt /run /var/cache /var/lib /var/log; do
    mount -t tmpfs none "$place"
done

cp /etc/passwd /etc/group "$folder"
echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >>"$folder/passwd"
printf '%s:x:64055:\n' libvirt-qemu kvm libvirt >>"$folder/group"
for file in passwd group; do
    mount --bind "$folder/$file" "/etc/$file"
done

cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
END
cat >"$folder/libvirtd.conf" <<END
unix_sock_dir = "$folder"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:stderr"
END
exec libvirtd --config "$folder/libvirtd.conf" --pid-file "$folder/pid"
