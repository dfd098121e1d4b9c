#!/usr/bin/env bash
# Runs the GPU tests and the GPU benchmark on a machine with one NVIDIA GPU and no network, and writes what came out.
#
#   tools/gpu_suite.sh [--small] [--no-tests] [--no-bench] [--parts DIR] [--wheels DIR] [--site DIR] [--out DIR] \
#       [-- OPTIONS]
#
#   --small        small tables and few steps; always so, and on the CPU, where torch finds no CUDA device
#   --no-tests, --no-bench   leave a part out; without both, what an interrupted run left in DIR is made tables of
#   --parts DIR    holds fbgemm.part.*, FBGEMM's CUDA build as an archive in pieces, to be unpacked into SITE
#   --wheels DIR   holds *.whl of other packages that Python lacks, to be installed into SITE
#   --site DIR     folder of these packages (default: in the temporary folder); nothing is unpacked twice
#   --out DIR      gets gpu_suite.md with a picture, .csv and .json beside it, and the logs (default $OUT, else
#                  gpu_results)
#   OPTIONS        of tools/bench_gpu.py, for instance: -- --dims 16 --methods hashing "pep learning"
#
# FBGEMM_PARTS, WHEELS, SITE, OUT and PYTHON in the environment say the same. Ends with status 1 if a test or a method
# failed; the tables say which, and why.
set -uo pipefail
root=$(dirname "$(dirname "$(realpath "$0")")")
small="" tests=yes bench=yes
parts=${FBGEMM_PARTS:-} wheels=${WHEELS:-} site=${SITE:-${TMPDIR:-/tmp}/recemb_gpu_site} out=${OUT:-gpu_results}
while (($#)); do
    case $1 in
        --small) small=--small ;;
        --no-tests) tests="" ;;
        --no-bench) bench="" ;;
        --parts) parts=$2; shift ;;
        --wheels) wheels=$2; shift ;;
        --site) site=$2; shift ;;
        --out) out=$2; shift ;;
        --) shift; break ;;
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "gpu_suite: there is no option $1; see --help." >&2; exit 2 ;;
    esac
    shift
done
python=${PYTHON:-$root/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
mkdir -p "$out" && out=$(realpath "$out") && site=$(realpath -m "$site")

if [ -n "$parts" ] && [ ! -d "$site/fbgemm_gpu" ]; then
    echo "gpu_suite: unpacking FBGEMM into $site"
    mkdir -p "$site"
    cat "$parts"/fbgemm.part.* | zstd -d --long=31 | tar -x -C "$site" || { echo "gpu_suite: it failed." >&2; exit 2; }
fi
if [ -n "$wheels" ] && [ ! -e "$site/.wheels" ]; then
    echo "gpu_suite: installing wheels into $site"
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
        "$wheels"/*.whl && touch "$site/.wheels" || { echo "gpu_suite: it failed." >&2; exit 2; }
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
# Where recemb is not installed: the package with its configuration inside, as a wheel would have it.
found="from importlib.util import find_spec; raise SystemExit(not (find_spec('recemb') and find_spec('recemb.conf')))"
if ! (cd / && "$python" -c "$found" 2>/dev/null); then
    mkdir -p "$site/recemb"
    ln -sfn "$root"/recemb/[!_]* "$root"/recemb/_*.py "$root/conf" "$site/recemb/"
fi
if ! "$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then
    echo "gpu_suite: torch finds no CUDA device; a small run on the CPU."
    export RECEMB_GPU_SUITE=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    small=--small
fi

cd "$root" || exit 2
status=0
if [ -n "$tests" ]; then
    rm -f "$out/tests.xml"
    several=()
    "$python" -c "import xdist" 2>/dev/null && several=(-n auto --maxprocesses 12)
    # -P: recemb as found above, not the bare folder. Warnings of other versions of torch or FBGEMM are not errors.
    "$python" -P -m pytest tests/gpu "${several[@]}" -W default -p no:cacheprovider --show-capture=no --junitxml="$out/tests.xml" \
        2>&1 | tee "$out/tests.log" || status=1
fi
if [ -n "$bench" ]; then
    rm -f "$out/bench_gpu.json"
    "$python" -P -u tools/bench_gpu.py $small --out "$out/bench_gpu.json" "$@" \
        2> >(tee "$out/bench_gpu.log" >&2) || status=1
fi
"$python" -P tools/gpu_tables.py "$out" || status=1
echo "gpu_suite: written to $out; status $status"
exit $status
