#!/bin/sh
# Compiles .cu files with nvcc and prints each kernel's registers; fails on spills, local memory and errors.
#   scripts/nvcc-check.sh cuda/kernels/layer_norm.cu ...      DEEM_CUDA_ARCHS="80 86 89 90 100 120" for more than sm_80 and sm_90
cd "$(dirname "$0")/.." || exit 1
archs=${DEEM_CUDA_ARCHS:-80 90}
log=$(mktemp) && trap 'rm -f "$log"' EXIT
failed=0
for file in "$@"; do
  for arch in $archs; do
    echo "$file sm_$arch"
    # Dispatching lambdas make nvcc report parameters it thinks unused (177).
    if ! nvcc -std=c++20 -Icsrc -I. -arch="sm_$arch" -Xcompiler -Wall,-Wextra,-Wno-cast-function-type -diag-suppress 177 -Xptxas -v -c "$file" \
      -o /dev/null >"$log" 2>&1; then
      cat "$log"
      failed=1
      continue
    fi
    grep -E 'error|warning' "$log" | grep -v 'ptxas info' && failed=1
    if command -v cu++filt >/dev/null || [ -x "$(dirname "$(readlink -f "$(command -v nvcc)")")/cu++filt" ]; then
      filter=$(command -v cu++filt || echo "$(dirname "$(readlink -f "$(command -v nvcc)")")/cu++filt")
    else
      filter=c++filt
    fi
    "$filter" <"$log" | awk '
      /Compiling entry function/ { name = $0; sub(/.*entry function .?/, "", name); sub(/. for .sm_.*/, "", name)
                                   sub(/^void /, "", name); gsub(/deem::cuda::|\(anonymous namespace\)::/, "", name); sub(/\(.*/, "", name) }
      /bytes stack frame/ { bad = 0; for (i = 1; i < NF; i++) if ($i + 0 > 0 && $(i + 1) == "bytes") bad = 1; stack = $0 }
      /Used [0-9]+ registers/ { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^registers/) regs = $i; if ($(i + 2) == "smem" || $(i + 2) ~ /^smem/) smem = $i }
                                printf "  %4d registers %6d smem  %s\n", regs, smem, name
                                if (bad) { print "       " stack; spilled = 1 }; smem = 0 }
      END { exit spilled }' || failed=1
  done
done
exit $failed
