# Process 1 of one node, in its own UTS, pid and mount namespaces: node.sh FOLDER NAME
# The node has a host name, process ids and a machine of its own. The file system is that of the
# tests, as a shared one would be.
set -eu
folder=$1 name=$2
hostname "$name"
mount -t proc proc /proc
mount --bind "$folder/run/$name.boot_id" /proc/sys/kernel/random/boot_id
[ ! -e /etc/machine-id ] || mount --bind "$folder/run/$name.machine-id" /etc/machine-id
slurmd -D -N "$name" &
# Orphans become children of this process, and it reaps them as it waits.
wait "$!"
