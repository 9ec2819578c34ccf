#!/bin/sh
# Some tests need more than Python: strace, and a C compiler for the shim that makes system calls
# fail. Where that is possible they are installed; elsewhere those tests are skipped and say why.
set -u
missing=""
command -v strace >/dev/null || missing="$missing strace"
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
pkg-config --exists fuse3 2>/dev/null || missing="$missing pkg-config libfuse3-dev"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 - several words
    apt-get update -qq && apt-get install -y -qq $missing >/dev/null && exit 0
fi
echo "not installed:$missing; the tests that need them skip"
