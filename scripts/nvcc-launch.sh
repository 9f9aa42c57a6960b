#!/bin/sh
# Launches nvcc for CMake and keeps what ptxas says of registers and spills beside the object, in OBJECT.ptxas.
object='' previous=''
for word; do
  [ "$previous" = -o ] && object=$word
  previous=$word
done
"$@" >"$object.ptxas" 2>&1
status=$?
grep -Ev '^ptxas info|bytes stack frame|^$' "$object.ptxas" >&2
exit $status
