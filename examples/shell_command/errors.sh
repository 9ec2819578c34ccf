#!/bin/bash
# errors.sh LOG.gz TABLE: which pages of a web server failed, and how often.
# With pipefail a log that gzip cannot read fails the script; else the status of `sort` would count.
set -euo pipefail

gzip -dc "$1" | awk '$9 >= 500 {count[$7]++} END {for (page in count) print count[page] "\t" page}' |
    sort -k1,1nr -k2 > "$2"
