#!/usr/bin/env bash
# bash tools/gpu_run.sh [SECONDS]: trains the sound separator on a borrowed GPU without a network.
#
# From the repository's root, which holds .gpu/site.tar.xz (Python packages that the machine lacks,
# a folder `site`) and .gpu/sound.tar (folders `speech/NAME`, of which `valid` is for measuring
# only, and `noise/NAME`). PyTorch, torchaudio, timm, accelerate, torchmetrics and scipy are there.
# Results, at most 8 files of 16 MB, go to $OUT: tables, metrics, logs, and the averaged weights in
# half precision (`cat half.safetensors.* > model.safetensors`).
# A second call on the same machine finds what the first has unpacked, decoded and measured, so that
# a short one may try the way before the long one.
#
#   DEVICE=cuda   cpu: a rehearsal       SIZE=base    recipe of `cavmae finetune separator`
#   BATCH=32      of a training step     MORE=        further options of the training
#   TOGETHER=32   batches whose mixtures are made in one go    STEPS=   of training; empty: by the rate
#   WAY=          of a step, `COMPILE GRAPH` such as `inductor true`; empty: the fastest of all
set -u
seconds=${1:-560}
export PYTHONUNBUFFERED=1 OUT=${OUT:-/tmp/gpu-run-out}
DEVICE=${DEVICE:-cuda} SIZE=${SIZE:-base} BATCH=${BATCH:-32} MORE=${MORE:-} WAY=${WAY:-} G=${G:-/tmp/gpu-run}
precision=bf16 steps=32 together=${TOGETHER:-32}
[ "$DEVICE" = cuda ] || { precision=fp32 steps=2 together=2; }
rm -rf "$G/run"
mkdir -p "$G" "$OUT"
if [ ! -f "$G/unpacked" ]; then
    python3 - "$G" <<'P' || exit 1
import sys, tarfile
from pathlib import Path
for name in ("site.tar.xz", "sound.tar"):
    if Path(".gpu", name).exists():
        with tarfile.open(Path(".gpu", name)) as archive:
            archive.extractall(sys.argv[1], filter="data")
P
    touch "$G/unpacked"
fi
export PYTHONPATH=$PWD/.typing
[ "$DEVICE" = cpu ] || PYTHONPATH=$PYTHONPATH:$G/site
listed() { printf '['; printf '%s\n' "$@" | paste -sd, | tr -d '\n'; printf ']'; }
left() { local n=$(($1 - SECONDS)); echo $((n > 5 ? n : 5)); }
valid=$G/speech/valid cache=$G/cache
mapfile -t folders < <(find "$G/speech" -mindepth 1 -maxdepth 1 -type d ! -name '*valid' | sort)
train=$(listed "${folders[@]}")
noise=$(listed "$G"/noise/*/)
data=(--data.train "$train" --data.noise "$noise" --data.held-out "[$valid]" --data.cache "$cache")
{ nvidia-smi; nproc; python3 --version; python3 -c 'import torch; print(torch.__version__)'; } \
    > "$OUT/machine.txt" 2>&1

# 1. Recordings are decoded while the GPU is tried.
# Not from standard input: worker processes could not import such a module.
python3 -c '
import sys
from pathlib import Path
from cavmae.datasets.mixtures.speech_bank import load_or_build_bank
for folders in sys.argv[2:]:
    names = [Path(name) for name in folders.strip("[]").split(",")]
    bank = load_or_build_bank(names, Path(sys.argv[1]))
    print(f"{bank.seconds / 60:.1f} min, {len(bank.names)} speakers")
' "$cache" "$train" "$noise" > "$G/bank.log" 2>&1 &
bank=$!

# 2. Equality with the CPU, and rates.
bench() {
    timeout -k 5 "$2" python3 -m cavmae.tools.cli bench sound-steps --speech "[$valid]" \
        --cache "$cache" --device "$DEVICE" --precision "$precision" --batch-size "$BATCH" \
        --made-together "$together" --steps "$steps" --rounds 1 --recipes "[$SIZE]" \
        --compile "$1" --out "$G/rates-$1.json"
}
if [ ! -f "$G/rates.md" ]; then
    bench false "${BENCH_SECONDS:-60}" > "$G/rates.md" 2>&1
    [ "$DEVICE" = cpu ] || bench true "${COMPILE_SECONDS:-130}" >> "$G/rates.md" 2>&1
fi
cp "$G/rates.md" "$OUT/"
cat "$OUT/rates.md"
wait "$bank"
tail -n 3 "$G/bank.log"

# 3. Training for the time that is left, but for the last measures and the way back.
plan() { # prints the way of a step and the steps that fit into so many seconds: COMPILE GRAPH STEPS
    python3 - "$G" "$1" "$BATCH" "$2" <<'P'
import json, sys
from pathlib import Path
folder, budget, batch, way = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
names = {"eager": "off false", "replayed": "off true", "compiled": "inductor false",
         "compiled and replayed": "inductor true"}
rates = {"off false": 100.0}
for path in folder.glob("rates-*.json"):
    for row in json.loads(path.read_text())["rows"]:
        own = names.get(row["name"].partition(", ")[2])
        if own and row["seconds"]:
            rates[own] = 1 / row["seconds"]
way = way or max(rates, key=rates.__getitem__)
start = 50 if "inductor" in way else 20  # imports, recordings, compilation
print(way, max(4, int(0.93 * (budget - start) * rates.get(way, 100.0) / batch)))
P
}
train() { # with so many seconds, in this way; empty: the fastest
    local compile graph count
    read -r compile graph count < <(plan "$1" "$2")
    count=${STEPS:-$count}
    echo "training: $count steps of $BATCH in $1 s, torch.compile $compile, CUDA graph $graph"
    # shellcheck disable=SC2086
    timeout -s TERM -k 20 "$(($1 + 10))" python3 -m cavmae.finetune.separation.train \
        --config "$SIZE" --out "$G/run" "${data[@]}" --data.made-together "$together" \
        --data.batch-size "$BATCH" --loop.steps "$count" --loop.precision "$precision" \
        --loop.compile "$compile" --loop.cuda-graph "$graph" --loop.device "$DEVICE" \
        --loop.tracker none --loop.log-every 100 --loop.evaluate-every $((count / 6 + 1)) \
        --loop.save-every 0 --loop.save-minutes 3 $MORE >> "$OUT/train.log" 2>&1
}
for way in "$WAY" "off true" "off false"; do
    budget=$(($(left "$seconds") - ${RESERVE:-40}))
    [ "$budget" -gt 20 ] || budget=20
    train "$budget" "$way"
    compgen -G "$G/run/checkpoints/*/COMPLETE" > /dev/null && break
    tail -n 5 "$OUT/train.log"
done
tail -n 12 "$OUT/train.log"

# 4. What comes back.
cp "$G/run/metrics.jsonl" "$G/run/config.yaml" "$OUT/"
python3 - "$G/run" "$OUT" <<'P'
import shutil, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
run, out = map(Path, sys.argv[1:])
last = max((p for p in (run / "checkpoints").iterdir() if (p / "COMPLETE").exists()))
averaged = last / "average" / "model.safetensors"
weights = load_file(averaged if averaged.exists() else last / "model.safetensors")
half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
save_file(half, run / "half.safetensors", {"format": "pt"})
shutil.copy(last / "config.json", out / "model.json")
P
split -b 16000000 -d "$G/run/half.safetensors" "$OUT/half.safetensors."
ls -la "$OUT"
