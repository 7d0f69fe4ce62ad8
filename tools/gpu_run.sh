#!/usr/bin/env bash
# bash tools/gpu_run.sh [SECONDS]: trains the sound separator on a borrowed GPU without a network.
#
# From the repository's root, which holds .gpu/site.tar.xz (Python packages that the machine lacks,
# a folder `site`) and .gpu/sound.tar (folders `speech/NAME`, of which `valid` is for measuring
# only, and `noise/NAME`). PyTorch, torchaudio, timm, accelerate, torchmetrics and scipy are there.
# Results, at most 8 files of 16 MB, go to $OUT: tables, metrics, logs, weights in half precision.
# A second call on the same machine finds what the first has unpacked, decoded and measured, so that
# a short one may try the way before the long one.
#
#   DEVICE=cuda   cpu: a rehearsal       SIZE=base    recipe of `cavmae finetune separator`
#   BATCH=64      of a training step     MORE=        further options of the training
set -u
seconds=${1:-560}
export PYTHONUNBUFFERED=1 OUT=${OUT:-/tmp/gpu-run-out}
DEVICE=${DEVICE:-cuda} SIZE=${SIZE:-base} BATCH=${BATCH:-64} MORE=${MORE:-} G=${G:-/tmp/gpu-run}
precision=bf16 steps=12
[ "$DEVICE" = cuda ] || { precision=fp32 steps=2; }
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
export PYTHONPATH=$PWD/.typing:$G/site
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
        --steps "$steps" --rounds 1 --recipes "[$SIZE]" --compile "$1" --out "$G/rates-$1.json"
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
plan() { # prints the faster way that was measured, and the steps that fit into so many seconds
    python3 - "$G" "$1" "$BATCH" "$2" <<'P'
import json, sys
from pathlib import Path
folder, budget, batch, ways = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rates = {"off": 100.0}
for path in folder.glob("rates-*.json"):
    for row in json.loads(path.read_text())["rows"]:
        way = {"eager": "off", "compiled": "inductor"}.get(row["name"].split()[-1])
        if way and row["seconds"]:
            rates[way] = 1 / row["seconds"]
way = max((way for way in rates if way in ways.split()), key=rates.__getitem__)
start = 50 if way != "off" else 15  # imports, recordings, compilation
print(way, max(4, int(0.95 * (budget - start) * rates[way] / batch)))
P
}
train() { # with so many seconds, in one of these ways
    local way count
    read -r way count < <(plan "$1" "$2")
    echo "training: $count steps of $BATCH in $1 s, torch.compile $way"
    # shellcheck disable=SC2086
    timeout -s TERM -k 20 "$(($1 + 10))" python3 -m cavmae.finetune.separation.train \
        --config "$SIZE" --out "$G/run" "${data[@]}" \
        --data.batch-size "$BATCH" --loop.steps "$count" --loop.precision "$precision" \
        --loop.compile "$way" --loop.device "$DEVICE" --loop.tracker none --loop.log-every 20 \
        --loop.evaluate-every $((count / 8 + 1)) --loop.save-every 0 --loop.save-minutes 3 $MORE \
        >> "$OUT/train.log" 2>&1
}
for ways in "inductor off" off; do
    budget=$(($(left "$seconds") - ${RESERVE:-40}))
    [ "$budget" -gt 20 ] || budget=20
    train "$budget" "$ways"
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
weights = load_file(last / "model.safetensors")
half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
save_file(half, out / "model.safetensors", {"format": "pt"})
shutil.copy(last / "config.json", out / "model.json")
P
ls -la "$OUT"
