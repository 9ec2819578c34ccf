#!/bin/sh
# Some tests need more than Python: strace; a C compiler for the shim that makes system calls fail;
# Slurm, of which they start one of their own; FUSE; tmux; Chromium. Where that is possible they are installed;
# elsewhere those tests are skipped and say why.
set -u
PATH="$PATH:/usr/sbin:/sbin"

# The packages of those programs that are not there.
missing() {
    while read -r program packages; do
        command -v "$program" >/dev/null || echo "$packages"
    done <<END
strace strace
cc gcc libc6-dev
slurmctld slurmctld
slurmd slurmd
srun slurm-client
munged munge
fusermount3 fuse3
pkg-config pkg-config
tmux tmux
END
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    # Elsewhere than in Debian it has other names, see tests/chromium.py.
    for program in chromium chromium-browser google-chrome chrome; do
        command -v "$program" >/dev/null && return
    done
    # What it writes pages in: without any font it draws boxes.
    echo chromium fonts-dejavu-core
}

install() {
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

wanted=$(missing)
[ -z "$wanted" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # Debian starts a service as soon as it is installed. Tests start what they need themselves.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    apt-get update -qq
    # A package that is not to be had here must not keep the others away.
    # shellcheck disable=SC2086 - several words
    install $wanted || for package in $wanted; do install "$package"; done
fi
wanted=$(missing)
# shellcheck disable=SC2086 - several lines become one
[ -z "$wanted" ] || echo "not installed:" $wanted"; the tests that need them skip"
