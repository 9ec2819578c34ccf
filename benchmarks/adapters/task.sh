#!/bin/bash
# The tasks for systems that run commands: task.sh "INDEX SECONDS" sleeps and leaves a trace.
read -r index seconds <<<"$1"
start=$EPOCHREALTIME
sleep "$seconds"
echo "$index $start $EPOCHREALTIME $$" >>"$BENCH_FOLDER/trace/shell"
