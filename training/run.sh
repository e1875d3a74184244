#!/usr/bin/env bash
# Trains base, small and a distilled draft on one CUDA device. See README.md. Minutes of training per model:
#   BASE_MIN (9) SMALL_MIN (4) DRAFT_MIN (3); BASE=base|base60.
# run.sh start   unpack, start the training in the background, watch it for WATCH seconds (540)
# run.sh wait    watch it again (to its end, or WATCH seconds)
# run.sh collect N   copy the N-th group (0, 1, ..) of four 15 MiB parts of the results to $OUT
set -eu
W=${TMPDIR:-/tmp}/pelton-train; H=$(cd "$(dirname "$0")" && pwd); WATCH=${WATCH:-540}
export PYTHONUNBUFFERED=1
watch() {
  local end=$((SECONDS + WATCH))
  while [ $SECONDS -lt $end ] && [ ! -e $W/done ]; do sleep 3; done
  tail -n 6 $W/*.log; [ -e $W/done ] && echo "DONE: $(cat $W/done)" || echo "STILL RUNNING: call 'bash $W/run.sh wait' within 30 s"
}
case "${1:-start}" in
start)
  rm -rf $W; mkdir -p $W/data $W/out
  cp "$H"/*.py "$H"/*.sh "$H"/*.jsonl "$H"/test.txt $W/; cp "$H"/tokenizer*.json $W/data/
  python3 - "$H" $W/data <<'P'
import glob, lzma, os, sys
from concurrent.futures import ProcessPoolExecutor
def f(p):
    open(os.path.join(sys.argv[2], os.path.basename(p)[:-3]), "wb").write(lzma.open(p).read())
if __name__ == "__main__":
    with ProcessPoolExecutor(8) as e: list(e.map(f, glob.glob(sys.argv[1] + "/*.bin.xz")))
P
  ls -la $W/data; nvidia-smi --query-gpu=name,memory.total --format=csv || true
  setsid nohup bash $W/run.sh train > $W/train.log 2>&1 < /dev/null &
  watch ;;
train)
  cd $W
  B=${BASE:-base}
  python3 train.py --config $B --data data --out out/base --minutes ${BASE_MIN:-9} > base.log 2>&1 || echo "base failed" 
  python3 train.py --config draft --data data --out out/draft --minutes ${DRAFT_MIN:-3} --teacher out/base > draft.log 2>&1 || \
  python3 train.py --config draft --data data --out out/draft --minutes ${DRAFT_MIN:-3} >> draft.log 2>&1 || echo "draft failed"
  python3 train.py --config small --data data --out out/small --minutes ${SMALL_MIN:-4} > small.log 2>&1 || echo "small failed"
  for m in base small draft; do timeout 120 python3 sample.py out/$m --n 20 --eval eval100.jsonl --ppl test.txt > out/$m/samples.txt 2>&1 || true; done
  rm -f out/*/ckpt.pt; cp *.log out/; tar -C $W -cf - out | gzip -3 > out.tgz; split -b 15M -d -a 2 out.tgz part.
  sha256sum out.tgz part.* > parts.sha256; ls part.* | wc -l > done ;;
wait) watch ;;
collect)
  N=${2:-0}; cd $W; ls part.* | tail -n +$((N * 4 + 1)) | head -4 | while read p; do cp $p $OUT/; done; cp parts.sha256 $OUT/; ls -la $OUT; echo "parts in all: $(cat done)" ;;
esac
