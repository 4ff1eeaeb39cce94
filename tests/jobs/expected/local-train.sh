#!/bin/bash
# msanet-7f3c9a1b: train, results in /shared/my runs/msanet-7f3c9a1b
# Runs on this machine, elements one after the other. Exit status: 0 done, 75 saved (submit again to
# resume), 2 or 78 configuration error, anything else a crash (retried up to 3 times).
set -u
logs='/shared/my runs/msanet-7f3c9a1b/logs'
note() { printf '%s\n' "$*" > "$logs/state-$$.tmp" && mv "$logs/state-$$.tmp" "$logs/state-$$"; }
note RUNNING

set -a  # NAME=value lines of a file that only its owner reads
# shellcheck disable=SC1090,SC1091
. /home/ann/secrets.env || exit 78
set +a
export MLFLOW_TRACKING_URI=https://mlflow.example.org

stopped='' child=''
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2> /dev/null' TERM
# Packages come from the snapshot, not from the working folder, which is the submitter's: relative
# paths keep their meaning.
export PYTHONSAFEPATH=1 PYTHONPATH='/shared/my runs/msanet-7f3c9a1b/code/0123456789ab'"${PYTHONPATH:+:$PYTHONPATH}"
cd /home/ann/lacuna || exit 78

# If only this script is killed, its commands are killed too, where the kernel supports it.
bound=''
setpriv --pdeathsig KILL true 2> /dev/null && bound='setpriv --pdeathsig KILL'

attempt() {
  # shellcheck disable=SC2086  # a command with arguments, or nothing
  $bound "$@" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child"  # the signal came before the child existed
  wait "$child"; code=$?
  while kill -0 "$child" 2> /dev/null; do wait "$child"; code=$?; done
  if [ "$code" -gt 128 ]; then
    wait "$child"; last=$?
    [ "$last" -eq 127 ] || code=$last
  fi
  child=''
}

run() {
  failures=0
  while :; do
    note RUNNING
    attempt "$@"
    if [ "$code" -eq 0 ]; then return; fi
    if [ -n "$stopped" ]; then note CANCELLED "exit $code"; exit "$code"; fi
    case $code in
      75) note INTERRUPTED "stopped on request, everything saved"; exit 75 ;;
      2|78) note FAILED "configuration error, not retried"; exit 78 ;;
      126|127) note FAILED "exit $code, not retried: missing or not executable: $1"; exit 78 ;;
    esac
    failures=$((failures + 1))
    if [ "$failures" -gt 3 ]; then
      note FAILED "crashed $failures times, last exit $code"
      exit "$code"
    fi
  done
}

run /env/bin/python -m pipeline train 'run=/shared/my runs/msanet-7f3c9a1b'
note SUCCEEDED
