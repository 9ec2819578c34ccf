# Process 1 of the namespaces in which a whole cluster runs: cluster.sh FOLDER
# Each line of its input is a command to start. When the input ends, since the cluster is stopped or
# since the tests were killed, this process ends, and the kernel kills everything in its pid
# namespace.
set -eu
mount --bind "$1/hosts" /etc/hosts
while read -r line; do
    eval "exec $line" &
done
