#!/bin/sh
# What some tests need beside Python: strace, and a C compiler for the fault shim. Installed where that is possible;
# elsewhere those tests skip and say why.
set -u
missing=""
command -v strace >/dev/null || missing="$missing strace"
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # shellcheck disable=SC2086 - several words
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null && exit 0
fi
echo "not installed:$missing; the tests that need them skip"
