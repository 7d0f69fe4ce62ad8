#!/usr/bin/env bash
# Speed and learning of fine-tuning, as docs/results.md has them: `small` on a GPU in under half an hour, else `tiny`.
# Usage: tools/measure_finetuning.sh TRAIN UNSEEN ENCODER OUT [MINUTES]
#   TRAIN, UNSEEN: shards (`--profile speakers`) of different people; ENCODER: a checkpoint of `cavmae pretrain`
#   (`tiny-aligned` or larger); OUT: folder for lists, runs and tables; MINUTES: of training.
set -euo pipefail
train=$1 unseen=$2 encoder=$3 out=$4 minutes=${5:-18}
mkdir -p "$out"
gpu=$(python -c 'import torch; print(int(torch.cuda.is_available()))')
if [ "$gpu" = 1 ]; then
    size=small how=(--data.batch 32 --data.workers 14 --loop.precision bf16 --loop.steps 20000)
    bench="--size small --batch 32 --steps 10 --workers 14"
else
    size=tiny how=(--data.batch 8 --data.workers 1 --loop.steps "$((minutes * 18))")
    bench="--size tiny --batch 8 --steps 2 --rounds 1 --workers 1"
fi
cavmae bench finetune --data_set "$train" --encoder "$encoder" $bench --out "$out/speed.json" | tee "$out/speed.md"
pairs=$out/pairs.jsonl people=$out/people.jsonl
[ -f "$pairs" ] || cavmae evaluate "$unseen" --list "$pairs" --make 100 --compose.people '[0,1,0]' \
    --compose.silent 0 --compose.unrelated 0 --compose.off_screen 0 --compose.noise 0
[ -f "$people" ] || cavmae evaluate "$unseen" --list "$people" --make 100 --seed 1
# SIGTERM after the time allowed: the run saves and ends well.
timeout --preserve-status -s TERM $((minutes * 60)) cavmae finetune speakers --config $size --out "$out/run" \
    --resume auto --data.train "$train" --model.encoder "$encoder" "${how[@]}"
model=$(ls -d "$out"/run/checkpoints/[0-9]* | tail -n 1)
cavmae evaluate "$unseen" --model "$model" --list "$pairs" --out "$out/pairs"
cavmae evaluate "$unseen" --model "$model" --list "$people" --out "$out/people"
cavmae evaluate "$unseen" --model "$model" --list "$pairs" --cue box --references false --out "$out/cued"
cat "$out/speed.md"
