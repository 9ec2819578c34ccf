#!/bin/bash
# make.sh NAME VENV: NAME.tar.gz with spools of each kind, made by the `gpuspool` in VENV/bin, of a
# version that wrote format 1. Needs root: it has a host name, a /srv and mount points of its own, so
# that the records name no machine that there is.
set -e
name=$1 venv=$2 here=$(cd "$(dirname "$0")" && pwd)
if [ "$3" != inside ]; then exec unshare -m -u "$0" "$1" "$2" inside; fi
hostname old-host
mount -t tmpfs tmpfs /srv
mkdir -p /srv/project/texts /srv/venv /srv/bin
# A run records the mount points of its host, its command line and its interpreter.
for point in $(awk '$5 ~ "^/mnt/" { print $5 }' /proc/self/mountinfo); do umount -l "$point"; done
mount --bind "$venv" /srv/venv
program=/srv/bin/gpuspool
sed '1s|.*|#!/srv/venv/bin/python|' /srv/venv/bin/gpuspool > $program
chmod +x $program
cd /srv/project
export CUDA_VISIBLE_DEVICES= PYTHONDONTWRITEBYTECODE=1 NO_COLOR=1 HOME=/root
options="--devices cpu --ranks 2"
old() { "$program" "$@" || echo "exit code $?"; }
finished_in() { cat "$1"/journal/* 2>/dev/null | grep -ac '"\(complete\|failed\|held\)"'; }
until_finished() {
    for _ in $(seq 300); do
        if [ "$(finished_in "$1")" -ge "$2" ]; then sleep 1.5; return; fi
        sleep 0.1
    done
    echo "$1: $2 tasks are not done after 30 s"
    exit 1
}

for i in $(seq 10 19); do seq "$i" > "texts/$i.txt"; done
printf '%s\n' a b c 'bad one' hold d e f hold g > held
printf '%s\n' a 'bad one' b 'bad two' c d e f hold hold > stopped
printf '%s\n' a 'bad one' b c d 'bad two' e f > failing
printf '%s\n' a 'bad one' b c d 'bad two' e f later > more
cat > count.py <<'END'
"""Counts what a text or a line has. "bad" raises, and "hold" waits for the variable GO."""
import os
import time


class Count:
    def __init__(self, ctx):
        self.unit = ctx.args.get("unit", "letters")

    def __call__(self, task, ctx):
        line = task.payload if isinstance(task.payload, str) else ""
        while line == "hold" and "GO" not in os.environ:
            time.sleep(0.05)
        if line.startswith("bad"):
            raise ValueError(f"{line} is no text")
        text = line or task.path.read_text()
        ctx.output(task, ".count").write_text(f"{len(text)}\n")
        print("counted", task.key)
        return {self.unit: len(text)}
END

old run count.py:Count 'texts/*.txt' --spool finished $options

# The parent and both workers are killed while each worker has a task in hand.
"$program" run count.py:Count --lines held --spool killed $options --lease 2s &
parent=$!
until_finished killed 4
kill -9 $parent
for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    if [ "$(readlink "$process/cwd")" = /srv/project ] && [ "$pid" != $$ ] &&
        grep -qa worker "$process/cmdline"; then kill -9 "$pid"; fi
done
wait $parent || true

# It is drained when two tasks have failed, and two are in hand.
"$program" run count.py:Count --lines stopped --spool drained $options --grace 1s &
parent=$!
until_finished drained 8
old drain drained
wait $parent || echo "exit code $?"

# Two tasks fail, and again in a second round; then one is added, and one is done again.
old run count.py:Count --lines failing --spool failed $options
old retry failed
if "$program" run --help | grep -q -- --add; then
    old run count.py:Count --lines more --add --spool failed $options
    old redo failed t0
fi

script='case $1 in *15*) echo broken >&2; exit 3;; esac; wc -l < "$1" > "$2"'
old run --spool command $options 'texts/*.txt' -- sh -c "$script" sh '{input}' '{output}.n'

# What that version itself says of them.
for spool in finished killed drained failed command; do
    "$program" results $spool > said-$spool.jsonl
    old verify $spool
done
rm -rf __pycache__
tar --sort=name --owner=0 --group=0 --numeric-owner -cf - -C /srv project | gzip -n9 > "$here/$name.tar.gz"
