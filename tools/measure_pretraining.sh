#!/usr/bin/env bash
# Speed and learning of pretraining, as docs/results.md has them: on a GPU in under half an hour, else
# at a tiny size, to see that it works.
# Usage: tools/measure_pretraining.sh TRAIN SAME UNSEEN OUT [MINUTES]
#   TRAIN, SAME, UNSEEN: shards (`--profile speakers`): to learn from; other clips of the same people;
#   clips of people not in TRAIN. OUT: folder for runs and tables. MINUTES: of training, in all.
set -euo pipefail
train=$1 same=$2 unseen=$3 out=$4 minutes=${5:-18}
mkdir -p "$out"
gpu=$(python -c 'import torch; print(int(torch.cuda.is_available()))')
if [ "$gpu" = 1 ]; then
    size=small image=224 batch=64 workers=12 precision=bf16 compile=inductor epochs=400
    bench="--size base --batch 120 --steps 10 --rounds 3 --compile"
else
    size=tiny image=112 batch=32 workers=1 precision=fp32 compile=off epochs=2
    bench="--size tiny --batch 4 --steps 1 --rounds 1"
fi
cavmae bench pretrain $bench --out "$out/speed.json" | tee "$out/speed.md"
common=(--config tiny --model.size "$size" --model.image_height "$image" --model.image_width "$image"
    --data.batch "$batch" --data.workers "$workers" --data.train "$train" --resume auto
    --loop.precision "$precision" --loop.compile "$compile" --loop.epochs "$epochs")
# SIGTERM after the time allowed: the run saves and ends well.
half=$((minutes * 30))
timeout --preserve-status -s TERM "$half" cavmae pretrain "${common[@]}" --out "$out/clips" \
    --data.held_out "$same" --data.frames 1 --objective.aligned_weight 0 || true
newest() { ls -d "$1"/checkpoints/[0-9]* | tail -n 1; }
cavmae retrieve "$(newest "$out/clips")" "$same" --json "$out/same.json"
cavmae retrieve "$(newest "$out/clips")" "$unseen" --json "$out/unseen.json"
timeout --preserve-status -s TERM "$half" cavmae pretrain "${common[@]}" --out "$out/moments" \
    --data.held_out "$unseen" --model.weights "$(newest "$out/clips")" --model.partial || true
cavmae inpaint "$(newest "$out/moments")" "$unseen" --out "$out/inpaint.png"
cat "$out/speed.md"
tail -n 1 "$out/clips/metrics.jsonl"
tail -n 1 "$out/moments/metrics.jsonl"
